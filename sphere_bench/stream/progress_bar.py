"""How far a run is, for whoever watches it: a bar in a terminal, a line for each step elsewhere."""

import logging
import math
import sys
from time import perf_counter
from types import TracebackType
from typing import Any, NoReturn

from tqdm import tqdm

from sphere_bench.evaluation.scopes import Scopes
from sphere_bench.stream.recorded_columns import STEPS, RunTables

logger = logging.getLogger(__name__)


class ProgressBar:
    """A bar that moves within a batch, and a log line for each step.

    The lines go to stderr as well where there is no terminal.

    Args:
        scopes: of the run, which count its edits.
        tables: of the run; the columns that the summary shows are shown here too.
        step: the last step that is made already.
    """

    def __init__(self, scopes: Scopes, tables: RunTables, step: int) -> None:
        self.scopes = scopes
        self.total = scopes.records
        self.last_step = math.ceil(self.total / scopes.batch_size)
        self.shown = [_first_shown(tables, per) for per in ("scope", "step")]
        self._before, self._started = scopes.edits(step), perf_counter()
        self.bar: tqdm[NoReturn] = tqdm(
            total=self.total, initial=self._before, desc="editing", unit="edit", disable=None
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()

    def move(self, step: int, share: float) -> None:
        """Show that this share of the batch of ``step`` is edited."""
        before = self.scopes.edits(step - 1)
        self.bar.n = before + int(share * (self.scopes.edits(step) - before))
        self.bar.refresh()

    def finish(self, step: int, row: dict[str, Any] | None) -> None:
        """Show that ``step`` is recorded.

        Args:
            row: of the table `steps`, where records were looked at.
        """
        numbers = {}
        for column in self.shown if row else []:
            if column is not None and row is not None and row[column.name] is not None:
                digits = ".1f" if column.unit == "%" else ".6f"
                numbers[column.name] = f"{row[column.name]:{digits}}"
        done = self.scopes.edits(step)
        line = f"step {step}/{self.last_step}, {done}/{self.total} edits"
        line += "".join(f", {name} {value}" for name, value in numbers.items())
        if made := done - self._before:
            seconds = (perf_counter() - self._started) / made
            minutes = seconds * (self.total - done) / 60
            line += f", {seconds:.2g} s an edit, {minutes:.0f} min left"
        logger.info(line)
        if self.bar.disable:
            print(f"sphere-bench: {line}", file=sys.stderr, flush=True)
        self.bar.set_postfix(numbers)
        self.bar.update(done - self.bar.n)


def _first_shown(tables: RunTables, per: str) -> Any:
    """The first column of `steps` that the summary shows, of a scope or of the step."""
    for placed in tables.columns:
        if placed.table == STEPS and placed.per == per and placed.column.shown:
            return placed.column
    return None
