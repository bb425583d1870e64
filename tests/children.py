"""Runs in processes that bad things happen to, each forked from one that has imported all."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.few_prompts import few_prompts

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 3, 2
SETTINGS = (
    few_prompts(),
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
            [sys.executable, ROOT / "tests" / "faults" / "nursery.py"],
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
        return self._run(root, overrides, faults, kill_after=kill_after)

    def killed_before(self, step: int, arguments: Sequence[str], folder: Path) -> None:
        """Run the command line in a working folder until it would record ``step``."""
        target = "sphere_bench.run_folder.tables:Recorder.commit_step"
        fault = {"target": target, "call": step, "number": signal.SIGKILL, "times": 1}
        end = self._ask(arguments, {"signal_in_call": fault}, folder=str(folder))
        assert end.code == -signal.SIGKILL, end.output

    def run_shared(
        self, processes: int, root: Path, *overrides: str, **faults: dict[str, Any]
    ) -> Death:
        """One `sphere-bench run` of several processes, as torchrun starts them, all with faults."""
        return self._run(root, overrides, faults, processes=processes)

    def run_each(self, roots: Sequence[Path], *overrides: str, **faults: dict[str, Any]) -> Death:
        """A run in each root, in one process; the faults are of the first one's folder."""
        return self._run(roots[0], overrides, faults, roots=list(map(str, roots)))

    def _run(
        self,
        root: Path,
        overrides: tuple[str, ...],
        faults: dict[str, dict[str, Any]],
        **options: Any,
    ) -> Death:
        for name in ("log", "keep_states", "signal_before_change", "full_disk"):
            if name in faults:
                faults[name]["folder"] = str(root / "run")
        return self._ask(["run", f"run.root={root}", *SETTINGS, *overrides], faults, **options)

    def _ask(
        self, arguments: Sequence[str], faults: dict[str, dict[str, Any]], **options: Any
    ) -> Death:
        request = {"arguments": list(arguments), "faults": faults, **options}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Death(**json.loads(self.process.stdout.readline()))
