"""How two series of a run go together: coefficients, their uncertainty, and when there is a p.

What cannot be computed has a reason in its place.

Two series that both drift correlate whatever the cause, and the points of a run are not independent
of one another. So nothing here takes points as independent:

- An interval comes from a circular block bootstrap (Politis and Romano 1992). Its standard error is
  taken in Fisher's z, with Student's t for as few degrees of freedom as a run has blocks less one.
- A p-value comes from circular shifts of one series against the other, and there is one of
  step-to-step changes only: levels that drift do not survive shifting (on independent random walks
  of 150 steps a fifth of such tests at 5 % would reject).
- Runs that edit the same records in the same order share what these records do. They are resampled
  and shifted together, and only runs of different orders apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sphere_bench.report.intervals import holm_adjusted

Method = Literal["Spearman", "Pearson"]
Numbers = NDArray[np.float64]
Groups: TypeAlias = Sequence[Sequence[Numbers]]

FEWEST_POINTS = 4
FEWEST_RESAMPLED = 8
FEWEST_SHIFTED = 40
LAGS = (-3, -2, -1, 0, 1, 2, 3)
RESAMPLES = 2000
# Blocks of a run's levels: with more, the intervals of independent random walks exclude zero more
# often than 7 % of the time. There is no more than this in a series that drifts.
_BLOCKS_OF_LEVELS = 3
# Fisher's z of a perfect correlation is infinite.
_BELOW_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Correlation:
    """How two series go together.

    Attributes:
        points: pairs that both have.
        coefficient: in [-1, 1]; NaN where there is a ``reason``.
        low, high: 95 % interval.
        runs, negative: runs that have a coefficient of their own, and how many of these are below
            zero.
        p_value: two-sided, for no correlation of changes; NaN where there is no test.
        arrangements: how many shifts ``p_value`` is a share of.
        reason: why there is no number; empty where there is one.
    """

    points: int
    coefficient: float = math.nan
    low: float = math.nan
    high: float = math.nan
    runs: int = 0
    negative: int = 0
    p_value: float = math.nan
    arrangements: int = 0
    reason: str = ""


class Series(NamedTuple):
    """What one run contributes, in the order of its steps; NaN where a number is missing.

    Attributes:
        energy, quality: [steps]
        order: names the order in which the run's records were edited; runs of one order are not
            independent of each other.
    """

    energy: ArrayLike
    quality: ArrayLike
    order: str = ""


def correlate(
    runs: Sequence[Series], method: Method, *, of_changes: bool, seed: int = 0
) -> Correlation:
    """Correlation within runs: of one run the ordinary one, of several the pooled one.

    Every series (of ranks within its run, for Spearman) is taken from its run's mean before the
    points are pooled, so that runs that differ in their level alone correlate nothing
    (repeated-measures correlation, Bakdash and Marusich 2017, doi:10.3389/fpsyg.2017.00456). With
    one run this is scipy's ``pearsonr`` or ``spearmanr``.

    Args:
        runs: a series each; only points where both numbers are finite count, and only runs that
            have four of them: two always lie on a line.
        method: which coefficient.
        of_changes: the series are step-to-step changes, not levels: see the module's docstring.
        seed: of the resamples.
    """
    every = [_finite_pairs(series) for series in runs]
    kept = [index for index, pair in enumerate(every) if pair.shape[1] >= FEWEST_POINTS]
    pairs = [every[index] for index in kept]
    points = sum(pair.shape[1] for pair in pairs)
    if not pairs:
        most = max((pair.shape[1] for pair in every), default=0)
        return Correlation(most, reason=f"too few points ({most})")
    for index, name in enumerate(("energy", "quality")):
        if all(_is_constant(pair[index]) for pair in pairs):
            return Correlation(points, reason=f"{name} is constant")
    if all(_is_constant(energy) or _is_constant(quality) for energy, quality in pairs):
        return Correlation(points, reason="both vary in no run")
    deviations = [centred(pair, method) for pair in pairs]
    groups = _grouped(deviations, [runs[index].order for index in kept])
    own = [float(_pooled([[each]])) for each in deviations]
    low, high = block_interval(groups, of_changes, seed)
    p_value, arrangements = shift_test(groups, seed) if of_changes else (math.nan, 0)
    return Correlation(
        points,
        float(_pooled(groups)),
        float(low),
        float(high),
        runs=sum(math.isfinite(each) for each in own),
        negative=sum(each < 0 for each in own),
        p_value=float(p_value),
        arrangements=arrangements,
    )


def holm(tests: Sequence[Correlation], level: float = 0.05) -> list[float]:
    """The tests' p-values, adjusted for how many they are (Holm 1979); NaN where there is none.

    A test has none either where so few shifts exist that, with so many tests, no adjusted p-value
    could fall to ``level``.
    """
    known = [index for index, test in enumerate(tests) if math.isfinite(test.p_value)]
    adjusted = [math.nan] * len(tests)
    for index, p_value in zip(known, holm_adjusted([tests[i].p_value for i in known]), strict=True):
        if len(known) <= level * tests[index].arrangements:
            adjusted[index] = p_value
    return adjusted


def changes(series: Series) -> Series:
    """From one evaluated step to the next; NaN where one of them is not finite."""
    arrays = [np.asarray(values, dtype=float) for values in (series.energy, series.quality)]
    energy, quality = (np.diff(np.where(np.isfinite(each), each, np.nan)) for each in arrays)
    return Series(energy, quality, series.order)


def lagged(series: Series, lag: int) -> Series:
    """The energy beside the quality ``lag`` evaluated steps later: above 0, the energy is first."""
    energy, quality = (
        np.asarray(values, dtype=float) for values in (series.energy, series.quality)
    )
    kept = max(len(energy) - abs(lag), 0)
    if lag >= 0:
        return Series(energy[:kept], quality[len(quality) - kept :], series.order)
    return Series(energy[len(energy) - kept :], quality[:kept], series.order)


def _finite_pairs(series: Series) -> Numbers:
    """[2, n]"""
    pair = np.asarray([series.energy, series.quality], dtype=float)
    return pair[:, np.isfinite(pair).all(axis=0)]


def _is_constant(values: Numbers) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def centred(pair: Numbers, method: Method) -> Numbers:
    """Both series of a run [2, ..., n], or their ranks for Spearman, as deviations from the mean.

    What lies between the first and the last axis are runs that know nothing of each other: the
    functions below do the same for each of them.
    """
    values = stats.rankdata(pair, axis=-1) if method == "Spearman" else pair
    found: Numbers = values - values.mean(axis=-1, keepdims=True)
    return found


def block_interval(groups: Groups, of_changes: bool, seed: int = 0) -> tuple[Numbers, Numbers]:
    """95 % intervals of the pooled coefficient; NaN where there is too little to resample.

    Blocks are as long as the square root of a run's length for changes, and a third of it for
    levels.

    Args:
        groups: the runs of each order, :func:`centred`.
        of_changes, seed: see :func:`correlate`.
    """
    coefficient = _pooled(groups)
    lengths = [pair.shape[-1] for group in groups for pair in group]
    if sum(lengths) < FEWEST_RESAMPLED:
        missing = np.full_like(coefficient, math.nan)
        return missing, missing
    generator = np.random.default_rng(seed)
    products = sum(each for group in groups for each in _resampled(group, of_changes, generator))
    # A resample in which a series is constant has no coefficient. [..., resamples]
    scores = np.ma.masked_invalid(np.arctanh(_coefficients(products) * _BELOW_ONE))
    enough = 2 * scores.count(axis=-1) >= RESAMPLES
    error = np.where(enough, np.ma.filled(scores.std(axis=-1), math.nan), math.nan)
    blocks = min(lengths) / _block_length(min(lengths), of_changes)
    freedom = max(blocks - 1, 1)
    # As the variance of few numbers, that of few blocks falls short by one of them.
    reach = stats.t.ppf(0.975, freedom) * error * math.sqrt((freedom + 1) / freedom)
    centre = np.arctanh(coefficient * _BELOW_ONE)
    return np.tanh(centre - reach), np.tanh(centre + reach)


def shift_test(groups: Groups, seed: int = 0) -> tuple[Numbers, int]:
    """The share of circular shifts that correlate at least as strongly, and of how many shifts.

    All shifts of a single order are taken, of several orders a sample of their combinations. The
    share is NaN, of none, where a run has fewer than forty points.

    Args:
        groups: the runs of each order, :func:`centred`.
        seed: of the sample.
    """
    if min(pair.shape[-1] for group in groups for pair in group) < FEWEST_SHIFTED:
        return np.full_like(_pooled(groups), math.nan), 0
    # Shifting changes no mean and no spread: the sum of products says all.
    products = [_shifted_products(group) for group in groups]
    generator = np.random.default_rng(seed)
    if len(products) == 1:
        strengths = np.abs(products[0])
    else:
        places = [generator.integers(each.shape[-1], size=RESAMPLES) for each in products]
        for each in places:
            each[0] = 0  # what was observed
        strengths = np.abs(sum(each[..., at] for each, at in zip(products, places, strict=True)))
    as_strong = strengths >= strengths[..., :1] * (1 - 1e-9)
    return as_strong.mean(axis=-1), strengths.shape[-1]


def _grouped(pairs: Sequence[Numbers], orders: Sequence[str]) -> Groups:
    """The runs, those of one order together."""
    groups: dict[str, list[Numbers]] = {}
    for pair, order in zip(pairs, orders, strict=True):
        groups.setdefault(order, []).append(pair)
    return list(groups.values())


def _pooled(groups: Groups) -> Numbers:
    """[...] the coefficient over all runs; NaN where one of the series is constant in all."""
    return _coefficients(sum(_products(*pair).sum(axis=-1) for group in groups for pair in group))


def _products(x: Numbers, y: Numbers) -> Numbers:
    return np.stack([x * y, x * x, y * y])


def _coefficients(products: Any) -> Numbers:
    """From the sums of x y, x x and y y [3, ...]."""
    xy, xx, yy = products
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = np.clip(xy / np.sqrt(xx * yy), -1, 1)
    return found


def _block_length(length: int, of_changes: bool) -> int:
    return round(length**0.5) if of_changes else -(-length // _BLOCKS_OF_LEVELS)


def _resampled(
    group: Sequence[Numbers], of_changes: bool, generator: np.random.Generator
) -> Iterator[Numbers]:
    """For each run [3, ..., resamples]: sums of x y, x x and y y about the resample's own means."""
    longest = max(pair.shape[-1] for pair in group)
    blocks = -(-longest // _block_length(longest, of_changes))
    starts = generator.random((RESAMPLES, blocks))
    for x, y in group:
        length = x.shape[-1]
        size = _block_length(length, of_changes)
        # A resample is made of blocks: their sums are taken once, however often they are drawn.
        terms = np.stack([x, y, *_products(x, y)])
        around = np.concatenate([terms, terms[..., :size]], axis=-1).cumsum(axis=-1)
        block_sums = around[..., size:] - around[..., :length]  # each from the second point of [n]
        sum_x, sum_y, *products = block_sums[..., (starts * length).astype(int)].sum(axis=-1)
        yield np.stack(products) - _products(sum_x, sum_y) / (blocks * size)


def _shifted_products(group: Sequence[Numbers]) -> Numbers:
    """[..., n] the sum of x y over the runs with y shifted by 0, 1, ... n - 1 steps in each."""
    longest = max(pair.shape[-1] for pair in group)
    found = []
    for x, y in group:
        length = x.shape[-1]
        spectrum = np.fft.rfft(x).conj() * np.fft.rfft(y)
        found.append(np.fft.irfft(spectrum, n=length)[..., np.arange(longest) % length])
    total: Numbers = np.sum(found, axis=0)
    return total
