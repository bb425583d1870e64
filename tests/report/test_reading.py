import shutil
from pathlib import Path

import pandas
import pytest

from sphere_bench.errors import SphereBenchError
from sphere_bench.report.comparing import WITH_SPHERE, WITHOUT_SPHERE, differences, settings_of
from sphere_bench.report.finding import find_runs
from sphere_bench.report.gain_tables import gains_table
from sphere_bench.report.reading import Run
from sphere_bench.run_folder.folder import RunFolder
from tests.report.synthetic import write_run


def runs_of(places: list[str]) -> list[Run]:
    return find_runs(places).runs


@pytest.fixture
def multirun(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path, sphere="off", seed=seed)
        write_run(tmp_path, sphere="paper", seed=seed)
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "only-just-started").mkdir()
    return tmp_path


def test_runs_are_found_by_folder_by_pattern_and_in_a_folder_of_runs_each_once(multirun):
    names = [run.name for run in runs_of([str(multirun)])]
    assert names == ["memit-off-seed0", "memit-off-seed1", "memit-paper-seed0", "memit-paper-seed1"]
    assert [run.name for run in runs_of([f"{multirun}/*-off-*"])] == names[:2]
    twice = [str(multirun / names[0]), f"{multirun}/../{multirun.name}/{names[0]}", str(multirun)]
    assert [run.name for run in runs_of(twice)] == names


@pytest.mark.parametrize(
    "place, message",
    [
        ("nowhere", "nowhere: no such folder"),
        ("no-match-*", "no such folder"),
        ("only-just-started", "only-just-started is no run and holds none"),
        ("multirun.yaml", "multirun.yaml is no run and holds none"),
        ("empty", "empty has recorded no step yet"),
        ("no-config", "config.yaml is missing or damaged"),
        ("bad-config", "config.yaml is missing or damaged"),
        ("bad-progress", "progress.json is damaged"),
        ("bad-steps", "bad-steps has no steps that can be read"),
    ],
)
def test_places_without_any_readable_run_are_an_error(multirun, place, message):
    for broken in ("no-config", "bad-config", "bad-progress", "bad-steps"):
        shutil.copytree(multirun / "memit-off-seed0", multirun / broken)
    (multirun / "no-config" / "config.yaml").unlink()
    (multirun / "bad-config" / "config.yaml").write_text("a: [")
    (multirun / "bad-progress" / "progress.json").write_text("{}")
    for part in (multirun / "bad-steps" / "steps").iterdir():
        part.write_bytes(part.read_bytes()[:100])
    (multirun / "empty").mkdir()
    (multirun / "empty" / "config.yaml").touch()
    with pytest.raises(SphereBenchError, match=message):
        runs_of([str(multirun / place)])


def test_what_is_no_run_is_passed_over_with_a_word(multirun):
    (multirun / "not-begun").mkdir()
    (multirun / "not-begun" / "config.yaml").touch()
    shutil.copytree(multirun / "memit-off-seed0", multirun / ".hidden")
    shutil.copytree(multirun / "memit-off-seed0", multirun / "damaged")
    (multirun / "damaged" / "config.yaml").write_text("a: [")
    every = [str(path) for path in multirun.iterdir()]
    for places in ([str(multirun)], every, [f"{multirun}/*", f"{multirun}/.h*"]):
        found = find_runs(places)
        assert len(found.runs) == 4
        assert sorted(Path(reason.split()[0]).name for reason in found.passed_over) == [
            ".hidden",
            "multirun.yaml",
            "not-begun",
            "only-just-started",
        ]
        assert found.damaged == [f"{multirun}/damaged/config.yaml is missing or damaged"]


def test_a_run_without_a_process_is_interrupted(tmp_path):
    folder = write_run(tmp_path, steps=9, made=2, state="running")
    (run,) = runs_of([str(folder)])
    assert run.state == "interrupted: 20 of 90 edits"
    with RunFolder(folder).locked():
        (run,) = runs_of([str(folder)])
    assert run.state == "running: 20 of 90 edits"


@pytest.mark.parametrize("table", ["steps", "layers", "cases", "geometry"])
def test_a_damaged_part_and_a_missing_one_are_left_out_and_named(tmp_path, table):
    folder = write_run(tmp_path, steps=9)
    (whole,) = runs_of([str(folder)])
    assert whole.incidents == []
    part = folder / table / "part-00004.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    (run,) = runs_of([str(folder)])
    assert set(run.table(table)["step"]) == {0, 1, 2, 3, 8, 9}
    kept = whole.table(table)["step"].isin(run.table(table)["step"])
    lost = len(whole.table(table)) - len(run.table(table))
    gap = f"{table} has no rows of steps 4 to 7"
    if table == "geometry":  # nothing says when it has its turn
        gap = f"geometry lacks {lost} of {len(whole.geometry)} rows"
    assert run.incidents == [f"{table}/part-00004.parquet is damaged and left out", gap]
    part.unlink()
    (run,) = runs_of([str(folder)])
    assert run.incidents == [gap]
    assert len(run.table(table)) == kept.sum()


def test_the_version_before_is_read_by_the_columns_that_it_had(tmp_path):
    write_run(tmp_path / "earlier", earlier_version=True)
    write_run(tmp_path / "now")
    (earlier,), (now,) = (runs_of([str(tmp_path / name)]) for name in ("earlier", "now"))
    assert "columns" not in earlier.provenance
    assert earlier.incidents == []
    assert earlier.declared.measures == now.declared.measures == ["success", "accuracy"]
    assert earlier.declared.stages == now.declared.stages
    assert earlier.headline == now.headline == "success"
    for measure in earlier.declared.measures:
        pandas.testing.assert_frame_equal(
            earlier.scores("seen", measure), now.scores("seen", measure)
        )


@pytest.mark.parametrize("headline", ["success", "accuracy"])
def test_the_headline_of_the_version_before_follows_from_the_values(tmp_path, headline):
    (run,) = runs_of([str(write_run(tmp_path, headline=headline, earlier_version=True))])
    assert run.headline == headline


def test_without_provenance_the_usual_columns_are_read(tmp_path):
    folder = write_run(tmp_path)
    (folder / "provenance.json").write_text("{")
    (run,) = runs_of([str(folder)])
    assert run.declared.measures == ["success", "accuracy"]
    assert run.incidents == ["provenance.json is missing or damaged: the usual columns are read"]


def test_names_that_cannot_be_part_of_a_file_name_are_not_read(tmp_path):
    (run,) = runs_of([str(write_run(tmp_path, measures={"success": 1.0, "../x": 0.5}))])
    assert run.declared.measures == ["success"]


def test_a_config_file_that_was_edited_by_hand_is_named_and_does_not_count(multirun):
    folder = multirun / "memit-paper-seed0"
    file = folder / "config.yaml"
    content = file.read_text()
    assert content.count("alpha: 0.8") == 1
    file.write_text(content.replace("alpha: 0.8", "alpha: 0.2").replace("  eta: 0.5\n", ""))
    (run,) = runs_of([str(folder)])
    assert run.incidents == [
        "config.yaml was edited by hand after the run had recorded its configuration, which counts "
        "here (sphere.alpha 0.8 -> 0.2; sphere.eta 0.5 -> None)"
    ]
    assert (run.config["sphere.alpha"], run.config["sphere.eta"]) == (0.8, 0.5)
    # The arm is still one of two seeds.
    (setting,) = settings_of(runs_of([str(multirun)]))
    assert [len(arm.runs) for arm in setting.arms] == [2, 2]


def test_without_a_recorded_configuration_the_file_is_believed(tmp_path):
    folder = write_run(tmp_path, earlier_version=True)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("alpha: 0.8", "alpha: 0.2"))
    (run,) = runs_of([str(folder)])
    assert run.incidents == [] and run.config["sphere.alpha"] == 0.2


def test_runs_that_differ_in_their_seed_alone_are_one_arm(multirun):
    (setting,) = settings_of(runs_of([str(multirun)]))
    assert (setting.title, setting.headline) == ("toy, facts", "success")
    assert [(arm.variant, len(arm.runs)) for arm in setting.arms] == [
        (WITHOUT_SPHERE, 2),
        (WITH_SPHERE, 2),
    ]
    assert setting.scopes == ["seen", "batch", "first"]


def test_models_datasets_and_headlines_are_settings_of_their_own(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, model__name="other")
    write_run(tmp_path / "c", seed=2, headline="accuracy")
    settings = settings_of(runs_of([f"{tmp_path}/*"]))
    assert [(each.model, each.headline) for each in settings] == [
        ("other", "success"),
        ("toy", "accuracy"),
        ("toy", "success"),
    ]
    assert [each.measures for each in settings][1] == ["accuracy"]


def test_differences_leave_out_what_follows_from_a_choice(multirun):
    write_run(multirun, editor="alphaedit")
    table = differences(runs_of([str(multirun)]))
    # editor.method.ridge follows from the editor, sphere.enabled from sphere.
    assert list(table.columns) == ["editor.name", "sphere.name", "seed"]


def test_another_value_under_the_same_choices_is_a_difference_and_names_its_arm(multirun):
    write_run(multirun / "weak", sphere="paper", sphere__alpha=0.1)
    runs = runs_of([str(multirun), str(multirun / "weak")])
    assert "sphere.alpha" in differences(runs)
    (setting,) = settings_of(runs)
    assert setting.variants == [
        WITHOUT_SPHERE,
        f"{WITH_SPHERE} (alpha=0.1)",
        f"{WITH_SPHERE} (alpha=0.8)",
    ]


def test_probes_that_not_all_runs_have_are_named_and_their_keys_are_not(tmp_path):
    weights = {"_target_": "mine.Weights", "every": 1}
    spoken = {"_target_": "mine.Generation", "every": 5, "records": 50}
    write_run(tmp_path / "a", probes={"weights": weights})
    write_run(tmp_path / "b", probes={"weights": weights, "generation": spoken})
    runs = runs_of([str(tmp_path / "a"), str(tmp_path / "b")])
    assert differences(runs)["probes"].tolist() == ["none of these", "generation"]
    assert list(differences(runs)) == ["probes"]
    (setting,) = settings_of(runs)
    assert setting.variants == [WITHOUT_SPHERE, f"{WITHOUT_SPHERE} (probes=generation)"]
    write_run(tmp_path / "c", probes={"weights": {**weights, "every": 2}})
    assert "probes.weights.every" in differences(runs_of([f"{tmp_path}/[ac]"]))


def test_where_a_run_happened_is_no_difference(multirun):
    write_run(multirun, seed=2, device="cuda", trackers="wandb")
    runs = runs_of([f"{multirun}/memit-off-*"])
    assert list(differences(runs).columns) == ["seed"]
    (setting,) = settings_of(runs)
    assert len(setting.arms) == 1


def test_where_updates_are_applied_follows_from_sphere(tmp_path):
    write_run(tmp_path, sphere="off", editor__apply="after")
    write_run(tmp_path, sphere="paper", editor__apply="in_loop")
    runs = runs_of([str(tmp_path)])
    assert list(differences(runs).columns) == ["sphere.name"]
    (setting,) = settings_of(runs)
    assert gains_table(setting, "seen", "success") is not None


def test_runs_of_different_lengths_are_not_averaged(tmp_path):
    write_run(tmp_path, steps=6, seed=0)
    write_run(tmp_path, steps=9, seed=1)
    (setting,) = settings_of(runs_of([str(tmp_path)]))
    assert [arm.variant for arm in setting.arms] == [
        f"{WITHOUT_SPHERE} (total=60)",
        f"{WITHOUT_SPHERE} (total=90)",
    ]
