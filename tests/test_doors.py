"""The four doors: what docs/extending.md shows runs as it stands, outside the package."""

import json
import re
import shlex
from pathlib import Path

import pandas
import pytest

from sphere_bench.cli import main
from tests.children import Nursery
from tests.run_tables import assert_same_tables

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
FILES = dict(re.findall(r"^`(mine/[^`]+)`:\n\n```\w+\n(.*?)```$", PAGE, re.M | re.S))
COMMANDS = re.findall(r"^```sh\n(sphere-bench .*?)\n```$", PAGE, re.M | re.S)
QUICK = (
    "model.values.steps=2",
    "values.contexts=['Nobody knew why. {}']",
    "evaluation.seen=2",
    "evaluation.first=2",
    "perplexity.tokens=50",
    "checkpoint.every=1",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the page's files."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def command_of(name: str) -> list[str]:
    (command,) = [command for command in COMMANDS if command.endswith(f"run.name={name}")]
    return shlex.split(command)[1:]


def run(folder: Path, name: str, *overrides: str, root: str = "results") -> Path:
    assert main([*command_of(name), *QUICK, *overrides, f"run.root={root}"]) == 0
    return folder / root / name


def test_the_page_has_a_command_for_each_door() -> None:
    assert len(COMMANDS) == 5
    assert len(FILES) == 10


def test_an_editor_that_is_not_locate_then_edit(folder: Path) -> None:
    layers = pandas.read_parquet(run(folder, "low-rank") / "layers")
    edited = layers[layers["step"] > 0]
    assert (edited[["update_norm", "applied_norm", "drift"]] > 0).all(axis=None)
    # SPHERE takes a part of every update away.
    assert (edited["applied_norm"] < edited["update_norm"]).all()
    assert set(layers["editor"]) == {"low-rank"}


def test_the_editors_missing_numbers_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [each for each in command_of("low-rank") if "learning_rate" not in each]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "model.editors.low_rank.learning_rate" in said
    assert said.count("\n") == 1


def test_a_transform_keeps_its_memory_when_its_run_is_killed(
    folder: Path, nursery: Nursery
) -> None:
    whole = run(folder, "momentum", root="whole")
    nursery.killed_before(2, [*command_of("momentum"), *QUICK], folder)
    progress = json.loads((folder / "results" / "momentum" / "progress.json").read_text())
    assert progress["step"] == 1
    resumed = run(folder, "momentum")
    assert_same_tables(resumed, whole)
    without = run(folder, "momentum", "editor.method.transforms=[]", root="without")
    applied = [
        pandas.read_parquet(each / "layers").set_index(["step", "layer"])["applied_norm"]
        for each in (resumed, without)
    ]
    assert (applied[0].loc[1] == applied[1].loc[1]).all()  # nothing to remember yet
    assert (applied[0].loc[2] != applied[1].loc[2]).all()


def test_a_dataset_with_a_key_of_its_own(folder: Path) -> None:
    made = run(folder, "capitals")
    cases = pandas.read_parquet(made / "cases")
    assert set(cases["case_id"]) == {"Borlund", "Vintra", "Harrow"}
    assert set(cases["kind"]) == {"rewrite", "paraphrase"}
    assert "template: The seat of {} is" in (made / "config.yaml").read_text()
    steps = pandas.read_parquet(made / "steps")
    assert steps["edits"].max() == 3
    assert set(steps["dataset"]) == {"capitals"}


def test_a_probe_with_a_table_and_a_cadence_of_its_own(folder: Path) -> None:
    made = run(folder, "watch")
    words = pandas.read_parquet(made / "words")
    assert words.groupby("step")["rank"].apply(list).to_dict() == {0: [1, 2], 2: [1, 2], 3: [1, 2]}
    assert words["probability"].between(0, 1).all()
    steps = pandas.read_parquet(made / "steps")
    measured = steps[steps["scope"] == "batch"].set_index("step")["surprise"].notna()
    assert measured.to_dict() == {0: True, 1: False, 2: True, 3: True}
    assert "seconds_watch" in steps


def test_a_model_is_one_yaml_file(folder: Path) -> None:
    layers = pandas.read_parquet(run(folder, "small") / "layers")
    assert set(layers["layer"]) == {1}
    assert set(layers["model"]) == {"small"}
