"""A run that is killed, at whatever moment, goes on to the tables of one that is not."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.conftest import STEPS, Nursery, Reference, logged_changes

EDITORS = ("memit", "alphaedit", "ultraedit")
KILLED = -signal.SIGKILL
PARTS = 4  # for as many workers


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def kill(
    nursery: Nursery, root: Path, editor: str, change: int, composed: bool = False
) -> int | None:
    """Run until the ``change``-th change in the run's folder, or to the end."""
    fault = {"change": change, "number": signal.SIGKILL}
    return nursery.run(root, f"editor={editor}", composed=composed, signal_before_change=fault).code


class LastStep(NamedTuple):
    """A run with its last step to make.

    Attributes:
        root: holds it.
        writes: numbers of the changes that change something in its folder when it goes on. A file
            that is opened twice in a row, or loses a temporary name that it has lost, does not.
    """

    root: Path
    writes: list[int]


@pytest.fixture(scope="module")
def last_step(
    nursery: Nursery,
    reference: Callable[[str], Reference],
    tmp_path_factory: pytest.TempPathFactory,
) -> LastStep:
    whole = reference("memit").changes
    committed = [i for i, (_, path) in enumerate(whole) if path.name == "progress.json"]
    saved = [i for i, (_, path) in enumerate(whole) if path.name == f"step-{STEPS}"]
    # The progress before the last step's checkpoint is the last step's; its rows come before.
    first = [i for i in committed if i < saved[0]][-2] + 1
    root = tmp_path_factory.mktemp("last-step")
    assert kill(nursery, root, "memit", first) == KILLED
    tried = tmp_path_factory.mktemp("tried")
    shutil.copytree(root / "run", tried / "run")
    log = tried / "changes"
    end = nursery.run(tried, "editor=memit", composed=True, log={"file": str(log)})
    assert end.code == 0, end.output
    changes = logged_changes(log)
    writes = [
        number
        for number, (event, path) in enumerate(changes)
        if changes[number] != changes[number - 1]
        and event != "os.chmod"
        and not (event == "os.remove" and path.suffix == ".partial")
    ]
    return LastStep(root, writes)


@pytest.mark.parametrize("part", range(PARTS))
def test_between_every_two_writes_of_a_step(
    nursery: Nursery,
    reference: Callable[[str], Reference],
    last_step: LastStep,
    part: int,
    tmp_path: Path,
) -> None:
    # Three tables and the progress; a checkpoint's three files; the removal of the one before.
    assert len(last_step.writes) >= 25
    whole = reference("memit")
    for change in last_step.writes[part::PARTS]:
        root = tmp_path / str(change)
        shutil.copytree(last_step.root / "run", root / "run")
        assert kill(nursery, root, "memit", change, composed=True) == KILLED
        whole.assert_nothing_lost(root / "run", at_least=STEPS - 1)
        assert nursery.run(root, "editor=memit", composed=True).code == 0
        whole.assert_completed(root / "run")


def test_before_seeded_changes_of_the_whole_run(
    nursery: Nursery, reference: Callable[[str], Reference], editor: str, tmp_path: Path
) -> None:
    whole = reference(editor)
    for change in random.Random(editor).sample(range(len(whole.changes)), 4):
        root = tmp_path / str(change)
        assert kill(nursery, root, editor, change) == KILLED
        whole.assert_nothing_lost(root / "run")
        assert nursery.run(root, f"editor={editor}").code == 0
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
        if kill(nursery, tmp_path, editor, change) == 0:
            break
        recorded = whole.assert_nothing_lost(tmp_path / "run", at_least=recorded)
    assert nursery.run(tmp_path, f"editor={editor}").code == 0
    whole.assert_completed(tmp_path / "run")
