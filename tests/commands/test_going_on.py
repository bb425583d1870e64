"""A run that goes on with more records, that lost files, or whose sources are others."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from sphere_bench.cli import main
from sphere_bench.run_folder import table_files, tables
from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from tests.few_prompts import few_prompts
from tests.run_tables import TABLES, assert_same_tables, table

SETTINGS = (
    few_prompts(),
    "run.name=run",
    "model.values.steps=1",
    "values.contexts=['{}']",
    "evaluation.seen=2",
    "evaluation.first=2",
    "perplexity.tokens=50",
    "edits.batch_size=2",
    "checkpoint.every=2",
)


def run(root: Path, *overrides: str) -> int:
    return main(["run", f"run.root={root}", *SETTINGS, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run with the given settings that was made in one go."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            root = tmp_path_factory.mktemp("whole")
            assert run(root, *overrides) == 0
            made[overrides] = root / "run"
        return made[overrides]

    return make


@pytest.mark.parametrize(
    "shorter, settings",
    [
        (4, ()),
        # The last batch was partial: it is made again whole.
        (5, ()),
        (1 + 2, ()),
        # The last evaluation was off its cadence: it is dropped.
        (6, ("evaluation.every=2",)),
        # Two weights and keys that an editor remembers.
        (5, ("editor=alphaedit", "evaluation.every=3")),
    ],
)
def test_a_longer_run_goes_on_to_the_tables_of_one_made_in_one_go(
    shorter: int, settings: tuple[str, ...], whole: Callable[..., Path], tmp_path: Path
) -> None:
    assert run(tmp_path, *settings, f"edits.total={shorter}") == 0
    first = RunFolder(tmp_path / "run").provenance()
    assert run(tmp_path, *settings, "edits.total=8") == 0
    assert_same_tables(tmp_path / "run", whole(*settings, "edits.total=8"))
    facts = RunFolder(tmp_path / "run").provenance()
    assert (facts["records"], facts["config"]["edits"]["total"]) == (8, 8)
    assert facts["started_at"] == first["started_at"] and len(facts["resumed"]) == 1


def test_what_is_there_is_not_made_again(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "edits.total=4") == 0
    before = table(tmp_path / "run", "steps")
    said = capsys.readouterr()
    for line in (
        "step 0/2, 0/4 edits, efficacy ",
        "step 1/2, 2/4 edits, ",
        "step 2/2, 4/4 edits, ",
    ):
        assert f"sphere-bench: {line}" in said.err
    assert " s an edit, 0 min left" in said.err and "already done" not in said.out
    assert run(tmp_path, "edits.total=8") == 0
    after = table(tmp_path / "run", "steps")
    pandas.testing.assert_frame_equal(after[after["step"] <= 2], before)  # times included
    said = capsys.readouterr()
    assert re.findall(r"step \d/\d", said.err) == ["step 3/4", "step 4/4"]
    assert "already done" not in said.out


def test_a_smaller_total_takes_nothing_back(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    assert run(tmp_path, "edits.total=4") == 0
    assert "already done on 20" in capsys.readouterr().out
    assert_same_tables(tmp_path / "run", whole("edits.total=8"))


def test_other_records_are_noticed_whatever_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"

    def write(*targets: str) -> None:
        records = [
            {"prompt": f"City {number} lies in", "subject": f"City {number}", "target_new": target}
            for number, target in enumerate(targets)
        ]
        file.write_text(json.dumps([{**each, "ground_truth": "Chad"} for each in records]))

    command = (f"dataset.path={file}", "edits.total=null")
    write("Peru", "Cuba", "Oman", "Iran")
    assert run(tmp_path, *command) == 0
    for targets in (
        ("Peru", "Cuba", "Oman", "Mali", "Togo", "Fiji"),
        ("Peru", "Mali"),
        ("Peru", "Cuba"),  # fewer than the run has
    ):
        write(*targets)
        assert run(tmp_path, *command) == 2
        assert "holds another run (dataset_fingerprint" in capsys.readouterr().err
    write("Peru", "Cuba", "Oman", "Iran", "Togo", "Fiji")
    assert run(tmp_path, *command) == 0
    assert table(tmp_path / "run", "steps")["edits"].max() == 6


@pytest.mark.parametrize("lost", TABLES)
def test_rows_that_are_lost_are_made_again_in_a_finished_run_too(
    lost: str, whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    part = RunFolder(tmp_path / "run").part(lost, 0)
    if lost == "layers":
        part.write_bytes(part.read_bytes()[:-9])
    else:
        part.unlink()
    assert run(tmp_path, "edits.total=8") == 0
    assert "lacks rows from step 0 on: they are made again" in capsys.readouterr().err
    assert_same_tables(tmp_path / "run", whole("edits.total=8"))


def test_a_gap_behind_a_checkpoint_is_made_again_from_there(
    whole: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (table_files, tables):
        monkeypatch.setattr(module, "STEPS_A_PART", 2)
    assert run(tmp_path, "edits.total=8", "checkpoint.keep=3") == 0
    folder = RunFolder(tmp_path / "run")
    folder.part("cases", 4).unlink()  # of step 4
    capsys.readouterr()
    assert run(tmp_path, "edits.total=8", "checkpoint.keep=3") == 0
    said = capsys.readouterr().err
    assert "lacks rows from step 4 on" in said
    # The checkpoint before the gap is that of step 2.
    assert re.findall(r"step \d/\d", said) == ["step 3/4", "step 4/4"]
    assert_same_tables(tmp_path / "run", whole("edits.total=8"))


def test_what_a_reader_of_the_scores_must_know_is_said_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    fact = {"prompt": "Rome lies in", "subject": "Rome", "ground_truth": "Chad"}
    file.write_text(json.dumps([{**fact, "target_new": each} for each in ("Peru", "Cuba")]))
    assert run(tmp_path, f"dataset.path={file}", "edits.total=null") == 0
    before, _, _ = capsys.readouterr().err.partition("step 0/1")
    assert "1 prompt is edited to several targets within a batch" in before


def test_a_model_that_was_replaced_under_a_finished_run_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sphere_bench.assets import tiny_gpt2_path

    model = tmp_path / "model"
    shutil.copytree(tiny_gpt2_path(), model)
    command = (f"model.path={model}", "edits.total=2")
    assert run(tmp_path, *command) == 0
    # Copied elsewhere it is the same model, by content.
    shutil.copytree(model, tmp_path / "moved")
    capsys.readouterr()
    assert run(tmp_path, f"model.path={tmp_path / 'moved'}", "edits.total=2") == 0
    assert re.search("already done on 20.*, nothing computed", capsys.readouterr().out)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    assert run(tmp_path, *command) == 2
    assert "holds another run (model_fingerprint" in capsys.readouterr().err


def test_a_source_of_ones_own_that_changed_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "halving_of_updates.py"
    source.write_text(
        "class Half:\n    def __call__(self, update, weight):\n        return update / 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ("editor.method.transforms=[{_target_: halving_of_updates.Half}]", "edits.total=2")
    assert run(tmp_path, *mine) == 0
    source.write_text(source.read_text().replace("/ 2", "/ 4"))
    assert run(tmp_path, *mine) == 2
    said = capsys.readouterr().err
    assert "holds another run (sources.halving_of_updates.Half " in said
    assert said.count(" -> ") == 1
    # Nor are steps of the new source put behind those of the old one.
    assert run(tmp_path, *mine[:1], "edits.total=4") == 2
    assert "holds another run (sources.halving_of_updates.Half " in capsys.readouterr().err
    assert table(tmp_path / "run", "steps")["edits"].max() == 2


def test_a_configuration_that_was_edited_by_hand_is_noticed(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("batch_size: 2", "batch_size: 4"))
    assert run(tmp_path, "edits.total=8") == 2
    assert "edits.batch_size 2 -> 4" in capsys.readouterr().err


def test_a_run_of_the_version_before_is_refused_in_a_line_and_can_be_discarded(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    file = tmp_path / "run" / "provenance.json"
    facts = json.loads(file.read_text())
    del facts["format"]
    file.write_text(json.dumps({**facts, "sphere_bench": "0.1.0"}))
    assert run(tmp_path, "edits.total=8") == 2
    said = capsys.readouterr().err
    assert "was recorded by another version of sphere-bench, 0.1.0" in said
    assert said.count("\n") == 1
    assert run(tmp_path, "edits.total=8", "run.on_mismatch=restart") == 0
    assert_same_tables(tmp_path / "run", whole("edits.total=8"))


def test_a_run_that_another_process_has_is_skipped_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path / "run").locked():
        assert run(tmp_path, "edits.total=2") == 2
        assert run(tmp_path, "edits.total=2", "run.on_locked=skip") == 0
    assert "skipped: " in capsys.readouterr().out


def test_the_log_has_a_line_for_each_step_and_the_error_that_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Checkpoints, checkpoint: object) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert run(tmp_path, "edits.total=4") == 1
    log = (tmp_path / "run" / "run.log").read_text()
    assert "step 1/2, 2/4 edits, efficacy" in log
    assert "s an edit" in log
    assert "ended by RuntimeError: no more" in log


def test_a_partial_batch_is_made_again_though_the_progress_is_gone(
    whole: Callable[..., Path], tmp_path: Path
) -> None:
    assert run(tmp_path, "edits.total=5") == 0
    (tmp_path / "run" / "progress.json").unlink()
    assert run(tmp_path, "edits.total=8") == 0
    assert_same_tables(tmp_path / "run", whole("edits.total=8"))


def test_a_restart_is_as_long_as_it_is_asked_to_be(
    whole: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    assert run(tmp_path, "edits.total=4", "seed=1", "run.on_mismatch=restart") == 0
    assert table(tmp_path / "run", "steps")["edits"].max() == 4


@pytest.mark.parametrize("metric", ["typo", "scope"])
def test_an_objective_that_is_no_number_is_named(
    metric: str, whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("edits.total=8"), tmp_path / "run")
    for root in (tmp_path, tmp_path / "anew"):
        assert run(root, "edits.total=8", f"objective.metric={metric}") == 2
        assert f"objective.metric={metric}: must be one of step, " in capsys.readouterr().err


def test_a_collapsed_run_is_checked_like_a_finished_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = ("edits.total=8", "collapse.efficacy=100")  # a step of the solver edits nothing
    assert run(tmp_path, *early) == 0
    folder = RunFolder(tmp_path / "run")
    assert folder.state() == "collapsed"
    before = table(folder.path, "cases")
    assert run(tmp_path, *early) == 0
    assert "already done on 20" in capsys.readouterr().out
    folder.part("cases", 0).unlink()
    assert run(tmp_path, *early) == 0
    assert "lacks rows from step 0 on" in capsys.readouterr().err
    pandas.testing.assert_frame_equal(table(folder.path, "cases"), before)
    assert folder.state() == "collapsed"


def test_without_sphere_the_tables_say_off(tmp_path: Path) -> None:
    assert run(tmp_path, "edits.total=2", "sphere.enabled=false") == 0
    steps = table(tmp_path / "run", "steps")
    assert set(steps["sphere"]) == {"off"} and steps["alpha"].isna().all()
