"""How well the edits took: the tables of a setting's scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas

from sphere_bench.report.comparing import SPHERE_KEYS, Arm, Setting, comparable
from sphere_bench.report.correlation import gain
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import Column, Table, label, number, spread, write_number

# arXiv 2510.01172, its poster: gain in percent over the baselines, on average.
PAPER_GAINS = {"efficacy": 43.27, "generalization": 36.20, "specificity": 20.96}
UNEDITED = "unedited model"
_Scores: TypeAlias = "pandas.Series[Any]"


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


def meanings_table(setting: Setting) -> Table:
    """What each score is, as the runs declare it."""
    columns = {
        (column.measure, column.metric): {
            "score": f"{column.metric.capitalize()} {column.measure}",
            "unit": column.unit,
            "meaning": column.meaning,
        }
        for run in setting.runs
        for column in run.declared.scores
        if column.measure in setting.measures
    }
    shown = [label("Score", "score"), label("Unit", "unit"), label("Meaning", "meaning")]
    return Table("scores", "What the scores are", pandas.DataFrame(columns.values()), shown)


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


def gains_table(setting: Setting, scope: str, measure: str) -> Table | None:
    """SPHERE's gain per editor, and on average beside the paper's; None without a pair of runs.

    A pair is two runs that differ in SPHERE alone; both are read at the last step that both have.
    """
    metrics = setting.metrics_of(measure)
    rows = []
    for arm in setting.arms:
        pairs = list(_pairs(setting, arm, scope, measure))
        if pairs:
            rows.append(_gain_row(arm, pairs, metrics))
    if not rows:
        return None
    mean = pandas.DataFrame(rows).mean(numeric_only=True)
    poster = {f"{each}_percent": PAPER_GAINS[each] for each in metrics if each in PAPER_GAINS}
    below: list[dict[str, Any]] = [{"editor": "average", **_gain_columns(mean)}]
    if poster:
        below.append({"editor": "the paper’s average", **poster})
    frame = pandas.DataFrame([*rows, *below])
    frame["variant"] = frame["variant"].fillna("")
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Edits", "edits", 0),
        *(column for metric in metrics for column in _gain_pair(metric)),
    ]
    return Table(
        f"gain-{measure}",
        f"Gain in {measure} over the same editor without SPHERE, scope {scope}",
        frame,
        columns,
        emphasized=frozenset(range(len(rows), len(frame))),
    )


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


def _group(setting: Setting, measure: str) -> str:
    unit = setting.unit(measure)
    return f"{measure.capitalize()}, {unit}" if unit else measure.capitalize()


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


def _pairs(
    setting: Setting, arm: Arm, scope: str, measure: str
) -> Iterable[tuple[_Scores, _Scores]]:
    """Scores without and with SPHERE of runs otherwise the same, at the last step of both."""
    if not arm.enabled:
        return
    baselines = {
        comparable(run, without=SPHERE_KEYS): run
        for other in setting.arms_of(arm.editor)
        for run in other.runs
        if not other.enabled
    }
    for run in arm.runs:
        baseline = baselines.get(comparable(run, without=SPHERE_KEYS))
        if baseline is None:
            continue
        without, with_sphere = (
            each.scores(scope, measure).set_index("step") for each in (baseline, run)
        )
        if (step := max(without.index.intersection(with_sphere.index), default=0)) > 0:
            yield without.loc[step], with_sphere.loc[step]


def _gain_row(
    arm: Arm, pairs: Sequence[tuple[_Scores, _Scores]], metrics: Sequence[str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"editor": arm.editor, "variant": arm.variant, "runs": len(pairs)}
    without, with_sphere = (
        pandas.DataFrame(list(each)).reset_index(drop=True) for each in zip(*pairs, strict=True)
    )
    row["edits"] = float(with_sphere["edits"].max())
    for metric in metrics:
        before, after = column_of(without, metric), column_of(with_sphere, metric)
        points, percent = gain(before.mean(), after.mean())
        row[f"{metric}_without"], row[f"{metric}_with"] = before.mean(), after.mean()
        row[f"{metric}_points"], row[f"{metric}_percent"] = points, percent
        row[f"{metric}_points_std"] = (after - before).std()
    return row


def _gain_columns(mean: "pandas.Series[Any]") -> dict[str, float]:
    kept = ("_points", "_percent")
    return {str(key): value for key, value in mean.items() if str(key).endswith(kept)}


def _gain_pair(metric: str) -> list[Column]:
    group = metric.capitalize()
    return [
        spread("points", f"{metric}_points", group=group, sign=True),
        Column("%", lambda row: write_number(row.get(f"{metric}_percent"), 1, sign=True), group),
    ]
