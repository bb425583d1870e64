"""The report's statistics, as pure functions of numbers.

What cannot be computed has a reason in its place.

Percentages are in percent throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Method = Literal["Spearman", "Pearson"]
Numbers = NDArray[np.float64]

FEWEST_POINTS = 4
FEWEST_RESAMPLED = 8
LAGS = (-3, -2, -1, 0, 1, 2, 3)
RESAMPLES = 2000
# Up to here all orders are tried for Spearman's p-value; beyond, Student's t is close enough.
_EXACT_UP_TO = 7


@dataclass(frozen=True)
class Correlation:
    """How two series go together.

    Attributes:
        points: pairs that both have.
        coefficient: in [-1, 1]; NaN where there is a ``reason``.
        p_value: two-sided, for no correlation.
        low, high: 95 % bootstrap interval.
        reason: why there is no number; empty where there is one.
    """

    points: int
    coefficient: float = math.nan
    p_value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


class Series(NamedTuple):
    """What one run contributes, in the order of its steps; NaN where a number is missing."""

    energy: ArrayLike
    quality: ArrayLike


def correlate(runs: Sequence[Series], method: Method, seed: int = 0) -> Correlation:
    """Correlation within runs: of one run the ordinary one, of several the pooled one.

    Every series (of ranks within its run, for Spearman) is taken from its run's mean before the
    points are pooled, so that runs that differ in their level alone correlate nothing; each run
    costs a degree of freedom (repeated-measures correlation, Bakdash and Marusich 2017,
    doi:10.3389/fpsyg.2017.00456). With one run this is scipy's ``pearsonr`` or ``spearmanr``. The
    p-value of a Spearman coefficient is exact up to seven points of one run, and beyond never below
    what a perfect order has.

    The interval is the 2.5th and 97.5th percentile over resamples of the points of each run, from
    eight points on.

    Args:
        runs: a series each; only points where both numbers are finite count, and only runs that
            have four of them: two always lie on a line.
        method: which coefficient.
        seed: of the resamples.
    """
    every = [_finite_pairs(series) for series in runs]
    pairs = [pair for pair in every if pair.shape[1] >= FEWEST_POINTS]
    points = sum(pair.shape[1] for pair in pairs)
    if not pairs:
        most = max((pair.shape[1] for pair in every), default=0)
        return Correlation(most, reason=f"too few points ({most})")
    for index, name in enumerate(Series._fields):
        if all(_is_constant(pair[index]) for pair in pairs):
            return Correlation(points, reason=f"{name} is constant")
    if all(_is_constant(energy) or _is_constant(quality) for energy, quality in pairs):
        return Correlation(points, reason="both vary in no run")
    coefficient = float(_pooled([pair[:, None] for pair in pairs], method)[0])
    if method == "Spearman" and len(pairs) == 1 and points <= _EXACT_UP_TO:
        p_value = _exact_p_value(pairs[0])
    else:
        p_value = _t_p_value(coefficient, points - len(pairs) - 1)
        if method == "Spearman":
            orders = math.prod(math.factorial(pair.shape[1]) for pair in pairs)
            p_value = max(p_value, 2 / orders)
    if points < FEWEST_RESAMPLED:
        return Correlation(points, coefficient, p_value)
    generator = np.random.default_rng(seed)
    resampled = [
        pair[:, generator.integers(pair.shape[1], size=(RESAMPLES, pair.shape[1]))]
        for pair in pairs
    ]
    spread = _pooled(resampled, method)
    low, high = np.percentile(spread[np.isfinite(spread)], [2.5, 97.5])
    return Correlation(points, coefficient, p_value, float(low), float(high))


def changes(series: Series) -> Series:
    """From one evaluated step to the next; NaN where one of them is not finite."""
    arrays = (np.asarray(values, dtype=float) for values in series)
    return Series(*(np.diff(np.where(np.isfinite(each), each, np.nan)) for each in arrays))


def lagged(series: Series, lag: int) -> Series:
    """The energy beside the quality ``lag`` evaluated steps later: above 0, the energy is first."""
    energy, quality = (np.asarray(values, dtype=float) for values in series)
    kept = max(len(energy) - abs(lag), 0)
    if lag >= 0:
        return Series(energy[:kept], quality[len(quality) - kept :])
    return Series(energy[len(energy) - kept :], quality[:kept])


def gain(without: float, with_sphere: float) -> tuple[float, float]:
    """SPHERE's gain in points and in percent of what there was; NaN percent of nothing."""
    points = with_sphere - without
    return points, 100 * points / without if without else math.nan


def _finite_pairs(series: Series) -> Numbers:
    """[2, n]"""
    pair = np.asarray(series, dtype=float)
    return pair[:, np.isfinite(pair).all(axis=0)]


def _is_constant(values: Numbers) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _pooled(pairs: Sequence[Numbers], method: Method) -> Numbers:
    """[r] coefficients of r samples; each run is [2, r, n] with its own n."""
    deviations = []
    for pair in pairs:
        values = stats.rankdata(pair, axis=-1) if method == "Spearman" else pair
        deviations.append(values - values.mean(axis=-1, keepdims=True))
    x, y = np.concatenate(deviations, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
        coefficients: Numbers = np.clip((x * y).sum(axis=-1) / scale, -1, 1)
    return coefficients


def _t_p_value(coefficient: float, freedom: int) -> float:
    if abs(coefficient) == 1:
        return 0.0
    t = coefficient * math.sqrt(freedom / (1 - coefficient**2))
    return float(2 * stats.t.sf(abs(t), freedom))


def _exact_p_value(pair: Numbers) -> float:
    """Share of all orders of one series that correlate at least as strongly."""
    x, y = (ranks - ranks.mean() for ranks in stats.rankdata(pair, axis=-1))
    sums = np.abs(x[np.array(list(permutations(range(len(x)))))] @ y)
    return float((sums >= abs(x @ y) - 1e-9).mean())
