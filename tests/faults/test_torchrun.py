"""A run that several processes share is the run of one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sphere_bench.cli import main
from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from tests.children import SETTINGS as QUICK
from tests.children import Nursery
from tests.run_tables import assert_same_tables

ROOT = Path(__file__).parents[2]
# More requests than are solved at a time, so that there is something to share.
SETTINGS = (
    "edits.total=102",
    "edits.batch_size=51",
    "model.values.steps=3",
    "evaluation.seen=4",
    "evaluation.first=4",
    "checkpoint.every=1",
    "device=cpu",
)


# Only the first process has a progress bar; it moves while the work of a step is shared.
SHARING = {"target": "sphere_bench.stream.progress_bar:ProgressBar.move", "call": 2}


def torchrun(processes: int, root: Path) -> subprocess.CompletedProcess[str]:
    """A run in ``root``, where Python finds modules too."""
    arguments = ("--nproc-per-node", str(processes), "-m", "sphere_bench", "run")
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments),
            *(f"run.root={root}", *QUICK, *SETTINGS),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{root}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Python imports it at its start: the second process ends as soon as the first step is saved.
DYING = """
import os, threading, time
from pathlib import Path

def die():
    while not (Path(os.environ["ROOT"]) / "run/checkpoints/step-1").exists():
        time.sleep(0.01)
    os._exit(1)

if os.environ.get("RANK") == "1":
    threading.Thread(target=die, daemon=True).start()
"""


@pytest.fixture(scope="module")
def alone(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    root = tmp_path_factory.mktemp("alone")
    assert nursery.run(root, *SETTINGS).code == 0
    return root / "run"


def test_two_and_three_processes_make_the_tables_of_one(
    nursery: Nursery, alone: Path, tmp_path: Path
) -> None:
    for processes in (2, 3):
        root = tmp_path / str(processes)
        ended = nursery.run_shared(processes, root, *SETTINGS)
        assert ended.code == 0, ended.output
        assert_same_tables(root / "run", alone)
        assert ended.output.count("tables: ") == 1  # one of them makes the run
        assert [path.name for path in root.iterdir()] == ["run"]
    again = nursery.run_shared(2, tmp_path / "2", *SETTINGS)
    assert again.code == 0 and "already done" in again.output


def test_ctrl_c_in_all_processes_lets_the_step_end_and_saves_it(
    nursery: Nursery, alone: Path, tmp_path: Path
) -> None:
    fault = {"target": "sphere_bench.editing.values.solver:_Solver.solve", "call": 0}
    # Twice at once: from the terminal and from torchrun.
    twice = {**fault, "number": signal.SIGINT, "times": 2}
    stopped = nursery.run_shared(2, tmp_path, *SETTINGS, signal_in_call=twice)
    assert stopped.code == 130, stopped.output
    assert stopped.output.count("stopping after this step") == 1
    assert "has died" not in stopped.output
    progress = RunFolder(tmp_path / "run").progress()
    assert progress is not None
    assert (progress.state, progress.step) == ("interrupted", 1)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]
    assert nursery.run_shared(2, tmp_path, *SETTINGS).code == 0
    assert_same_tables(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"number": signal.SIGKILL, "times": 1}, -signal.SIGKILL),
        ({"number": signal.SIGINT, "times": 2, "pause": 1.1}, 130),
    ],
)
def test_a_first_process_that_is_killed_or_abandons_a_step_ends_the_others(
    fault: dict[str, float], code: int, nursery: Nursery, tmp_path: Path
) -> None:
    ended = nursery.run_shared(2, tmp_path, *SETTINGS, signal_in_call={**SHARING, **fault})
    assert ended.code == code, ended.output
    assert "a process of this run has died" in ended.output


def test_a_process_that_dies_ends_the_run_and_it_can_go_on(
    nursery: Nursery, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DYING)
    monkeypatch.setenv("ROOT", str(tmp_path))
    died = torchrun(2, tmp_path)
    assert died.returncode != 0
    assert "run the same command again to go on" in died.stderr
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]
    ended = nursery.run_shared(2, tmp_path, *SETTINGS)
    assert ended.code == 0, ended.output
    assert_same_tables(tmp_path / "run", alone)


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_is_not_shared(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", flag, "seed=0,1"]) == 2
    assert "torchrun and --multirun do not go together" in capsys.readouterr().err
