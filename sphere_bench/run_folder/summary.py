"""The table that ends a run, and the number that a sweeper gets of it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas

from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import Progress, RunFolder
from sphere_bench.run_folder.table_files import read_table

_STEPS = "steps"


def summarize(folder: RunFolder) -> str:
    """What happened, scope by scope, and where the files are.

    Args:
        folder: of a run with at least one recorded step.
    """
    every = read_table(folder, _STEPS)
    steps = every[every["records"] > 0]
    chosen = steps[steps["step"].isin([0, steps["step"].max()])]
    provenance = folder.provenance()
    shown = {
        column["name"]: ("{:.1f}" if column["unit"] == "%" else "{:.6f}").format
        for column in provenance["columns"]
        if column["table"] == _STEPS and column["shown"]
    }
    table = chosen[["step", "edits", "scope", "records", *shown]].to_string(
        index=False, formatters=shown, na_rep="-"
    )
    lines = [f"{provenance['headline']} in percent; step 0 is the unedited model", table]
    return "\n".join([*lines, *incidents(folder.progress(), every), f"tables: {folder}"])


def incidents(progress: Progress | None, steps: pandas.DataFrame) -> list[str]:
    """What a reader of the tables must know: what was left out, a run that ended early.

    Args:
        progress: of the run.
        steps: its steps table.
    """
    lines = []
    written = steps["nonfinite"] & ~steps["skipped"]
    for what, chosen in (("skipped", steps["skipped"]), ("not finite but written", written)):
        if chosen.any():
            numbers = map(str, sorted(set(steps.loc[chosen, "step"])))
            lines.append(f"batches {what} (numerics.on_nonfinite): steps {', '.join(numbers)}")
    # An earlier version counted none.
    counted = steps[(steps["records"] > 0) & (steps.get("superseded", 0) > 0)]
    if len(counted):
        last = counted[counted["step"] == counted["step"].max()]
        scopes = [
            f"{row.scope} {row.superseded} of {row.records} records" for row in last.itertuples()
        ]
        lines.append(f"overwritten by later edits (evaluation.superseded): {', '.join(scopes)}")
    if progress is not None and progress.state == "collapsed":
        lines.append(
            f"collapsed after step {progress.step}, {progress.edits} of {progress.total} edits: "
            "the thresholds of collapse ended the run"
        )
    return lines


def check_objective(metric: str, columns: Iterable[Mapping[str, Any]]) -> None:
    """Make sure that there is such a number.

    Args:
        metric: what a sweeper optimises.
        columns: as ``provenance.json`` has them.

    Raises:
        SphereBenchError: ``steps`` has no such column of numbers.
    """
    names = [
        column["name"]
        for column in columns
        if column["table"] == _STEPS and column["type"] in ("real", "whole")
    ]
    if metric not in names:
        raise SphereBenchError(f"objective.metric={metric}: must be one of {', '.join(names)}")


def objective(folder: RunFolder, metric: str, scope: str) -> float:
    """``metric`` of ``scope`` at the last step that has it; NaN where no step has."""
    steps = read_table(folder, _STEPS)
    values = steps.loc[steps["scope"] == scope, metric].dropna()
    return float(values.iloc[-1]) if len(values) else math.nan
