import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sphere_bench.report.correlation import (
    RESAMPLES,
    Correlation,
    Series,
    changes,
    correlate,
    holm,
    lagged,
)


def noisy_line(points: int, seed: int = 0, slope: float = -1.0, order: str = "") -> Series:
    generator = np.random.default_rng(seed)
    energy = generator.normal(size=points)
    return Series(energy, slope * energy + generator.normal(size=points), order)


@pytest.mark.parametrize("points", [8, 9, 40, 300])
@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("of_changes", [False, True])
def test_one_runs_correlations_are_scipys(points, rounded, of_changes):
    series = noisy_line(points)
    if rounded:
        series = Series(np.round(series.energy), np.round(series.quality))
    for method, reference in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        found = correlate([series], method, of_changes=of_changes)
        expected = reference(series.energy, series.quality).statistic
        assert found.points == points
        assert found.coefficient == pytest.approx(expected, abs=1e-12)
        assert (found.runs, found.negative) == (1, int(expected < 0))


def test_the_interval_is_that_of_resampled_blocks():
    """The same by drawing whole blocks of points, without sums taken beforehand."""
    series = noisy_line(36)
    pair = np.stack([series.energy, series.quality])
    generator = np.random.default_rng(1)
    scores = []
    for _ in range(10 * RESAMPLES):
        starts = generator.integers(36, size=6)
        places = (starts[:, None] + np.arange(6)).ravel() % 36
        scores.append(np.arctanh(np.corrcoef(pair[:, places])[0, 1]))
    # Six blocks: five degrees of freedom, and a variance that falls short by a sixth.
    expected = stats.t.ppf(0.975, 5) * np.std(scores) * math.sqrt(6 / 5)
    found = correlate([series], "Pearson", of_changes=True)
    low, high = math.atanh(found.low), math.atanh(found.high)
    assert (low + high) / 2 == pytest.approx(np.arctanh(np.corrcoef(pair)[0, 1]), rel=1e-6)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.03)


def test_levels_are_held_for_less_certain_than_changes():
    series = noisy_line(100)
    levels, steps = (correlate([series], "Pearson", of_changes=each) for each in (False, True))
    assert levels.low < steps.low and levels.high > steps.high


def test_the_p_value_is_the_share_of_shifts_that_correlate_as_strongly():
    series = noisy_line(60, slope=-0.2)
    shifted = [np.roll(series.quality, shift) for shift in range(60)]
    for method, reference in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        strengths = np.abs([reference(series.energy, each).statistic for each in shifted])
        found = correlate([series], method, of_changes=True)
        assert found.p_value == np.mean(strengths >= strengths[0] - 1e-12)
        assert found.arrangements == 60


def test_runs_of_one_order_are_shifted_together():
    runs = [noisy_line(60, seed, slope=-0.1) for seed in range(3)]
    found = correlate(runs, "Pearson", of_changes=True)
    deviations = [[values - values.mean() for values in run[:2]] for run in runs]
    strengths = np.abs([sum(x @ np.roll(y, shift) for x, y in deviations) for shift in range(60)])
    assert found.arrangements == 60
    assert found.p_value == np.mean(strengths >= strengths[0] - 1e-9)


def test_runs_of_different_orders_are_shifted_apart():
    runs = [noisy_line(60, seed, slope=-0.6, order=str(seed)) for seed in range(3)]
    found = correlate(runs, "Pearson", of_changes=True)
    assert found.arrangements == RESAMPLES
    # Nothing but what was observed is as strong, if the runs need not move together.
    assert found.p_value == 1 / RESAMPLES


@pytest.mark.parametrize(
    "runs, of_changes",
    [
        ([noisy_line(100)], False),
        ([noisy_line(39)], True),
        ([noisy_line(100), noisy_line(39, 1)], True),
    ],
    ids=["levels", "a short run", "a short run among others"],
)
def test_where_no_test_holds_there_is_no_p(runs, of_changes):
    found = correlate(runs, "Spearman", of_changes=of_changes)
    assert math.isfinite(found.coefficient)
    assert math.isnan(found.p_value)


def test_pooled_correlations_are_within_runs():
    # Both runs fall, but the second lies above and to the right: taken together they rise.
    first = Series(np.arange(10.0), -np.arange(10.0))
    second = Series(np.arange(10.0) + 100, -np.arange(10.0) + 100)
    together = stats.pearsonr(
        np.concatenate([first.energy, second.energy]),
        np.concatenate([first.quality, second.quality]),
    )
    assert together.statistic > 0.9
    for method in ("Pearson", "Spearman"):
        found = correlate([first, second], method, of_changes=False)
        assert found.coefficient == pytest.approx(-1)
        assert (found.runs, found.negative) == (2, 2)


def test_a_pooled_pearson_is_a_regression_with_a_level_for_each_run():
    runs = [noisy_line(12, seed) for seed in range(3)]
    found = correlate(runs, "Pearson", of_changes=False)
    # The same by least squares, y = slope x + level of the run: what share the slope explains.
    x, y = (np.concatenate([run[axis] for run in runs]) for axis in (0, 1))
    levels = np.repeat(np.eye(3), 12, axis=0)
    _, with_slope, *_ = np.linalg.lstsq(np.column_stack([x, levels]), y, rcond=None)
    _, without, *_ = np.linalg.lstsq(levels, y, rcond=None)
    assert found.points == 36
    assert found.coefficient == pytest.approx(-math.sqrt(1 - with_slope[0] / without[0]), rel=1e-9)


def test_runs_are_counted_by_their_own_sign():
    runs = [noisy_line(30, seed, slope) for seed, slope in enumerate((-3, -3, -3, 3))]
    runs.append(Series(np.arange(30.0), np.zeros(30)))
    found = correlate(runs, "Pearson", of_changes=False)
    assert (found.runs, found.negative) == (4, 3)


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
    found = correlate(series, method, of_changes=False)
    assert found.reason.startswith(reason)
    assert all(map(math.isnan, (found.coefficient, found.p_value, found.low, found.high)))


def test_fewer_than_eight_points_have_no_interval():
    found = correlate([noisy_line(7)], "Pearson", of_changes=False)
    assert math.isfinite(found.coefficient) and math.isnan(found.low)


def test_a_perfect_correlation_has_an_interval_and_the_smallest_p():
    line = Series(np.arange(50.0) ** 2, -(np.arange(50.0) ** 2))
    found = correlate([line], "Pearson", of_changes=True)
    assert found.coefficient == pytest.approx(-1)
    assert -1 <= found.low <= found.high < -0.999
    assert found.p_value == 1 / 50


def test_ps_are_adjusted_by_holm():
    # 0.01 and 0.02 are multiplied by 4 and 3, 0.04 by 2; what follows is never smaller.
    tests = [Correlation(0, p_value=p, arrangements=9999) for p in (0.04, 0.01, 0.02, 0.041)]
    assert holm(tests) == pytest.approx([0.08, 0.04, 0.06, 0.08])
    with_none = [tests[0], Correlation(0), *tests[1:]]
    assert holm(with_none)[0] == pytest.approx(0.08) and math.isnan(holm(with_none)[1])
    assert holm([Correlation(0, p_value=0.9, arrangements=9999)] * 2) == [1.0, 1.0]


def test_a_p_that_so_few_shifts_cannot_bring_below_five_percent_is_withheld():
    test = Correlation(0, p_value=1 / 99, arrangements=99)
    assert all(map(math.isfinite, holm([test] * 4)))
    assert all(map(math.isnan, holm([test] * 5)))
    assert all(map(math.isfinite, holm([replace(test, arrangements=100)] * 5)))


def test_changes_go_from_step_to_step():
    series = changes(Series([1, 4, 2], [10, 10, 30], "a"))
    assert (list(series.energy), list(series.quality), series.order) == ([3, -2], [0, 20], "a")


def test_at_a_positive_lag_the_energy_is_first():
    series = Series([1, 2, 3, 4], [10, 20, 30, 40], "a")

    def both(lag: int) -> list[list[float]]:
        found = lagged(series, lag)
        assert found.order == "a"
        return [list(found.energy), list(found.quality)]

    assert both(1) == [[1, 2, 3], [20, 30, 40]]
    assert both(-1) == [[2, 3, 4], [10, 20, 30]]
    assert both(0) == [[1, 2, 3, 4], [10, 20, 30, 40]]
    assert both(9) == [[], []]


def test_a_fall_that_follows_a_rise_shows_at_its_lag():
    energy = np.random.default_rng(0).normal(size=50)
    quality = np.concatenate([[0, 0], -energy[:-2]])
    by_lag = [
        correlate([lagged(Series(energy, quality), lag)], "Pearson", of_changes=True).coefficient
        for lag in range(4)
    ]
    assert by_lag[2] == pytest.approx(-1)
    assert np.abs(by_lag)[[0, 1, 3]].max() < 0.5
