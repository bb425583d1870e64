"""Runs that things happen to, beside the same run that nothing happens to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from sphere_bench.run_folder.table_files import read_table
from tests.children import EVERY, STEPS, Nursery
from tests.run_tables import TABLES, assert_same_tables, without_times


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to.

    Attributes:
        folder: the run's.
        changes: what it changed in its folder, in order: an event and a path.
        seconds: how long it took.
    """

    folder: Path
    changes: list[tuple[str, Path]]
    seconds: float

    def assert_nothing_lost(self, folder: Path, at_least: int = -1) -> int:
        """A run that was killed has whole steps, the right ones; returns the last of them."""
        progress = RunFolder(folder).progress()
        if progress is None:
            assert at_least == -1
            return -1
        for name in TABLES:
            mine = read_table(RunFolder(folder), name)
            whole = read_table(RunFolder(self.folder), name)
            expected = whole[whole["step"] <= progress.step]
            assert without_times(mine).equals(without_times(expected)), name
        assert progress.step >= at_least
        saved = Checkpoints(folder / "checkpoints").latest()
        assert progress.step - (saved.step if saved else -1) <= EVERY + 1
        return progress.step

    def assert_completed(self, folder: Path) -> None:
        """A run that went on to its end is the same as this one."""
        progress = RunFolder(folder).progress()
        assert progress is not None
        assert (progress.state, progress.step) == ("done", STEPS)
        assert_same_tables(folder, self.folder)
        assert Checkpoints(folder / "checkpoints").steps() == [STEPS]
        assert not list(folder.rglob(".*"))


@pytest.fixture(scope="session")
def reference(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """The run of an editor that nothing happens to."""

    @cache
    def make(editor: str) -> Reference:
        # The first run fills the cache of key statistics, which the others read.
        root = tmp_path_factory.mktemp(editor)
        assert nursery.run(root / "first", f"editor={editor}", "edits.total=2").code == 0
        log = root / "changes"
        end = nursery.run(root, f"editor={editor}", log={"file": str(log)})
        assert end.code == 0, end.output
        return Reference(root / "run", logged_changes(log), end.seconds)

    return make


def logged_changes(log: Path) -> list[tuple[str, Path]]:
    """What ``nursery.log`` wrote: events and paths."""
    lines = [line.partition(" ") for line in log.read_text().splitlines()]
    return [(event, Path(path)) for event, _, path in lines]
