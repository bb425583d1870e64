"""Two processes on one run's folder."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.children import Nursery
from tests.faults.conftest import Reference


def test_the_second_is_refused_and_a_killed_first_locks_nobody_out(
    nursery: Nursery, reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    whole = reference("memit")
    halfway = {"change": len(whole.changes) // 2, "number": signal.SIGSTOP}
    first = nursery.run(tmp_path, signal_before_change=halfway)
    assert first.code is None
    second = nursery.run(tmp_path)
    assert second.code == 2
    assert second.output == (
        f"sphere-bench: error: {tmp_path / 'run'} is in use by another process: wait until that "
        "is done, stop it, or choose another run.name\n"
    )
    restart = nursery.run(tmp_path, "seed=1", "run.on_mismatch=restart")
    assert (restart.code, "is in use" in restart.output) == (2, True)
    os.kill(first.pid, signal.SIGKILL)
    whole.assert_nothing_lost(tmp_path / "run", at_least=0)
    assert nursery.run(tmp_path).code == 0
    whole.assert_completed(tmp_path / "run")


def test_one_that_has_not_begun_keeps_others_out_too(nursery: Nursery, tmp_path: Path) -> None:
    fault = {
        "target": "sphere_bench.build:load_model",
        "call": 0,
        "number": signal.SIGSTOP,
        "times": 1,
    }
    first = nursery.run(tmp_path, signal_in_call=fault)
    assert first.code is None
    assert nursery.run(tmp_path).code == 2
    os.kill(first.pid, signal.SIGKILL)
    assert nursery.run(tmp_path).code == 0
