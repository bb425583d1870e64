"""How energy and quality go together: tables of correlations."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas

from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.correlation import (
    LAGS,
    Method,
    Series,
    changes,
    correlate,
    lagged,
)
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import (
    Column,
    Row,
    Table,
    is_missing,
    label,
    number,
    write_number,
    write_p_value,
)

POOLED = "all runs, pooled"
_METHODS: tuple[Method, ...] = ("Spearman", "Pearson")


def energy_and_quality(run: Run, scope: str, metric: str, layer: int | None = None) -> Series:
    """HE change from the unedited weight and a headline metric, both in percent, from step 1 on.

    From the unedited model to the first batch quality rises because anything is edited at all,
    which says nothing about the energy. Only steps count at which both were measured.

    Args:
        layer: the one that the energy is of; None takes the mean over edited layers.
    """
    scores = run.scores(scope, run.headline).set_index("step").drop(0, errors="ignore")
    ratio = run.step_values("he_ratio") if layer is None else run.layer_values(layer, "he_ratio")
    both = scores.index.intersection(ratio.index)
    return Series(100 * (ratio.loc[both] - 1), column_of(scores, metric).loc[both])


def correlation_table(setting: Setting, scope: str, of_changes: bool) -> Table:
    """HE change against quality, or the step-to-step changes of both: per run and pooled."""
    rows = []
    for metric in setting.metrics:
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
    """The HE of each layer against the overall metric, levels and changes, pooled over runs."""
    rows = []
    for layer in setting.layers:
        every = [
            energy_and_quality(run, scope, setting.overall, layer)
            for _, run in _runs(setting)
            if len(run.layer_values(layer, "he_ratio"))
        ]
        for what, series in (("levels", every), ("changes", [changes(each) for each in every])):
            named = {"layer": layer, "of": what, "metric": setting.overall}
            rows.append({**named, **_correlations(series)})
    table = _correlation_table("correlation-layers", f"HE by layer, scope {scope}", rows)
    own = [number("Layer", "layer", 0), label("Of", "of")]
    return Table(table.name, table.caption, table.rows, [*own, *table.columns[2:]])


def lag_table(setting: Setting, scope: str) -> Table:
    """Step-to-step changes of HE against those of quality so many evaluations later, pooled."""
    rows = []
    for metric in setting.metrics:
        every = [changes(energy_and_quality(run, scope, metric)) for _, run in _runs(setting)]
        for lag in LAGS:
            shifted = [lagged(series, lag) for series in every]
            rows.append({"metric": metric, "lag": lag, **_correlations(shifted)})
    table = _correlation_table("correlation-lagged", f"HE first, by lag, scope {scope}", rows)
    lags = Column("Lag", lambda row: write_number(row["lag"], 0, sign=True))
    return Table(table.name, table.caption, table.rows, [lags, *table.columns[2:]])


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


def _coefficient(method: Method) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        reason = row[f"{method.lower()}_reason"]
        if reason:
            return str(reason)
        r, low, high = (row[f"{method.lower()}_{key}"] for key in ("coefficient", "low", "high"))
        signed = [write_number(value, 2, sign=True) for value in (r, low, high)]
        return signed[0] if is_missing(low) else f"{signed[0]} [{signed[1]}, {signed[2]}]"

    return text


def _p_value(method: Method) -> Callable[[Row], str]:
    return lambda row: write_p_value(row[f"{method.lower()}_p_value"])
