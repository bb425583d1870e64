import math

import numpy as np
import pytest
from scipy import stats

from sphere_bench.report.correlation import (
    Series,
    changes,
    correlate,
    gain,
    lagged,
)


def noisy_line(points: int, seed: int = 0, slope: float = -1.0) -> Series:
    generator = np.random.default_rng(seed)
    energy = generator.normal(size=points)
    return Series(energy, slope * energy + generator.normal(size=points))


@pytest.mark.parametrize("points", [8, 9, 40, 300])
@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_one_runs_correlations_are_scipys(points, rounded):
    series = noisy_line(points)
    if rounded:
        series = Series(*(np.round(values) for values in series))
    for method, reference in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        found, expected = correlate([series], method), reference(*series)
        assert found.points == points
        assert found.coefficient == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("points", [4, 5, 7])
def test_the_p_value_of_few_ranks_is_that_of_all_their_orders(points):
    series = noisy_line(points, seed=points)
    exact = stats.permutation_test(
        (series.energy,),
        lambda order: stats.spearmanr(order, series.quality).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    assert correlate([series], "Spearman").p_value == pytest.approx(exact.pvalue)


def test_a_perfect_order_of_few_points_is_not_significant():
    # Of the 4! orders one rises and one falls throughout: 2 / 24.
    assert correlate([Series([1, 2, 3, 4], [9, 7, 2, 1])], "Spearman").p_value == 2 / 24
    two_runs = [Series(np.arange(4.0), -np.arange(4.0) + offset) for offset in (0, 100)]
    assert correlate(two_runs, "Spearman").p_value == 2 / 24**2


@pytest.mark.parametrize("method", ["Pearson", "Spearman"])
def test_the_interval_is_a_percentile_bootstrap(method):
    series = noisy_line(60)
    reference = stats.pearsonr if method == "Pearson" else stats.spearmanr
    expected = stats.bootstrap(
        series,
        lambda x, y: reference(x, y).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = correlate([series], method)
    assert found.low == pytest.approx(expected.low, abs=0.04)
    assert found.high == pytest.approx(expected.high, abs=0.04)
    assert found.low < found.coefficient < found.high


def test_pooled_correlations_are_within_runs():
    # Both runs fall, but the second lies above and to the right: taken together they rise.
    first = Series(np.arange(10.0), -np.arange(10.0))
    second = Series(np.arange(10.0) + 100, -np.arange(10.0) + 100)
    together = stats.pearsonr(
        np.concatenate([first.energy, second.energy]),
        np.concatenate([first.quality, second.quality]),
    )
    assert together.statistic > 0.9
    assert correlate([first, second], "Pearson").coefficient == pytest.approx(-1)
    assert correlate([first, second], "Spearman").coefficient == pytest.approx(-1)


def test_a_pooled_pearson_is_a_regression_with_a_level_for_each_run():
    runs = [noisy_line(12, seed) for seed in range(3)]
    found = correlate(runs, "Pearson")
    # The same by least squares: y = slope x + level of the run, 36 - 3 - 1 degrees of freedom.
    x, y = (np.concatenate([run[axis] for run in runs]) for axis in (0, 1))
    levels = np.repeat(np.eye(3), 12, axis=0)
    design = np.column_stack([x, levels])
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = residual[0] / 32 * np.linalg.inv(design.T @ design)[0, 0]
    expected = 2 * stats.t.sf(abs(solution[0]) / math.sqrt(variance), 32)
    assert found.points == 36
    assert found.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "series, reason",
    [
        ([], "too few points (0)"),
        ([Series([1, 2, 3], [3, 2, 1])], "too few points (3)"),
        ([Series([1, 2, 3, 4], [1, 2, 3, math.nan])], "too few points (3)"),
        # Two points always lie on a line, in however many runs.
        ([Series([1, 2], [2, 1])] * 5, "too few points (2)"),
        ([Series([1, 2, 3, 4], [7, 7, 7, 7])], "quality is constant"),
        ([Series([0, 0, 0, 0], [1, 2, 3, 4])], "energy is constant"),
        ([Series([1, 2, 3, math.inf, 5], [7] * 5)], "quality is constant"),
        # Each varies in a run in which the other does not.
        ([Series([1, 2, 3, 4], [5] * 4), Series([5] * 4, [1, 2, 3, 4])], "both vary in no run"),
    ],
)
@pytest.mark.parametrize("method", ["Pearson", "Spearman"])
def test_what_cannot_be_computed_has_a_reason_and_no_number(series, reason, method):
    found = correlate(series, method)
    assert found.reason.startswith(reason)
    assert all(map(math.isnan, (found.coefficient, found.p_value, found.low, found.high)))


def test_fewer_than_eight_points_have_no_interval():
    found = correlate([noisy_line(7)], "Pearson")
    assert math.isfinite(found.coefficient) and math.isnan(found.low)


def test_changes_go_from_step_to_step():
    series = changes(Series([1, 4, 2], [10, 10, 30]))
    assert (list(series.energy), list(series.quality)) == ([3, -2], [0, 20])


def test_at_a_positive_lag_the_energy_is_first():
    series = Series([1, 2, 3, 4], [10, 20, 30, 40])
    assert [list(values) for values in lagged(series, 1)] == [[1, 2, 3], [20, 30, 40]]
    assert [list(values) for values in lagged(series, -1)] == [[2, 3, 4], [10, 20, 30]]
    assert [list(values) for values in lagged(series, 0)] == [list(values) for values in series]
    assert [list(values) for values in lagged(series, 9)] == [[], []]


def test_a_fall_that_follows_a_rise_shows_at_its_lag():
    energy = np.random.default_rng(0).normal(size=50)
    quality = np.concatenate([[0, 0], -energy[:-2]])
    by_lag = [
        correlate([lagged(Series(energy, quality), lag)], "Pearson").coefficient for lag in range(4)
    ]
    assert by_lag[2] == pytest.approx(-1)
    assert np.abs(by_lag)[[0, 1, 3]].max() < 0.5


def test_a_gain_is_in_points_and_in_percent_of_what_there_was():
    assert gain(40, 50) == (10, 25)
    points, percent = gain(0, 50)
    assert points == 50 and math.isnan(percent)
