"""The numbers of the tables, from synthetic runs."""

from pathlib import Path

import pandas
import pytest

from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.correlation_tables import (
    each_runs_table,
    energy_and_quality,
    lag_table,
    layer_correlation_table,
    pooled_table,
)
from sphere_bench.report.cost import time_table
from sphere_bench.report.finding import find_runs
from sphere_bench.report.gain_tables import gains_table
from sphere_bench.report.score_tables import (
    beside_scores_table,
    headline_table,
    measured_earlier,
)
from sphere_bench.report.tables import Table
from sphere_bench.report.weight_tables import _deviations, cosine_table, weight_table
from tests.report.synthetic import KINDS, MEASURES, METRICS, falling, write_run


def setting_of(folder: Path) -> Setting:
    (setting,) = settings_of(find_runs([str(folder)]).runs)
    return setting


def headlines(setting: Setting, scope: str = "seen") -> Table:
    return headline_table(setting, scope, setting.measures)


@pytest.fixture(scope="module")
def multirun(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Two editors x SPHERE off and on x two seeds."""
    root = tmp_path_factory.mktemp("grid")
    for editor in ("memit", "alphaedit"):
        for seed in (0, 1):
            write_run(root, editor=editor, seed=seed, efficacy=lambda step: 60.0 - 5 * step)
            write_run(
                root,
                editor=editor,
                sphere="paper",
                seed=seed,
                efficacy=lambda step, seed=seed: 75.0 - 5 * step + seed,
            )
    return setting_of(root)


@pytest.mark.parametrize("scope", ["seen", "batch", "first"])
def test_the_unedited_model_leads_the_headlines(multirun, scope):
    table = headlines(multirun, scope)
    rows = table.rows
    assert rows["editor"].tolist() == ["unedited model", *["alphaedit"] * 2, *["memit"] * 2]
    unedited = rows.iloc[0]
    assert (unedited["edits"], unedited["efficacy_success"], unedited["he_change"]) == (0, 5, 0)
    assert table.emphasized == {0}


def test_means_and_deviations_are_over_seeds(multirun):
    row = headlines(multirun).rows.iloc[2]
    # 75 - 5 * 6 and one more with the other seed.
    assert (row["runs"], row["edits"]) == (2, 60)
    assert row["efficacy_success"] == 45.5
    assert row["efficacy_success_std"] == pytest.approx(0.5**0.5)
    assert row["efficacy_accuracy"] == 45.5 / 2


def test_success_and_accuracy_never_share_a_column(multirun):
    assert headlines(multirun).groups == [
        ("", 4),
        ("Success, %", 4),
        ("Accuracy, %", 4),
        ("", 1),
    ]


def test_correlations_are_per_run_and_pooled(multirun):
    each = each_runs_table(multirun, "seen", of_changes=False).rows
    assert each.loc[each["metric"] == "efficacy", "points"].tolist() == [6] * 8
    table = pooled_table(multirun, "seen", of_changes=False)
    pooled = table.rows[table.rows["metric"] == "efficacy"].iloc[0]
    # Energy rises by a tenth of a percent a step while efficacy falls.
    assert pooled["points"] == 48
    assert pooled["spearman_coefficient"] < -0.9
    assert pooled["spearman_high"] < -0.8
    assert "8 of 8" in table.cells[0]


def test_only_a_shuffled_stream_has_an_order_of_its_own_for_each_seed(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "file", seed=seed)
        write_run(tmp_path / "shuffled", seed=seed, edits__shuffle=True)
    orders = {
        name: [
            energy_and_quality(run, "seen", "score").order
            for run in setting_of(tmp_path / name).runs
        ]
        for name in ("file", "shuffled")
    }
    assert len(set(orders["file"])) == 1 and orders["shuffled"] == ["0", "1"]


def test_each_layer_is_correlated_on_its_own(multirun):
    rows = layer_correlation_table(multirun, "seen").rows
    assert list(zip(rows["layer"], rows["of"], strict=True)) == [
        (1, "levels"),
        (1, "changes"),
        (2, "levels"),
        (2, "changes"),
    ]
    assert (rows.loc[rows["of"] == "levels", "pearson_coefficient"] < -0.9).all()


def test_a_lag_costs_a_point_of_each_run(multirun):
    rows = lag_table(multirun, "seen").rows
    points = rows[rows["metric"] == "score"].set_index("lag")["points"]
    # Five changes in each of eight runs, and four or more of them are needed.
    assert points.loc[[-1, 0, 1]].tolist() == [32, 40, 32]
    assert rows.loc[rows["lag"] == 3, "spearman_reason"].eq("too few points (2)").all()


def test_a_constant_score_has_no_correlation(tmp_path):
    write_run(tmp_path, efficacy=lambda step: 70.0)
    for table in (pooled_table, each_runs_table):
        found = table(setting_of(tmp_path), "seen", of_changes=False)
        assert set(found.rows["spearman_reason"]) == {"quality is constant"}
        assert found.rows[["spearman_coefficient", "pearson_low"]].isna().all(axis=None)
        assert "quality is constant" in found.cells[0]


def test_weights_are_those_of_the_last_step(multirun):
    table = weight_table(multirun)
    assert table is not None
    rows = table.rows
    assert rows["drift"].tolist() == pytest.approx([0, 60, 60, 60, 60])
    assert rows["rank"].isna().tolist() == [True] + [False] * 4
    assert rows["he_change"].iloc[1:].to_list() == pytest.approx([0.6] * 4, abs=0.05)


def test_a_steps_times_count_once_although_each_scope_has_them(multirun):
    row = time_table(multirun).rows.iloc[0]
    # Half a second a stage and step, in seven steps, for 60 edits.
    assert row["total"] == pytest.approx(6 * 0.5 * 7 / 60)
    assert row["share_values"] == pytest.approx(100 / 6)
    assert row["peak_memory_gib"] == 1


def test_a_fourth_metric_and_a_third_measure_are_in_every_table(tmp_path):
    declared = {
        "kinds": {**KINDS, "portable": "portability"},
        "metrics": (*METRICS[:3], "portability", "score"),
        "measures": {**MEASURES, "generation": 0.25},
    }
    for sphere, level in (("off", 40.0), ("paper", 60.0)):
        write_run(tmp_path, sphere=sphere, efficacy=lambda step, level=level: level, **declared)
    setting = setting_of(tmp_path)
    assert setting.overall == "score"
    table = headlines(setting)
    assert table.groups[1:-1] == [("Success, %", 5), ("Accuracy, %", 5), ("Generation, %", 5)]
    assert table.rows.iloc[1]["portability_generation"] == 10
    gains = gains_table(setting, "seen", "generation")
    assert gains is not None and gains.rows["portability_points"].iloc[0] == 5
    for found in (pooled_table(setting, "seen", of_changes=True), lag_table(setting, "seen")):
        assert set(found.rows["metric"]) == {*METRICS, "portability"}


def test_the_overall_metric_is_the_one_that_no_kind_of_prompt_makes(tmp_path):
    write_run(tmp_path, kinds={"asked": "recall"}, metrics=("recall", "balance"))
    setting = setting_of(tmp_path)
    assert setting.overall == "balance"
    rows = layer_correlation_table(setting, "seen").rows
    assert set(rows["metric"]) == {"balance"}


def test_a_measure_with_turns_of_its_own_is_read_at_its_last_one(tmp_path):
    measures = {**MEASURES, "generation": 0.25}
    write_run(tmp_path, steps=9, made=5, measures=measures, every={"generation": 3})
    setting = setting_of(tmp_path)
    scores = setting.runs[0].scores("seen", "generation")
    assert scores["step"].tolist() == [0, 3, 5]
    row = headlines(setting).rows.iloc[1]
    assert (row["edits"], row["edits_generation"]) == (50, 50)
    assert measured_earlier(setting, "seen") == []


def test_numbers_that_are_older_than_their_row_are_named(tmp_path):
    folder = write_run(tmp_path, measures={**MEASURES, "generation": 0.25})
    for part in (folder / "steps").iterdir():
        frame = pandas.read_parquet(part)
        frame.loc[frame["step"] > 4, "efficacy_generation"] = None
        for metric in METRICS:
            frame.loc[frame["step"] > 4, f"{metric}_generation"] = None
        frame.to_parquet(part, index=False)
    setting = setting_of(tmp_path)
    row = headlines(setting).rows.iloc[1]
    assert (row["edits"], row["edits_generation"]) == (60, 40)
    assert row["efficacy_generation"] == falling(4) / 4
    assert measured_earlier(setting, "seen") == [
        f"{folder.name}: generation is that after 40 edits"
    ]


def test_energy_and_quality_are_paired_where_both_were_measured(tmp_path):
    folder = write_run(tmp_path, steps=12)
    for table in ("steps", "layers"):
        for part in (folder / table).iterdir():
            frame = pandas.read_parquet(part)
            frame.loc[frame["step"] % 2 > 0, "he_ratio"] = None
            frame.to_parquet(part, index=False)
    for of_changes, points in ((False, 6), (True, 5)):
        rows = pooled_table(setting_of(tmp_path), "seen", of_changes).rows
        assert set(rows["points"]) == {points}


def test_weights_that_were_not_measured_leave_the_norms_of_updates(tmp_path):
    write_run(tmp_path, energy=None)
    setting = setting_of(tmp_path)
    table = weight_table(setting)
    assert table is not None and cosine_table(table) is None
    assert table.rows["applied_norm"].iloc[1] == 0.5
    assert table.rows["drift"].isna().all()
    assert "HE change, %" not in [column.header for column in headlines(setting).columns]


def test_shares_of_the_time_are_those_of_the_mean_time(tmp_path):
    write_run(tmp_path, stages=("values", "keys"))
    slow = write_run(tmp_path, seed=1, stages=("values", "keys"))
    for part in (slow / "steps").iterdir():
        frame = pandas.read_parquet(part)
        frame.assign(seconds_values=3.5).to_parquet(part, index=False)
    row = time_table(setting_of(tmp_path)).rows.iloc[0]
    # Half a second of one, and of four: a share of one fifth, and no mean of a half and an eighth.
    assert row["share_keys"] == pytest.approx(20)
    assert row["share_values"] == pytest.approx(80)


def test_stages_are_those_that_the_run_declares(tmp_path):
    write_run(tmp_path, stages=("values", "generation"))
    table = time_table(setting_of(tmp_path))
    assert [column.header for column in table.columns[3:-1]] == ["values", "generation"]
    assert table.rows["share_generation"].tolist() == [50]


def test_time_is_of_the_steps_that_can_be_read(tmp_path):
    folder = write_run(tmp_path, steps=9)
    (folder / "steps" / "part-00004.parquet").unlink()
    row = time_table(setting_of(tmp_path)).rows.iloc[0]
    # Six of the ten steps are there: the unedited model's and those of 50 edits.
    assert row["total"] == pytest.approx(6 * 0.5 * 6 / 50)


def test_what_is_beside_the_scores_is_that_of_the_last_step(tmp_path):
    write_run(tmp_path, beside={"neighbourhood_kl": 0.3}, steps=3)
    write_run(tmp_path, beside={"neighbourhood_kl": 0.5}, steps=3, seed=1)
    table = beside_scores_table(setting_of(tmp_path), "seen")
    assert table is not None
    rows = table.rows.set_index("editor")["neighbourhood_kl"]
    assert rows.to_dict() == {"unedited model": 0.0, "memit": pytest.approx(0.4, abs=1e-12)}


def test_without_numbers_beside_the_scores_there_is_no_table(multirun):
    assert beside_scores_table(multirun, "seen") is None


def test_equal_numbers_have_no_deviation():
    frame = pandas.DataFrame({"equal": [0.1, 0.1, 0.1], "other": [1.0, 2.0, 3.0]})
    assert frame["equal"].std() > 0
    assert _deviations(frame).to_dict() == {"equal": 0.0, "other": 1.0}
    assert _deviations(frame[:1]).isna().all()
