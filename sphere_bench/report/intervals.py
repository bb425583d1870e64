"""The uncertainty of a mean over runs, and of several at once."""

import math
from collections.abc import Sequence

from scipy import stats


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the values that are not NaN, and its 95 % interval by Student's t.

    Args:
        values: one for each run, or for each pair of runs: they are the sample, whatever number of
            steps or records is behind each.

    Returns:
        Mean, low and high: NaN for the mean of nothing, and for the interval of fewer than two.
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan, math.nan
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return mean, math.nan, math.nan
    squares = math.fsum((value - mean) ** 2 for value in known)
    error = math.sqrt(squares / (len(known) - 1) / len(known))
    reach = float(stats.t.ppf(0.975, len(known) - 1)) * error
    return mean, mean - reach, mean + reach


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted for how many they are (Holm 1979), in the order given."""
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
