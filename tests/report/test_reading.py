import shutil
from pathlib import Path

import pytest

from sphere_bench.errors import SphereBenchError
from sphere_bench.report.comparing import WITH_SPHERE, WITHOUT_SPHERE, differences, settings_of
from sphere_bench.report.reading import find_runs
from tests.report.synthetic import write_run


@pytest.fixture
def multirun(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path, sphere="off", seed=seed)
        write_run(tmp_path, sphere="paper", seed=seed)
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "only-just-started").mkdir()
    return tmp_path


def test_runs_are_found_by_folder_by_pattern_and_in_a_folder_of_runs_each_once(multirun):
    names = [run.name for run in find_runs([str(multirun)])]
    assert names == ["memit-off-seed0", "memit-off-seed1", "memit-paper-seed0", "memit-paper-seed1"]
    assert [run.name for run in find_runs([f"{multirun}/*-off-*"])] == names[:2]
    twice = [str(multirun / names[0]), f"{multirun}/../{multirun.name}/{names[0]}", str(multirun)]
    assert [run.name for run in find_runs(twice)] == names


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
    ],
)
def test_what_is_no_run_is_told(multirun, place, message):
    for broken in ("no-config", "bad-config", "bad-progress"):
        shutil.copytree(multirun / "memit-off-seed0", multirun / broken)
    (multirun / "no-config" / "config.yaml").unlink()
    (multirun / "bad-config" / "config.yaml").write_text("a: [")
    (multirun / "bad-progress" / "progress.json").write_text("{}")
    (multirun / "empty").mkdir()
    (multirun / "empty" / "config.yaml").touch()
    with pytest.raises(SphereBenchError, match=message):
        find_runs([str(multirun / place)])


def test_runs_that_differ_in_their_seed_alone_are_one_arm(multirun):
    (setting,) = settings_of(find_runs([str(multirun)]))
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
    settings = settings_of(find_runs([f"{tmp_path}/*"]))
    assert [(each.model, each.headline) for each in settings] == [
        ("other", "success"),
        ("toy", "accuracy"),
        ("toy", "success"),
    ]
    assert [each.kinds for each in settings][1] == ["accuracy"]


def test_differences_leave_out_what_follows_from_a_choice(multirun):
    write_run(multirun, editor="alphaedit")
    table = differences(find_runs([str(multirun)]))
    # editor.method.ridge follows from the editor, sphere.enabled from sphere.
    assert list(table.columns) == ["editor.name", "sphere.name", "seed"]


def test_another_value_under_the_same_choices_is_a_difference_and_names_its_arm(multirun):
    write_run(multirun / "weak", sphere="paper", sphere__alpha=0.1)
    runs = find_runs([str(multirun), str(multirun / "weak")])
    assert "sphere.alpha" in differences(runs)
    (setting,) = settings_of(runs)
    assert setting.variants == [
        WITHOUT_SPHERE,
        f"{WITH_SPHERE} (alpha=0.1)",
        f"{WITH_SPHERE} (alpha=0.8)",
    ]


def test_where_a_run_happened_is_no_difference(multirun):
    write_run(multirun, seed=2, device="cuda", trackers="wandb")
    runs = find_runs([f"{multirun}/memit-off-*"])
    assert list(differences(runs).columns) == ["seed"]
    (setting,) = settings_of(runs)
    assert len(setting.arms) == 1
