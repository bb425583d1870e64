"""Which of the signals warns of a collapse, how early, and how often for nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas

from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.report.collapse_table import collapse_step
from sphere_bench.report.comparing import Setting
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import NONE, Column, Row, Table, label

#: So many other runs that did not collapse fix a threshold.
LEAST_OTHERS = 2
MEANING = (
    "A signal is the largest over edited layers after each step; of the energy it is the size of "
    "its change. The threshold for a run is fixed on the other runs of this part: it is the "
    f"highest that the signal reached in those that did not collapse, at least {LEAST_OTHERS}. The "
    "warning is the first step above it. Its lead is the number of steps from there to the "
    "collapse point; a warning at the collapse point or behind it is none. A run that did not "
    "collapse and passed its threshold gives a false alarm."
)


@dataclass(frozen=True)
class Signal:
    """A column of ``layers`` that may warn.

    Attributes:
        name: of the column.
        title: in the table.
        centre: what it is measured from; ``None`` takes it as it is.
    """

    name: str
    title: str
    centre: float | None = None

    def of(self, run: Run) -> "pandas.Series[float]":
        """The signal by step, the unedited model apart."""
        layers = run.layers
        if "layer" not in layers:
            return pandas.Series(dtype=float)
        values = column_of(layers, self.name)
        if self.centre is not None:
            values = (values - self.centre).abs()
        largest = values.groupby(layers["step"]).max()
        return largest[largest.index > 0].dropna()


SIGNALS = (
    Signal("he_ratio", "Change of the hyperspherical energy", centre=1.0),
    Signal("drift", "Drift"),
    Signal("norm_growth", "Growth of the norm"),
    Signal("subspace_overlap", "Overlap with the principal directions"),
)


@dataclass(frozen=True)
class _Observed:
    """One run: where it collapsed, if it did, and its signal."""

    collapse: int | None
    signal: "pandas.Series[float]"

    @property
    def before(self) -> "pandas.Series[float]":
        """The signal before the collapse; of a run without one all of it."""
        if self.collapse is None:
            return self.signal
        return self.signal[self.signal.index < self.collapse]


def early_warning_table(setting: Setting, rule: Collapse | None = None) -> Table | None:
    """Each signal's leads and false alarms; None where no run has any signal.

    Args:
        rule: what a collapse is; ``None`` takes each run's own.
    """
    collapses = {run.name: collapse_step(run, setting, rule) for run in setting.runs}
    rows = [
        _row(signal, observed)
        for signal in SIGNALS
        if (observed := _observed(setting.runs, signal, collapses))
    ]
    if not rows:
        return None
    columns = [
        label("Signal", "title"),
        Column("Threshold", _range("threshold", 3)),
        Column("Warned before the collapse", _of("warned", "collapsed")),
        Column("Steps ahead, median", _range("lead", 0, middle=True)),
        Column("False alarms", _of("false_alarms", "judged")),
    ]
    return Table("early-warning", "Early warning of collapse", pandas.DataFrame(rows), columns)


def too_few_runs(setting: Setting) -> str | None:
    """Why the table says little or nothing; ``None`` where it has what it needs."""
    steps = [collapse_step(run, setting) for run in setting.runs]
    collapsed = sum(step is not None for step in steps)
    stood = len(steps) - collapsed
    if collapsed and stood > LEAST_OTHERS:
        return None
    need = []
    if not collapsed:
        need.append("none collapsed, so there is nothing to warn of")
    if stood < LEAST_OTHERS:
        need.append(f"{stood} did not collapse, of which a threshold needs {LEAST_OTHERS}")
    elif stood == LEAST_OTHERS:
        need.append(
            f"{stood} did not collapse: enough for the thresholds of those that did, and one too "
            "few for false alarms"
        )
    return f"Too few runs: of {len(steps)}, {'; '.join(need)}."


def _observed(
    runs: Sequence[Run], signal: Signal, collapses: Mapping[str, int | None]
) -> list[_Observed]:
    found = [_Observed(collapses[run.name], signal.of(run)) for run in runs]
    return [each for each in found if len(each.signal)]


def _row(signal: Signal, observed: Sequence[_Observed]) -> dict[str, Any]:
    thresholds, leads = [], []
    counts = {"collapsed": 0, "warned": 0, "judged": 0, "false_alarms": 0}
    for run, threshold in _thresholds(observed):
        thresholds.append(threshold)
        above = run.before.index[run.before > threshold]
        if run.collapse is None:
            counts["judged"] += 1
            counts["false_alarms"] += bool(len(above))
            continue
        counts["collapsed"] += 1
        if len(above):
            counts["warned"] += 1
            leads.append(run.collapse - int(above[0]))
    return {
        "signal": signal.name,
        "title": signal.title,
        **counts,
        **_summary("threshold", thresholds),
        **_summary("lead", leads),
    }


def _thresholds(observed: Sequence[_Observed]) -> Iterator[tuple[_Observed, float]]:
    """Each run with a threshold, which is fixed on others."""
    for run in observed:
        others = [
            float(other.signal.max())
            for other in observed
            if other is not run and other.collapse is None
        ]
        if len(others) >= LEAST_OTHERS:
            yield run, max(others)


def _summary(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys([name, f"{name}_low", f"{name}_high"], math.nan)
    return {name: median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def _of(part: str, whole: str) -> Any:
    def text(row: Row) -> str:
        return f"{row[part]:.0f} of {row[whole]:.0f}" if row[whole] else NONE

    return text


def _range(key: str, digits: int, middle: bool = False) -> Any:
    def text(row: Row) -> str:
        if math.isnan(row[key]):
            return NONE
        low, high = (f"{row[f'{key}_{end}']:.{digits}f}" for end in ("low", "high"))
        span = low if low == high else f"{low} to {high}"
        return f"{row[key]:g} ({span})" if middle and low != high else span

    return text
