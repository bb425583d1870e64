"""How well the edits took: the tables of a setting's scores."""

import math
from collections.abc import Mapping, Sequence

import pandas

from sphere_bench.report.comparing import Setting
from sphere_bench.report.declarations import DeclaredColumn
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import Table, label, number, spread

UNEDITED = "unedited model"


def headline_table(setting: Setting, scope: str, measures: Sequence[str]) -> Table:
    """Every arm at its last evaluated step, below the unedited model; mean and deviation."""
    arms = [
        {
            "editor": arm.editor,
            "variant": arm.variant,
            "state": "; ".join(sorted({run.state for run in arm.runs} - {"done"})) or "done",
            **_mean([latest(run, scope, measures) for run in arm.runs]),
        }
        for arm in setting.arms
    ]
    unedited = _mean([latest(run, scope, measures, until=0) for run in setting.runs], once=True)
    rows = [{"editor": UNEDITED, "variant": "", "state": "", **unedited, "edits": 0.0}, *arms]
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Runs", "runs", 0),
        number("Edits", "edits", 0),
        *(
            spread(metric.capitalize(), f"{metric}_{measure}", group=_group(setting, measure))
            for measure in measures
            for metric in setting.metrics_of(measure)
        ),
    ]
    if any(row["he_change"] == row["he_change"] for row in rows):
        columns.append(spread("HE change, %", "he_change", 3))
    return Table(
        f"headline-{scope}",
        f"Scope {scope} at the last evaluated step",
        pandas.DataFrame(rows),
        columns,
        emphasized=frozenset([0]),
    )


def beside_scores_table(setting: Setting, scope: str) -> Table | None:
    """The scope's other numbers, each at its own last step; None where no run has any."""
    declared = {each.name: each for run in setting.runs for each in run.declared.beside_scores}
    names = list(declared)
    arms = [
        {
            "editor": arm.editor,
            "variant": arm.variant,
            **_mean([_last_values(run, scope, names) for run in arm.runs]),
        }
        for arm in setting.arms
    ]
    unedited = _mean([_last_values(run, scope, names, until=0) for run in setting.runs], once=True)
    rows = pandas.DataFrame([{"editor": UNEDITED, "variant": "", **unedited}, *arms])
    found = [each for name, each in declared.items() if rows[name].notna().any()]
    if not found:
        return None
    return Table(
        f"beside-scores-{scope}",
        f"Beside the scores, scope {scope}, at the last step that has them",
        rows,
        [
            label("Editor", "editor"),
            label("SPHERE", "variant"),
            number("Runs", "runs", 0),
            *(spread(_with_unit(_title(each), each.unit), each.name, 3) for each in found),
        ],
        emphasized=frozenset([0]),
    )


def meanings_table(setting: Setting) -> Table:
    """What each score is, as the runs declare it."""
    scores = {
        (column.measure, column.metric): (f"{column.metric.capitalize()} {column.measure}", column)
        for run in setting.runs
        for column in run.declared.scores
        if column.measure in setting.measures
    }
    others = {
        ("", column.name): (_title(column), column)
        for run in setting.runs
        for column in run.declared.beside_scores
    }
    columns = [
        {"score": title, "unit": column.unit, "meaning": column.meaning}
        for title, column in (scores | others).values()
    ]
    shown = [label("Score", "score"), label("Unit", "unit"), label("Meaning", "meaning")]
    return Table("scores", "What the scores are", pandas.DataFrame(columns), shown)


def measured_earlier(setting: Setting, scope: str) -> list[str]:
    """Which numbers of the headline table are of an earlier step than their row says."""
    lines = []
    for run in setting.runs:
        scores = latest(run, scope, setting.measures)
        for measure in setting.measures:
            edits = scores[f"edits_{measure}"]
            if edits < scores["edits"]:
                lines.append(f"{run.name}: {measure} is that after {edits:.0f} edits")
    return lines


def latest(
    run: Run, scope: str, measures: Sequence[str], until: float = float("inf")
) -> dict[str, float]:
    """The last scores of a scope up to a step, each measure those of its own last step.

    Returns:
        ``edits_<measure>`` and ``<metric>_<measure>``; ``edits``, the most of these edits;
        ``he_change``, of the mean energy from the unedited weights, in percent. NaN what there is
        not.
    """
    found = {}
    for measure in measures:
        rows = run.scores(scope, measure)
        rows = rows[rows["step"] <= until]
        last = rows.iloc[-1].to_dict() if len(rows) else {}
        found[f"edits_{measure}"] = last.get("edits", math.nan)
        for metric in run.declared.scores_of(measure):
            found[f"{metric}_{measure}"] = last.get(metric, math.nan)
    edits = [found[f"edits_{measure}"] for measure in measures]
    ratio = run.step_values("he_ratio")
    ratio = ratio[ratio.index <= until]
    return {
        **found,
        "edits": max((each for each in edits if each == each), default=math.nan),
        "he_change": 100 * (float(ratio.iloc[-1]) - 1) if len(ratio) else math.nan,
    }


def _last_values(
    run: Run, scope: str, names: Sequence[str], until: float = float("inf")
) -> dict[str, float]:
    rows = run.steps[(run.steps["scope"] == scope) & (run.steps["step"] <= until)]
    values = {name: column_of(rows, name).dropna() for name in names}
    return {name: float(each.iloc[-1]) if len(each) else math.nan for name, each in values.items()}


def _title(column: DeclaredColumn) -> str:
    return column.name.replace("_", " ").capitalize()


def _group(setting: Setting, measure: str) -> str:
    return _with_unit(measure.capitalize(), setting.unit(measure))


def _with_unit(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def _mean(rows: Sequence[Mapping[str, float]], once: bool = False) -> dict[str, float]:
    """Mean and deviation; with ``once`` runs that start alike count as one."""
    numbers = pandas.DataFrame(rows).astype(float)
    if once:
        numbers = numbers.drop_duplicates()
    return {
        "runs": float(len(rows)),
        **numbers.mean().to_dict(),
        **numbers.std().add_suffix("_std").to_dict(),
    }
