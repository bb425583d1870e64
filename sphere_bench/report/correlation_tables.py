"""How energy and quality go together: tables of correlations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas

from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.correlation import (
    LAGS,
    Method,
    Series,
    changes,
    correlate,
    holm,
    lagged,
)
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import (
    NONE,
    Column,
    Row,
    Table,
    label,
    number,
    with_interval,
    write_number,
    write_p_value,
)

_METHODS: tuple[Method, ...] = ("Spearman", "Pearson")
_METRIC = Column("Metric", lambda row: row["metric"].capitalize(), numeric=False)


class _Question(NamedTuple):
    """What a row of a table is about: its first cells, and the series of the runs."""

    cells: Mapping[str, Any]
    runs: Sequence[Series]
    of_changes: bool


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
    # The seed decides the order of a shuffled stream.
    order = str(run.config["seed"]) if run.config.get("edits.shuffle") else "of the file"
    return Series(100 * (ratio.loc[both] - 1), column_of(scores, metric).loc[both], order)


def pooled_table(setting: Setting, scope: str, of_changes: bool) -> Table:
    """HE change against quality over all runs, or the step-to-step changes of both."""
    questions = [
        _Question(
            {"metric": metric},
            [_series(run, scope, metric, of_changes) for _, run in _runs(setting)],
            of_changes,
        )
        for metric in setting.metrics
    ]
    name = "correlation-changes-pooled" if of_changes else "correlation-levels-pooled"
    return _table(name, _caption(setting, scope, of_changes), [_METRIC], questions)


def each_runs_table(setting: Setting, scope: str, of_changes: bool) -> Table:
    """The same of each run; runs, not their steps, are the sample, so there is no p."""
    questions = [
        _Question(
            {"run": arm.label, "seed": str(run.config["seed"]), "metric": metric},
            [_series(run, scope, metric, of_changes)],
            of_changes,
        )
        for metric in setting.metrics
        for arm, run in _runs(setting)
    ]
    name = "correlation-changes" if of_changes else "correlation-levels"
    caption = f"{_caption(setting, scope, of_changes)}: each run"
    first = [label("Run", "run"), label("Seed", "seed"), _METRIC]
    return _table(name, caption, first, questions, over_runs=False)


def layer_correlation_table(setting: Setting, scope: str) -> Table:
    """The HE of each layer against the overall metric, levels and changes, over all runs."""
    questions = []
    for layer in setting.layers:
        levels = [
            energy_and_quality(run, scope, setting.overall, layer)
            for _, run in _runs(setting)
            if len(run.layer_values(layer, "he_ratio"))
        ]
        cells = {"layer": layer, "metric": setting.overall}
        questions += [
            _Question({**cells, "of": "levels"}, levels, False),
            _Question({**cells, "of": "changes"}, [changes(each) for each in levels], True),
        ]
    first = [number("Layer", "layer", 0), label("Of", "of"), _METRIC]
    return _table("correlation-layers", f"HE by layer, scope {scope}", first, questions)


def lag_table(setting: Setting, scope: str) -> Table:
    """Step-to-step changes of HE against those of quality so many evaluations later."""
    questions = []
    for metric in setting.metrics:
        each = [_series(run, scope, metric, True) for _, run in _runs(setting)]
        for lag in LAGS:
            shifted = [lagged(series, lag) for series in each]
            questions.append(_Question({"metric": metric, "lag": lag}, shifted, True))
    first = [Column("Lag", lambda row: write_number(row["lag"], 0, sign=True)), _METRIC]
    return _table("correlation-lagged", f"HE first, by lag, scope {scope}", first, questions)


def _runs(setting: Setting) -> Iterator[tuple[Arm, Run]]:
    for arm in setting.arms:
        for run in arm.runs:
            yield arm, run


def _series(run: Run, scope: str, metric: str, of_changes: bool) -> Series:
    levels = energy_and_quality(run, scope, metric)
    return changes(levels) if of_changes else levels


def _caption(setting: Setting, scope: str, of_changes: bool) -> str:
    what = "Step-to-step changes" if of_changes else "Levels"
    return f"{what}: HE against {setting.headline}, scope {scope}"


def _table(
    name: str,
    caption: str,
    first: Sequence[Column],
    questions: Sequence[_Question],
    *,
    over_runs: bool = True,
) -> Table:
    """A row for each question; ``over_runs`` adds the count over runs and p, Holm over the rows."""
    rows: list[dict[str, Any]] = [dict(question.cells) for question in questions]
    columns = [*first, number("Points", "points", 0)]
    for method in _METHODS:
        key = method.lower()
        tests = [correlate(each.runs, method, of_changes=each.of_changes) for each in questions]
        for row, test, p_value in zip(rows, tests, holm(tests), strict=True):
            row["points"] = test.points
            for part in ("coefficient", "low", "high", "reason"):
                row[f"{key}_{part}"] = getattr(test, part)
            if over_runs:
                row |= {f"{key}_runs": test.runs, f"{key}_negative": test.negative}
                row[f"{key}_p_holm"] = p_value
        columns.append(Column("r [95 % interval]", _coefficient(key), method))
        if over_runs:
            columns.append(Column("Runs below 0", _count(key), method))
            if any(each.of_changes for each in questions):
                columns.append(Column("p, Holm", _p_value(key), method))
    return Table(name, caption, pandas.DataFrame(rows), columns)


def _coefficient(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        reason = row[f"{key}_reason"]
        if reason:
            return str(reason)
        found, low, high = (row[f"{key}_{part}"] for part in ("coefficient", "low", "high"))
        return with_interval(found, low, high, digits=2)

    return text


def _count(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        runs = row[f"{key}_runs"]
        return f"{row[f'{key}_negative']} of {runs}" if runs else NONE

    return text


def _p_value(key: str) -> Callable[[Row], str]:
    return lambda row: write_p_value(row[f"{key}_p_holm"])
