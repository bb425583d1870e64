"""What SPHERE gains: which runs are paired, at which step, and how certain it is."""

from pathlib import Path

import pandas
import pytest
from scipy import stats

from sphere_bench.report.comparing import settings_of
from sphere_bench.report.finding import find_runs
from sphere_bench.report.gain_tables import gains_table
from sphere_bench.report.tables import Table
from tests.report.synthetic import write_run


def gains(*folders: Path, measure: str = "success") -> Table | None:
    (setting,) = settings_of(find_runs([str(folder) for folder in folders]).runs)
    return gains_table(setting, "seen", measure)


def rows(*folders: Path, measure: str = "success") -> pandas.DataFrame:
    table = gains(*folders, measure=measure)
    assert table is not None
    return table.rows.set_index("editor")


def cell(table: Table | None, header: str, row: int = 0) -> str:
    assert table is not None
    return table.cells[row][[column.header for column in table.columns].index(header)]


def write_pairs(root: Path, gained: list[float], **options: object) -> None:
    """For each seed a run without SPHERE at some level and one with it that gains so much."""
    for seed, points in enumerate(gained):
        level = 20.0 * seed
        write_run(root, seed=seed, efficacy=lambda step, level=level: level, **options)
        write_run(
            root,
            seed=seed,
            sphere="paper",
            efficacy=lambda step, level=level, points=points: level + points,
            **options,
        )


def test_gains_are_paired_differences_with_students_interval(tmp_path):
    write_pairs(tmp_path, [3.0, 5.0, 10.0])
    row = rows(tmp_path).loc["memit"]
    # Levels 20 points apart leave the interval as it is: differences are within a seed.
    expected = stats.ttest_1samp([3, 5, 10], 0).confidence_interval(0.95)
    assert (row["pairs"], row["efficacy_points"]) == (3, 6)
    assert row["efficacy_low"] == pytest.approx(expected.low, rel=1e-12)
    assert row["efficacy_high"] == pytest.approx(expected.high, rel=1e-12)
    assert cell(gains(tmp_path), "Efficacy") == "+6.0 [−3.0, +15.0]"
    half = rows(tmp_path, measure="accuracy").loc["memit"]
    assert half["efficacy_points"] == 3


def test_one_seed_has_no_interval_and_the_table_says_so(tmp_path):
    write_pairs(tmp_path, [4.0])
    table = gains(tmp_path)
    assert table is not None and table.caption.endswith("one seed has no interval")
    assert table.rows[["efficacy_low", "efficacy_high"]].isna().all(axis=None)
    assert cell(table, "Efficacy") == "+4.0"


def test_a_seed_without_its_partner_is_in_no_pair(tmp_path):
    write_pairs(tmp_path, [3.0, 5.0])
    write_run(tmp_path, sphere="paper", seed=7, efficacy=lambda step: 99.0)
    assert rows(tmp_path).loc["memit", ["pairs", "efficacy_points"]].tolist() == [2, 4]


def test_a_run_that_was_made_twice_counts_once(tmp_path):
    write_pairs(tmp_path / "a", [3.0, 5.0])
    write_pairs(tmp_path / "b", [3.0, 5.0])
    assert rows(tmp_path / "a", tmp_path / "b").loc["memit", "pairs"] == 2


def test_the_posters_average_is_in_points_and_nothing_here_is_averaged_over_editors(tmp_path):
    for editor in ("memit", "alphaedit"):
        write_pairs(tmp_path, [4.0], editor=editor)
    found = rows(tmp_path)
    assert found.index.tolist() == ["alphaedit", "memit", "the poster’s average"]
    poster = found.loc["the poster’s average"]
    metrics = ("efficacy", "generalization", "specificity")
    assert [poster[f"{metric}_points"] for metric in metrics] == [43.27, 36.2, 20.96]
    assert poster.filter(like="low").isna().all() and poster["score_points"] != 4
    assert not [column for column in found if "percent" in column]
    assert cell(gains(tmp_path), "Efficacy", row=2) == "+43.27"


def test_the_poster_is_left_out_where_it_says_nothing_about_the_metrics(tmp_path):
    write_pairs(tmp_path, [4.0], kinds={"asked": "recall"}, metrics=("recall", "balance"))
    assert rows(tmp_path).index.tolist() == ["memit"]


def test_runs_that_did_not_get_to_their_end_are_compared_where_both_are_and_that_is_said(tmp_path):
    write_run(tmp_path, steps=8, efficacy=lambda step: 50.0)
    state = {"made": 3, "state": "interrupted"}
    write_run(tmp_path, steps=8, sphere="paper", efficacy=lambda step: 50.0 + step, **state)
    row = rows(tmp_path).loc["memit"]
    assert (row["edits"], row["efficacy_points"]) == (30, 3)
    assert cell(gains(tmp_path), "Edits") == "30 of 80"


def test_pairs_that_have_ended_do_not_wait_for_those_that_have_not(tmp_path):
    write_pairs(tmp_path, [3.0, 5.0], steps=8)
    write_run(tmp_path, seed=2, steps=8, efficacy=lambda step: 0.0)
    unfinished = {"made": 2, "state": "interrupted"}
    write_run(tmp_path, seed=2, steps=8, sphere="paper", efficacy=lambda step: 90.0, **unfinished)
    row = rows(tmp_path).loc["memit"]
    assert (row["pairs"], row["edits"], row["efficacy_points"]) == (2, 80, 4)
    assert cell(gains(tmp_path), "Seeds") == "2 of 3"


def test_a_run_that_collapsed_is_not_left_out(tmp_path):
    write_pairs(tmp_path, [3.0], steps=8)
    early = {"made": 2, "state": "collapsed"}
    write_run(tmp_path, seed=1, steps=8, efficacy=lambda step: 10.0, **early)
    write_run(tmp_path, seed=1, steps=8, sphere="paper", efficacy=lambda step: 90.0)
    row = rows(tmp_path).loc["memit"]
    # Both pairs, where both have scores: leaving out the worse one would flatter the editor.
    assert (row["pairs"], row["edits"], row["efficacy_points"]) == (2, 20, 41.5)
    assert cell(gains(tmp_path), "Edits") == "20 of 80"


def test_runs_that_differ_in_more_than_sphere_show_no_gain(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, sphere="paper", editor__method__ridge=7)
    assert gains(tmp_path) is None
