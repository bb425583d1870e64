"""Ending a run whose model has collapsed, by the rows that it has recorded."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.run_folder.folder import RunFolder
from sphere_bench.run_folder.table_files import read_table
from sphere_bench.stream.recorded_columns import STEPS


class EarlyStopping:
    """Says after each step whether the run ends there.

    Args:
        collapse: the thresholds; without any, no run ends early.
    """

    def __init__(self, collapse: Collapse) -> None:
        self.collapse = collapse
        self._unedited_perplexity = math.nan

    def reached(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the model has collapsed by a step's rows of `steps`.

        The rows of step 0 must have come first. A batch that was left out leaves the model as it
        was, and a step without scores says nothing: neither ends a run.
        """
        (row,) = [row for row in rows if row["scope"] == "batch"]
        if row["step"] == 0:
            self._unedited_perplexity = _number(row.get("perplexity"))
            return False
        if not self.collapse.is_set or row["skipped"] or not row["records"]:
            return False
        if self.collapse.perplexity is not None and row.get("perplexity") is None:
            return False  # its probe had no turn
        efficacy, perplexity = _number(row.get("efficacy")), _number(row.get("perplexity"))
        return self.collapse.reached(efficacy, perplexity, self._unedited_perplexity)

    def resume(self, folder: RunFolder, step: int) -> bool:
        """Whether the run in ``folder`` had collapsed after ``step``, by what it recorded."""
        if step < 1 or not self.collapse.is_set:
            return False
        steps = read_table(folder, STEPS)
        ended = False
        for each in (0, step):
            rows = steps[steps["step"] == each].to_dict("records")
            for row in rows:
                # Read back, a perplexity that was not taken looks like one that is no number.
                if math.isnan(row.get("perplexity", math.nan)) and not row["collapsed"]:
                    row["perplexity"] = None
            ended = self.reached(rows)
        return ended


def _number(value: float | None) -> float:
    return math.nan if value is None else value
