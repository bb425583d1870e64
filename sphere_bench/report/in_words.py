"""Which editor keeps what, in a few sentences."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sphere_bench.report.ability_tables import ability_change
from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.intervals import mean_with_interval
from sphere_bench.report.reading import Run
from sphere_bench.report.score_tables import latest
from sphere_bench.report.tables import is_missing, with_interval, write_number


class _Kept(NamedTuple):
    """What an arm keeps of something.

    Attributes:
        arm: the arm.
        values: of its runs, by seed.
        mean, low, high: over runs.
    """

    arm: Arm
    values: dict[int, float]
    mean: float
    low: float
    high: float

    def written(self, unit: str, sign: bool) -> str:
        mean, low, high = (write_number(each, 1, sign) for each in (self.mean, self.low, self.high))
        return f"{mean}{unit}" if is_missing(self.low) else f"{mean}{unit} [{low}, {high}]"


class _Best(NamedTuple):
    """The arm that keeps most of something, and how: ``80.0 % [78.1, 81.9], ahead of ...``."""

    arm: str
    how: str


def in_words(setting: Setting) -> str:
    """By each measure which arm has the highest scores, and which one keeps general ability.

    Beside the best one stands the next, with the paired difference over seeds: it is called ahead
    only where that leaves out zero. Where no arm has two runs, the last sentence says that there
    are no intervals. Runs of different length are not compared. Empty without scores.
    """
    if not (setting.scopes and setting.metrics):
        return ""
    edits = sorted({int(run.progress.edits) for run in setting.runs})
    if len(edits) > 1:
        return f"Not compared in words: the runs have made {edits[0]} to {edits[-1]} edits."
    scope = setting.scopes[0]
    sentences = [
        words for measure in setting.measures if (words := _scores(setting, scope, measure))
    ]
    if best := _best(setting, ability_change, " points", sign=True):
        how = f"{best.arm} ({best.how})"
        best_or_not = "best with" if len(setting.arms) > 1 else "with"
        sentences.append(
            f"General ability, its mean change over the tasks that tell something: {best_or_not} "
            f"{how}."
        )
    if not sentences:
        return ""
    return " ".join([f"After {edits[0]} edits, scope {scope}.", *sentences, _certainty(setting)])


def _scores(setting: Setting, scope: str, measure: str) -> str:
    """One sentence for all metrics of a measure, arm by arm."""
    by_arm: dict[str, list[str]] = {}
    for metric in setting.metrics_of(measure):

        def value(run: Run, name: str = f"{metric}_{measure}") -> float:
            return latest(run, scope, [measure]).get(name, math.nan)

        if best := _best(setting, value, " %"):
            by_arm.setdefault(best.arm, []).append(f"{metric} ({best.how})")
    is_highest = "is highest in" if len(setting.arms) > 1 else "has"
    parts = [f"{arm} {is_highest} {', '.join(kept)}" for arm, kept in by_arm.items()]
    return f"By {measure}, {'; '.join(parts)}." if parts else ""


def _best(
    setting: Setting, value: Callable[[Run], float], unit: str, sign: bool = False
) -> _Best | None:
    """None where no run has a value."""
    kept = [_kept(arm, value) for arm in setting.arms]
    ordered = sorted(
        (each for each in kept if not math.isnan(each.mean)), key=lambda each: -each.mean
    )
    if not ordered:
        return None
    first, *others = ordered
    beside = _beside(first, others[0], sign) if others else ""
    return _Best(first.arm.label, first.written(unit, sign) + beside)


def _beside(best: _Kept, second: _Kept, sign: bool) -> str:
    seeds = sorted(best.values.keys() & second.values.keys())
    points, low, high = mean_with_interval([best.values[s] - second.values[s] for s in seeds])
    if best.mean == second.mean:
        return f", tied with {second.arm.label}"
    if is_missing(low):
        return f", before {second.arm.label} at {write_number(second.mean, 1, sign)}"
    difference = f"{with_interval(points, low, high)} points"
    if low > 0:
        return f", ahead of {second.arm.label} by {difference}"
    return f", not told apart from {second.arm.label}: {difference}"


def _kept(arm: Arm, value: Callable[[Run], float]) -> _Kept:
    values = {int(run.config["seed"]): value(run) for run in arm.runs}
    values = {seed: each for seed, each in values.items() if not math.isnan(each)}
    return _Kept(arm, values, *mean_with_interval(list(values.values())))


def _certainty(setting: Setting) -> str:
    if all(len(_seeds(arm.runs)) < 2 for arm in setting.arms):
        chance = ", and chance may have made the order" if len(setting.arms) > 1 else ""
        return f"One seed has no interval{chance}."
    return (
        "Intervals are 95 % over runs with different seeds; differences are paired by seed and "
        "not corrected for their number."
    )


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {int(run.config["seed"]) for run in runs}
