"""What became of the weights, and what it cost: tables beside the scores."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas

from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.recording import STAGES
from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.reading import Run
from sphere_bench.report.results import UNEDITED
from sphere_bench.report.statistics import (
    LAGS,
    Method,
    Series,
    changes,
    correlate,
    lagged,
)
from sphere_bench.report.tables import (
    Column,
    Row,
    Table,
    is_missing,
    label,
    number,
    spread,
    write_number,
    write_p_value,
)

POOLED = "all runs, pooled"
_METHODS: tuple[Method, ...] = ("Spearman", "Pearson")
_WEIGHT = ["weight_norm", "update_norm", "applied_norm", "rank", "drift"]
_COSINES = ["cos_mean", "cos_std", "cos_p01", "cos_p99"]


def energy_and_quality(run: Run, scope: str, metric: str, layer: int | None = None) -> Series:
    """HE change from the unedited weight and a headline metric, both in percent, from step 1 on.

    From the unedited model to the first batch quality rises because it is edited at all, which
    says nothing about the energy.

    Args:
        layer: whose energy; None takes the mean over edited layers.
    """
    rows = run.scores(scope).set_index("step").drop(0, errors="ignore")
    ratio = rows["he_ratio"]
    if layer is not None:
        ratio = run.layer(layer).set_index("step")["he_ratio"].reindex(rows.index)
    return Series(100 * (ratio - 1), rows[metric])


def correlation_table(setting: Setting, scope: str, of_changes: bool) -> Table:
    """HE change against quality, or the step-to-step changes of both: per run and pooled."""
    rows = []
    for metric in METRICS:
        every = []
        for arm, run in _runs(setting):
            series = energy_and_quality(run, scope, metric)
            every.append(changes(series) if of_changes else series)
            named = {"run": arm.label, "seed": str(run.config["seed"])}
            rows.append({**named, "metric": metric, **_correlations([every[-1]])})
        pooled = {"run": POOLED, "seed": ""}
        rows.append({**pooled, "metric": metric, **_correlations(every)})
    what = "Step-to-step changes" if of_changes else "Levels"
    return _correlation_table(
        "correlation-changes" if of_changes else "correlation-levels",
        f"{what}: HE against {setting.headline}, scope {scope}",
        rows,
    )


def layer_correlation_table(setting: Setting, scope: str) -> Table:
    """The HE of each layer against score, levels and step-to-step changes, pooled over runs."""
    rows = []
    for layer in setting.layers:
        every = [
            energy_and_quality(run, scope, "score", layer)
            for _, run in _runs(setting)
            if len(run.layer(layer))
        ]
        for what, series in (("levels", every), ("changes", [changes(each) for each in every])):
            rows.append({"layer": layer, "of": what, "metric": "score", **_correlations(series)})
    table = _correlation_table("correlation-layers", f"HE by layer, scope {scope}", rows)
    own = [number("Layer", "layer", 0), label("Of", "of")]
    return Table(table.name, table.caption, table.rows, [*own, *table.columns[2:]])


def lag_table(setting: Setting, scope: str) -> Table:
    """Step-to-step changes of HE against those of quality so many evaluations later, pooled."""
    rows = []
    for metric in METRICS:
        every = [changes(energy_and_quality(run, scope, metric)) for _, run in _runs(setting)]
        for lag in LAGS:
            shifted = [lagged(series, lag) for series in every]
            rows.append({"metric": metric, "lag": lag, **_correlations(shifted)})
    table = _correlation_table("correlation-lagged", f"HE first, by lag, scope {scope}", rows)
    lags = Column("Lag", lambda row: write_number(row["lag"], 0, sign=True))
    return Table(table.name, table.caption, table.rows, [lags, *table.columns[2:]])


def weight_table(setting: Setting) -> Table:
    """The edited weights at the last step: means over layers, mean and deviation over runs."""
    rows = [{"editor": UNEDITED, "variant": "", **_weights(setting.runs, first=True)}]
    for arm in setting.arms:
        rows.append({"editor": arm.editor, "variant": arm.variant, **_weights(arm.runs)})
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        spread("Weight norm", "weight_norm", 2),
        spread("proposed", "update_norm", 3, group="Update norm"),
        spread("applied", "applied_norm", 3, group="Update norm"),
        spread("Rank r", "rank"),
        spread("Drift, %", "drift", 2),
        spread("HE change, %", "he_change", 3),
    ]
    caption = "The edited weights at the last step, means over edited layers"
    return Table("weights", caption, pandas.DataFrame(rows), columns, frozenset([0]))


def cosine_table(setting: Setting) -> Table:
    """The cosines between neurons at the last step, from :func:`weight_table`'s numbers."""
    table = weight_table(setting)
    headers = ["Mean", "Standard deviation", "1st percentile", "99th percentile"]
    columns = [
        *table.columns[:2],
        *(spread(header, key, 3) for header, key in zip(headers, _COSINES, strict=True)),
    ]
    caption = "Cosine similarity between neurons at the last step, means over edited layers"
    return replace(table, name="cosines", caption=caption, columns=columns)


def time_table(setting: Setting) -> Table:
    """Seconds an edit by stage over the whole run so far, and the largest memory."""
    rows = []
    for arm in setting.arms:
        costs = pandas.DataFrame([_costs(run) for run in arm.runs])
        rows.append(
            {
                "editor": arm.editor,
                "variant": arm.variant,
                **costs.mean().to_dict(),
                **costs.std().add_suffix("_std").to_dict(),
            }
        )
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        spread("Seconds an edit", "total", 3),
        *(number(stage, f"share_{stage}", group="Share of the time, %") for stage in STAGES),
        number("Peak memory, GiB", "peak_memory_gib", 2),
    ]
    return Table("time", "Where the time went", pandas.DataFrame(rows), columns)


def _runs(setting: Setting) -> Iterator[tuple[Arm, Run]]:
    for arm in setting.arms:
        for run in arm.runs:
            yield arm, run


def _correlations(series: list[Series]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for method in _METHODS:
        found = correlate(series, method)
        row.update({f"{method.lower()}_{key}": value for key, value in vars(found).items()})
    row["points"] = found.points
    return row


def _correlation_table(name: str, caption: str, rows: list[dict[str, Any]]) -> Table:
    columns = [
        label("Run", "run"),
        label("Seed", "seed"),
        Column("Metric", lambda row: row["metric"].capitalize(), numeric=False),
        number("Points", "points", 0),
    ]
    for method in _METHODS:
        columns += [
            Column("r [95 % interval]", _coefficient(method), method),
            Column("p", _p_value(method), method),
        ]
    frame = pandas.DataFrame(rows)
    pooled = frozenset(frame.index[frame["run"] == POOLED]) if "run" in frame else frozenset()
    return Table(name, caption, frame, columns, emphasized=pooled)


def _coefficient(method: Method) -> Any:
    def text(row: Row) -> str:
        reason = row[f"{method.lower()}_reason"]
        if reason:
            return str(reason)
        r, low, high = (row[f"{method.lower()}_{key}"] for key in ("coefficient", "low", "high"))
        signed = [write_number(value, 2, sign=True) for value in (r, low, high)]
        return signed[0] if is_missing(low) else f"{signed[0]} [{signed[1]}, {signed[2]}]"

    return text


def _p_value(method: Method) -> Any:
    return lambda row: write_p_value(row[f"{method.lower()}_p_value"])


def _weights(runs: Any, first: bool = False) -> dict[str, float]:
    values = []
    for run in runs:
        layers = run.layers
        step = layers["step"].min() if first else layers["step"].max()
        means = layers[layers["step"] == step].mean(numeric_only=True)
        means["drift"] *= 100
        means["he_change"] = 100 * (means["he_ratio"] - 1)
        values.append(means[[*_WEIGHT, "he_change", *_COSINES]])
    frame = pandas.DataFrame(values)
    if first:  # nothing was proposed or applied yet
        frame[["update_norm", "applied_norm", "rank"]] = float("nan")
    return {**frame.mean().to_dict(), **frame.std().add_suffix("_std").to_dict()}


def _costs(run: Run) -> dict[str, float]:
    """A step's times stand in each of its rows."""
    once = run.steps.drop_duplicates("step")
    seconds = {stage: float(once[f"seconds_{stage}"].sum()) for stage in STAGES}
    total, edits = sum(seconds.values()), max(run.progress.edits, 1)
    return {
        "total": total / edits,
        **{f"share_{stage}": 100 * value / (total or math.nan) for stage, value in seconds.items()},
        "peak_memory_gib": float(run.steps["peak_memory_bytes"].max()) / 2**30,
    }
