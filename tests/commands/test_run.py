"""The main job on the bundled tiny GPT-2, end to end."""

import errno
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

from sphere_bench.cli import main
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.crispedit import CrispEdit
from sphere_bench.editing.methods.locft import LocFTReplay
from sphere_bench.editing.methods.lora import Lora
from sphere_bench.editing.methods.ultraedit import UltraEdit
from sphere_bench.run_folder.checkpoints import Checkpoint, Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from tests.every_editor import needs_peft
from tests.few_prompts import few_prompts
from tests.run_tables import TABLES, assert_same_tables, table, without_times

QUICK = (
    *("model.values.steps=3", "values.contexts=['Nobody knew why. {}']"),
    *("evaluation.seen=5", "perplexity.tokens=50"),
)
STREAM = ("edits.total=8", "edits.batch_size=4", "evaluation.seen=5")
THREE_STEPS = (*QUICK, "edits.total=9", "edits.batch_size=4", "checkpoint.every=1")
# The same for runs whose size is not the question.
SMALL_STEPS = (
    *(*THREE_STEPS, few_prompts()),
    *("edits.total=5", "edits.batch_size=2", "evaluation.seen=2"),
)
# Those with an `edit` that is not LocateThenEdit's.
EDITORS: dict[str, Any] = {
    "ultraedit": UltraEdit,
    "stableedit": UltraEdit,
    "crispedit": CrispEdit,
    "locft-bf-replay": LocFTReplay,
    "lora": Lora,
}


def run(root: Path, *overrides: str) -> int:
    return main(["run", f"run.root={root}", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    assert run(root, *THREE_STEPS, "run.name=three") == 0
    return root / "three"


def test_three_steps_are_recorded(folder: Path) -> None:
    steps = table(folder, "steps")
    assert sorted(set(zip(steps["step"], steps["edits"], strict=True))) == [
        (0, 0),
        (1, 4),
        (2, 8),
        (3, 9),
    ]
    last = steps[steps["step"] == 3].set_index("scope")["records"]
    assert last.to_dict() == {"batch": 1, "seen": 5, "first": 4}
    unedited = steps[steps["step"] == 0]
    assert (unedited["he_ratio"] == 1).all()
    # What the model was not taught it does not say.
    assert (unedited["efficacy_accuracy"] < 20).all()
    layers = table(folder, "layers")
    assert layers.groupby("step")["layer"].apply(list).to_list() == [[0, 1, 2]] * 4
    assert (layers.loc[layers["step"] > 0, "rank"] > 0).all()
    # With a checkpoint, and before the first edit.
    assert sorted(set(table(folder, "geometry")["step"])) == [0, 1, 2, 3]
    cases = table(folder, "cases")
    assert set(cases["kind"]) == {"rewrite", "paraphrase", "neighbourhood"}
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["state"], progress["step"], progress["edits"]) == ("done", 3, 9)
    assert Checkpoints(folder / "checkpoints").steps() == [2, 3]
    assert (folder / "config.yaml").is_file()
    # What was typed, and nothing that the command line adds for itself.
    typed = json.loads((folder / "provenance.json").read_text())["command"]
    assert typed[0] == "sphere-bench run" and not any("hydra." in each for each in typed)


def test_a_model_of_random_weights_is_edited_like_any_other(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 2600}
    small = (f"model.shape.{key}={value}" for key, value in shape.items())
    heads = ("model.shape.num_attention_heads=4", "model.shape.num_key_value_heads=2")
    where = ("model=llama3-8b-random", "device=cpu", "model.layers=[1,2]", "run.name=random")
    assert run(tmp_path, *where, *small, *heads, "model.values.steps=2", *STREAM) == 0
    layers = table(tmp_path / "random", "layers")
    assert (layers.loc[layers["step"] == 2, "drift"] > 0).all()


def test_the_same_command_again_prints_the_summary_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.glob("steps/*")}
    assert run(folder.parent, *THREE_STEPS, "run.name=three") == 0
    assert "step 0 is the unedited model" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.glob("steps/*")} == before


@pytest.mark.parametrize("flags", [[], ["--config-name", "config"]])
def test_a_runs_own_configuration_makes_the_run_again(
    flags: list[str], folder: Path, tmp_path: Path
) -> None:
    assert main(["run", "--config-dir", str(folder), *flags, f"run.root={tmp_path}"]) == 0
    again = tmp_path / folder.name
    assert_same_tables(again, folder)
    assert {file.name for file in again.iterdir()} == {file.name for file in folder.iterdir()}
    facts, facts_again = RunFolder(folder).provenance(), RunFolder(again).provenance()
    for key in ("config_hash", "model_fingerprint", "dataset_fingerprint", "packages", "git"):
        assert facts_again[key] == facts[key]
    assert facts["config"]["edits"] == {
        "total": 9,
        "batch_size": 4,
        "start": 0,
        "shuffle": False,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run with the given settings that was made in one go."""

    @cache
    def make(*overrides: str) -> Path:
        root = tmp_path_factory.mktemp("whole")
        assert run(root, *overrides) == 0
        return root / "three"

    return make


# MEMIT has no memory; the others keep keys, unconditioned weights, moments, a norm, an error,
# curvature, edits or a generator.
@pytest.mark.parametrize(
    "editor, stopped_in",
    [
        *(("memit dataset.path=bundled", 1), ("memit", 2), ("memit", 3)),
        *(("alphaedit", 3), ("prune", 3)),
        *(("ultraedit", 3), ("simie", 3), ("betaedit", 3), ("lyaplock", 3)),
        ("locft-bf-replay editor.method.steps=4", 3),
        pytest.param("lora editor.method.steps=4", 3, marks=needs_peft),
        ("crispedit editor.method.steps=4", 3),
        ("stableedit editor.method.warmup_batches=2", 3),
        ("alphaedit editor.compensate=true transform=prune", 3),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(
    editor: str,
    stopped_in: int,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = f"editor={editor}".split()
    command = (*SMALL_STEPS, *chosen, "sphere.basis=current", "run.name=three")
    calls = []
    edit_class = EDITORS.get(chosen[0].removeprefix("editor="), LocateThenEdit)
    edit = edit_class.edit

    def stopping(self: Any, batch: Batch) -> None:
        calls.append(len(batch.requests))
        if len(calls) == stopped_in:
            raise KeyboardInterrupt
        edit(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(edit_class, "edit", stopping)
        assert run(tmp_path / "stopped", *command) == 130
    folder = tmp_path / "stopped" / "three"
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["state"], progress["step"]) == ("interrupted", stopped_in - 1)
    assert run(tmp_path / "stopped", *command) == 0
    assert json.loads((folder / "progress.json").read_text())["state"] == "done"
    assert_same_tables(folder, whole(*command))


def test_a_run_whose_last_checkpoint_failed_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*QUICK, "edits.total=2", "edits.batch_size=2", "run.name=full")

    def full(self: Checkpoints, checkpoint: Checkpoint) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "weights.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert run(tmp_path, *command) == 2
    assert json.loads((tmp_path / "full" / "progress.json").read_text())["state"] == "running"
    assert run(tmp_path, *command) == 0
    assert Checkpoints(tmp_path / "full" / "checkpoints").steps() == [1]


def test_a_run_of_another_configuration_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = (*QUICK, "edits.total=4", "run.name=one")
    assert run(tmp_path, *one, "edits.batch_size=2") == 0
    assert run(tmp_path, *one, "edits.batch_size=4") == 2
    assert "edits.batch_size 2 -> 4): choose another run.name" in capsys.readouterr().err


def test_a_run_of_other_records_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    command = (
        *QUICK,
        f"dataset.path={file}",
        "edits.total=1",
        "edits.batch_size=1",
        "run.name=one",
    )
    for target, code in (("Paris", 0), ("London", 2)):
        record = {"prompt": "Someone lives in", "subject": "Someone", "target_new": target}
        file.write_text(json.dumps([{**record, "ground_truth": "Rome"}]))
        command_again = (*command, "dataset.format=easyedit")
        assert run(tmp_path, *command_again) == code
        progress = tmp_path / "one" / "progress.json"
        progress.write_text(progress.read_text().replace('"done"', '"running"'))
    assert "holds another run (dataset_fingerprint" in capsys.readouterr().err


def test_a_two_by_two_sweep_makes_four_runs_that_leak_nothing(tmp_path: Path) -> None:
    sweep = ("editor=alphaedit", "edits.total=4", "edits.batch_size=2", *QUICK)
    assert run(tmp_path, "-m", "sphere=off,paper", "seed=0,1", *sweep) == 0
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 4
    alone = tmp_path / "alone"
    assert run(alone, "sphere=paper", "seed=1", *sweep) == 0
    (single,) = alone.iterdir()
    in_sweep = tmp_path / single.name
    for name in TABLES:
        assert_frame_equal(without_times(table(in_sweep, name)), without_times(table(single, name)))


def test_alpha_zero_is_sphere_off(tmp_path: Path) -> None:
    few = ("edits.total=4", "edits.batch_size=2", *QUICK)
    assert run(tmp_path, *few, "sphere.alpha=0", "run.name=zero") == 0
    assert run(tmp_path, *few, "sphere=off", "run.name=off") == 0
    columns = ["step", "layer", "drift", "he", "update_norm"]
    assert_frame_equal(
        table(tmp_path / "zero", "layers")[columns], table(tmp_path / "off", "layers")[columns]
    )


def test_zsre_headline_is_token_accuracy(tmp_path: Path) -> None:
    few = ("edits.total=4", "edits.batch_size=2", *QUICK)
    assert run(tmp_path, "dataset=tiny-zsre", *few, "run.name=zsre") == 0
    steps = table(tmp_path / "zsre", "steps")
    assert steps["efficacy_success"].isna().all()
    assert (steps["efficacy"] == steps["efficacy_accuracy"]).all()


def test_one_edit_at_a_time_and_the_latest_of_two_facts_wins(tmp_path: Path) -> None:
    prompt, subject = "By trade Novult Tregel is a", "Novult Tregel"
    records = [
        {"prompt": prompt, "subject": subject, "target_new": target, "case_id": case}
        for case, target in enumerate(["tailor", "baker"])
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{**record, "ground_truth": "farmer"} for record in records]))
    assert (
        run(
            tmp_path,
            "run.name=twice",
            f"dataset.path={file}",
            "dataset.format=easyedit",
            "edits.total=2",
            "edits.batch_size=1",
            "evaluation.superseded=score",  # to ask the first one's prompt once more
        )
        == 0
    )
    cases = table(tmp_path / "twice", "cases")
    rewrites = cases[cases["kind"] == "rewrite"].drop_duplicates(["step", "case_id"])
    nll = rewrites.pivot(index="step", columns="case_id", values="nll_new")
    assert nll.loc[1, "0"] < nll.loc[0, "0"]
    assert nll.loc[2, "1"] < nll.loc[2, "0"]


def test_an_editor_that_changes_what_it_does_not_edit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = LocateThenEdit.edit

    def careless(self: LocateThenEdit, batch: Batch) -> None:
        edit(self, batch)
        self.setup.loaded.layout.weight(5).mul_(1.001)

    monkeypatch.setattr(LocateThenEdit, "edit", careless)
    few = ("edits.total=4", "edits.batch_size=2", *QUICK)
    assert run(tmp_path, *few) == 2
    said = capsys.readouterr().err
    assert "the editor changed parameters that it does not edit (transformer.h.5.mlp.c_proj" in said
    assert not list(tmp_path.glob("*/checkpoints/step-*"))
