"""Runs that things happen to, beside the same run that nothing happens to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from sphere_bench.run_folder.table_files import read_table
from tests.run_tables import TABLES, assert_same_tables, without_times

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 3, 2
SETTINGS = (
    "run.name=run",
    "model.values.steps=2",
    "values.contexts=['{}','Nobody knew why. {}']",
    "evaluation.seen=2",
    "evaluation.first=2",
    "perplexity.tokens=20",
    "edits.total=6",
    "edits.batch_size=2",
    f"checkpoint.every={EVERY}",
    "checkpoint.keep=1",
)


@dataclass(frozen=True)
class Death:
    """How a child ended, see ``nursery.answer``."""

    pid: int
    code: int | None
    output: str
    seconds: float


class Nursery:
    """Where the children run."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def run(
        self,
        root: Path,
        *overrides: str,
        kill_after: float | None = None,
        **faults: dict[str, Any],
    ) -> Death:
        """One `sphere-bench run` in ``root``, with faults of its run's folder."""
        return self._ask(root, overrides, faults, kill_after=kill_after)

    def run_shared(self, processes: int, root: Path, *overrides: str) -> Death:
        """One `sphere-bench run` of several processes, as torchrun starts them."""
        return self._ask(root, overrides, {}, processes=processes)

    def run_each(self, roots: Sequence[Path], *overrides: str, **faults: dict[str, Any]) -> Death:
        """A run in each root, in one process; the faults are of the first one's folder."""
        return self._ask(roots[0], overrides, faults, roots=list(map(str, roots)))

    def _ask(
        self,
        root: Path,
        overrides: tuple[str, ...],
        faults: dict[str, dict[str, Any]],
        **options: Any,
    ) -> Death:
        for name in ("log", "keep_states", "signal_before_change", "full_disk"):
            if name in faults:
                faults[name]["folder"] = str(root / "run")
        arguments = ["run", f"run.root={root}", *SETTINGS, *overrides]
        request = {"arguments": arguments, "faults": faults, **options}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Death(**json.loads(self.process.stdout.readline()))


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
def nursery() -> Iterator[Nursery]:
    if not hasattr(os, "fork"):
        pytest.skip("no os.fork on this system")
    nursery = Nursery()
    yield nursery
    assert nursery.process.stdin
    nursery.process.stdin.close()
    nursery.process.wait()


@pytest.fixture(scope="session")
def reference(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """The run of an editor that nothing happens to."""

    @cache
    def make(editor: str) -> Reference:
        # The first run fills the cache of key statistics, which the others read.
        root = tmp_path_factory.mktemp(editor)
        assert nursery.run(root / "first", f"editor={editor}").code == 0
        log = root / "changes"
        end = nursery.run(root, f"editor={editor}", log={"file": str(log)})
        assert end.code == 0, end.output
        return Reference(root / "run", logged_changes(log), end.seconds)

    return make


def logged_changes(log: Path) -> list[tuple[str, Path]]:
    """What ``nursery.log`` wrote: events and paths."""
    lines = [line.partition(" ") for line in log.read_text().splitlines()]
    return [(event, Path(path)) for event, _, path in lines]
