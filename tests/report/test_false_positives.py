"""How often two independent series look related: every p and every interval of the report.

The seeds are fixed. A rate is measured on so many pairs of series that a true 5 % lies three
standard errors or more below 7 %.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sphere_bench.report import correlation
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.correlation import (
    Correlation,
    Method,
    block_interval,
    centred,
    holm,
    shift_test,
)
from sphere_bench.report.correlation_tables import (
    each_runs_table,
    lag_table,
    layer_correlation_table,
    pooled_table,
)
from sphere_bench.report.finding import find_runs
from sphere_bench.report.intervals import mean_with_interval
from tests.report.synthetic import write_run

MOST = 0.07
PAIRS = 2000  # a standard error of 0.5 %
KINDS = ("walk", "autoregressive", "noise")
METHODS: tuple[Method, ...] = ("Spearman", "Pearson")
Numbers = NDArray[np.float64]


def independent(kind: str, *shape: int, seed: int = 0) -> Numbers:
    """Series along the last axis, none of which knows of another."""
    generator = np.random.default_rng([seed, KINDS.index(kind)])
    if kind == "noise":
        return generator.normal(size=shape)
    coefficient = {"walk": 1.0, "autoregressive": 0.8}[kind]
    # A walk begins anywhere; the other one so long before that its beginning is forgotten.
    early = 0 if kind == "walk" else 50
    shocks = generator.normal(size=(*shape[:-1], shape[-1] + early))
    for step in range(1, shocks.shape[-1]):
        shocks[..., step] += coefficient * shocks[..., step - 1]
    return shocks[..., early:]


def rate(p_values: Numbers) -> float:
    assert np.isfinite(p_values).all()
    return float((p_values <= 0.05).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [41, 150])
def test_p_of_step_to_step_changes(kind: str, method: Method, steps: int) -> None:
    pairs = np.diff(independent(kind, 2, PAIRS, steps))
    p_values, arrangements = shift_test([[centred(pairs, method)]])
    assert arrangements == steps - 1
    assert rate(p_values) <= MOST
    # A test that never rejects would pass, too.
    assert rate(p_values) >= 0.03


@pytest.mark.parametrize("method", METHODS)
def test_why_levels_have_no_p(method: Method) -> None:
    p_values, _ = shift_test([[centred(independent("walk", 2, PAIRS, 150), method)]])
    assert rate(p_values) > 0.15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orders", ["aaaa", "aabb", "abcd"])
def test_p_over_runs_that_share_what_their_records_do(kind: str, orders: str) -> None:
    own = np.diff(independent(kind, 4, 2, PAIRS, 150))
    shared = np.diff(independent(kind, 4, 2, PAIRS, 150, seed=1))
    groups: dict[str, list[Numbers]] = {}
    for run, order in enumerate(orders):
        pairs = own[run] + 2 * shared["abcd".index(order)]
        groups.setdefault(order, []).append(centred(pairs, "Pearson"))
    p_values, _ = shift_test(list(groups.values()))
    assert rate(p_values) <= MOST


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_adjusted_p_of_a_table_of_five_rows(kind: str) -> None:
    pairs = np.diff(independent(kind, 2, PAIRS, 5, 150))
    p_values, arrangements = shift_test([[centred(pairs, "Spearman")]])
    smallest = [
        min(holm([Correlation(0, p_value=p, arrangements=arrangements) for p in row]))
        for row in p_values
    ]
    assert rate(np.array(smallest)) <= MOST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [15, 150])
@pytest.mark.parametrize("of_changes", [False, True])
def test_intervals_that_leave_out_zero(
    kind: str, method: Method, steps: int, of_changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "RESAMPLES", 200)
    pairs = independent(kind, 2, PAIRS // 2, steps)
    changed = np.diff(pairs) if of_changes else pairs
    low, high = block_interval([[centred(changed, method)]], of_changes)
    assert np.isfinite(low).all()
    assert ((low > 0) | (high < 0)).mean() <= MOST


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_gains_that_leave_out_zero(seeds: int) -> None:
    found = [mean_with_interval(list(each)) for each in independent("noise", PAIRS, seeds)]
    assert np.mean([low > 0 or high < 0 for _, low, high in found]) <= MOST


@pytest.mark.parametrize(("steps", "shown"), [(15, False), (150, True)])
def test_the_ps_that_the_tables_show(tmp_path: Path, steps: int, shown: bool) -> None:
    """Of changes over all runs, where a run has enough of them; never of levels or of one run."""
    energy, quality = independent("walk", 2, steps + 1)
    write_run(
        tmp_path,
        steps=steps,
        efficacy=lambda step: 50 + quality[step],
        energy=lambda step: 1 + 0.001 * energy[step],
        geometry=False,
        cases=False,
    )
    (setting,) = settings_of(find_runs([str(tmp_path)]).runs)
    keys = ["spearman_p_holm", "pearson_p_holm"]
    pooled = pooled_table(setting, "seen", of_changes=True)
    by_layer = layer_correlation_table(setting, "seen")
    of_levels = by_layer.rows["of"] == "levels"
    for ps in (pooled.rows[keys], by_layer.rows.loc[~of_levels, keys]):
        assert ps.notna().to_numpy().tolist() == [[shown, shown]] * len(ps)
    assert by_layer.rows.loc[of_levels, keys].isna().all(axis=None)
    # 28 rows are too many for 150 shifts.
    assert lag_table(setting, "seen").rows[keys].isna().all(axis=None)
    assert pooled_table(setting, "seen", of_changes=False).rows[keys].isna().all(axis=None)
    for table in (
        pooled_table(setting, "seen", of_changes=False),
        *(each_runs_table(setting, "seen", of_changes) for of_changes in (False, True)),
    ):
        assert "p, Holm" not in [column.header for column in table.columns]
    assert "p, Holm" in [column.header for column in pooled.columns]
