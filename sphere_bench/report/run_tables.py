"""What was run: a table of the runs, and of what differs between them."""

import math
from collections.abc import Sequence
from typing import Any

import pandas

from sphere_bench.report.comparing import Arm, Setting, differences
from sphere_bench.report.reading import Run
from sphere_bench.report.score_tables import latest
from sphere_bench.report.tables import Table, label, number


def runs_table(settings: Sequence[Setting]) -> Table:
    """A row for each run: what it is, how far it is, and the SPHERE that it used."""
    rows = [
        {
            "model": setting.model,
            "dataset": setting.dataset,
            "editor": arm.editor,
            "sphere": f"α {run.config['sphere.alpha']:g}, η {run.config['sphere.eta']:g}"
            if arm.enabled
            else "off",
            "seed": run.config["seed"],
            "batch_size": run.progress.batch_size,
            "edits": run.progress.edits,
            "state": run.state,
            "started": run.provenance.get("started_at", ""),
            "folder": run.name,
        }
        for setting, arm, run in _each(settings)
    ]
    columns = [
        label("Model", "model"),
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        label("SPHERE", "sphere"),
        number("Seed", "seed", 0),
        number("Batch", "batch_size", 0),
        number("Edits", "edits", 0),
        label("State", "state"),
        label("Folder", "folder"),
    ]
    return Table("runs", "The runs", pandas.DataFrame(rows), columns)


def runs_frame(settings: Sequence[Setting]) -> pandas.DataFrame:
    """A row for each run, for further work: what was chosen and its latest scores.

    Returns:
        SPHERE's numbers, missing where it is off, and for each scope the columns
        ``<scope>_<metric>_<measure>``.
    """
    rows = []
    for setting, arm, run in _each(settings):
        config = run.config
        row: dict[str, Any] = {
            "run": run.name,
            "model": setting.model,
            "dataset": setting.dataset,
            "editor": arm.editor,
            "sphere": config["sphere.name"],
            "alpha": float(config["sphere.alpha"]) if arm.enabled else math.nan,
            "eta": float(config["sphere.eta"]) if arm.enabled else math.nan,
            "seed": config["seed"],
            "batch_size": run.progress.batch_size,
            "edits": run.progress.edits,
            "total": run.progress.total,
            "state": run.progress.state,
            "headline": setting.headline,
        }
        for scope in run.scopes:
            scores = latest(run, scope, setting.measures)
            row["he_change"] = scores.pop("he_change")
            row |= {f"{scope}_{key}": value for key, value in scores.items()}
        rows.append(row)
    frame: pandas.DataFrame = pandas.DataFrame(rows)
    return frame


def differences_table(runs: Sequence[Run]) -> Table | None:
    """A row for each choice that differs between runs; None where none does."""
    table = differences(runs)
    if len(runs) < 2 or table.empty or not len(table.columns):
        return None
    rows = []
    for key in table:
        counts = table[key].value_counts(sort=False)
        values = ", ".join(f"{value} ({count})" for value, count in counts.items())
        rows.append({"key": key, "values": values})
    columns = [label("Key", "key"), label("Values (runs)", "values")]
    return Table("differences", "What differs between the runs", pandas.DataFrame(rows), columns)


def _each(settings: Sequence[Setting]) -> list[tuple[Setting, Arm, Run]]:
    return [(setting, arm, run) for setting in settings for arm in setting.arms for run in arm.runs]
