"""A run that is killed, at whatever moment, goes on to the tables of one that is not."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import STEPS, Nursery
from tests.faults.conftest import Reference

EDITORS = ("memit", "alphaedit", "ultraedit")
KILLED = -signal.SIGKILL


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def kill(nursery: Nursery, root: Path, editor: str, change: int) -> int | None:
    """Run until the ``change``-th change in the run's folder, or to the end."""
    fault = {"change": change, "number": signal.SIGKILL}
    return nursery.run(root, f"editor={editor}", signal_before_change=fault).code


def content(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_between_every_two_writes_of_a_step(
    nursery: Nursery, reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    whole = reference("memit")
    committed = [i for i, (_, path) in enumerate(whole.changes) if path.name == "progress.json"]
    saved = [i for i, (_, path) in enumerate(whole.changes) if path.name == f"step-{STEPS}"]
    # Before the first checkpoint: the progress before the last step's is that of the step before.
    first = [i for i in committed if i < saved[0]][-2] + 1
    root = tmp_path / "last-step"
    root.mkdir()  # as the reference's root is there: the changes are counted
    assert kill(nursery, root, "memit", first) == KILLED
    # A kill leaves the folder as it is at that moment, so one run shows what all of them leave.
    fault = {"into": str(tmp_path / "states")}
    end = nursery.run_each([root], "editor=memit", keep_states=fault)
    assert end.code == 0, end.output
    states: list[Path] = []
    found: list[dict[Path, bytes]] = []
    for state in sorted((tmp_path / "states").iterdir(), key=lambda path: int(path.name)):
        if content(state) not in found:
            found.append(content(state))
            states.append(state)
    # Three tables and the progress; a checkpoint's three files; the removal of the one before.
    assert len(states) >= 25
    for state in states:
        whole.assert_nothing_lost(state / "run", at_least=STEPS - 1)
    end = nursery.run_each(states, "editor=memit")
    assert end.code == 0, end.output
    for state in states:
        whole.assert_completed(state / "run")


def test_before_seeded_changes_of_the_whole_run(
    nursery: Nursery, reference: Callable[[str], Reference], editor: str, tmp_path: Path
) -> None:
    whole = reference(editor)
    roots = []
    for change in random.Random(editor).sample(range(len(whole.changes)), 4):
        root = tmp_path / str(change)
        root.mkdir()
        assert kill(nursery, root, editor, change) == KILLED
        whole.assert_nothing_lost(root / "run")
        roots.append(root)
    end = nursery.run_each(roots, f"editor={editor}")
    assert end.code == 0, end.output
    for root in roots:
        whole.assert_completed(root / "run")


def test_from_outside_at_seeded_times(
    nursery: Nursery, reference: Callable[[str], Reference], editor: str, tmp_path: Path
) -> None:
    whole = reference(editor)
    chance = random.Random(editor)
    for moment in range(2):
        root = tmp_path / str(moment)
        after = chance.uniform(0.2, 0.9) * whole.seconds
        # On a busy machine the run may be over by then, or not have begun.
        assert nursery.run(root, f"editor={editor}", kill_after=after).code in (KILLED, 0)
        whole.assert_nothing_lost(root / "run")
        assert nursery.run(root, f"editor={editor}").code == 0
        whole.assert_completed(root / "run")


def test_again_and_again(
    nursery: Nursery, reference: Callable[[str], Reference], editor: str, tmp_path: Path
) -> None:
    whole = reference(editor)
    chance = random.Random(editor)
    recorded = -1
    for _ in range(6):
        change = chance.randrange(len(whole.changes) // 3)
        fault = {"change": change, "number": signal.SIGKILL}
        end = nursery.run_each([tmp_path], f"editor={editor}", signal_before_change=fault)
        if end.code == 0:
            break
        assert end.code == KILLED, end.output
        recorded = whole.assert_nothing_lost(tmp_path / "run", at_least=recorded)
    assert nursery.run_each([tmp_path], f"editor={editor}").code == 0
    whole.assert_completed(tmp_path / "run")
