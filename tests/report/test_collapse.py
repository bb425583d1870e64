from pathlib import Path
from typing import Any

import pandas
import pytest

from sphere_bench.report.collapse_table import collapse_point, collapse_table
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.finding import find_runs
from tests.report.synthetic import write_run


def row_of(folder: Path) -> "pandas.Series[Any]":
    (setting,) = settings_of(find_runs([str(folder)]).runs)
    return collapse_table(setting).rows.iloc[0]


@pytest.mark.parametrize(
    "reached, index",
    [
        ([False, False], None),
        ([False, True, True], 1),
        ([True, True], 0),
        # It recovers: the later fall counts.
        ([False, True, False, True], 3),
        ([False, True, False], None),
        ([], None),
    ],
)
def test_the_collapse_point_is_where_the_rule_holds_from_then_on(reached, index):
    assert collapse_point(reached) == index


def test_without_thresholds_a_run_is_judged_by_an_efficacy_below_half(tmp_path):
    write_run(tmp_path, efficacy=lambda step: {1: 90, 2: 20, 3: 50}.get(step, 49.0))
    row = row_of(tmp_path)
    # At 50 the threshold is not passed.
    assert (row["collapse"], row["collapse_step"]) == ("after 40 edits", 4)
    assert (row["best"], row["last"], row["rule"]) == (90, 49, "efficacy below 50 %")


def test_a_runs_own_thresholds_come_before_the_default(tmp_path):
    write_run(tmp_path, efficacy=lambda step: 60.0 - step, collapse__efficacy=56.5)
    row = row_of(tmp_path)
    assert (row["collapse_step"], row["rule"]) == (4, "efficacy below 56.5 %")


def test_a_threshold_of_perplexity_is_a_multiple_of_the_unedited_models(tmp_path):
    # The perplexity is 20 times the ratio of the energy.
    write_run(tmp_path, energy=lambda step: 1.0 + step, collapse__perplexity=4.5)
    row = row_of(tmp_path)
    assert row["collapse_step"] == 4
    assert row["rule"] == "perplexity above 4.5 times the unedited"


def test_all_thresholds_must_be_passed(tmp_path):
    write_run(
        tmp_path,
        efficacy=lambda step: 10.0,
        energy=lambda step: 1.0 + step,
        collapse__efficacy=50.0,
        collapse__perplexity=4.5,
    )
    assert row_of(tmp_path)["collapse_step"] == 4


def test_batches_that_were_left_out_neither_begin_nor_end_a_collapse(tmp_path):
    efficacies = {1: 90.0, 2: 10.0, 3: 90.0, 4: 10.0, 5: 10.0, 6: 90.0}
    write_run(tmp_path, efficacy=efficacies.get, skipped=[3, 6])
    assert row_of(tmp_path)["collapse_step"] == 2


def test_a_run_that_does_not_collapse_says_how_far_it_went(tmp_path):
    write_run(tmp_path, efficacy=lambda step: 90.0)
    row = row_of(tmp_path)
    assert row["collapse"] == "not within 60 edits" and row["collapse_step"] is None
