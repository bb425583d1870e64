"""One run's folder is one run's: what is refused, what is shown, what is discarded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sphere_bench import build
from sphere_bench.cli import main
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.run_folder import provenance
from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from tests.few_prompts import few_prompts
from tests.run_tables import assert_same_tables

SETTINGS = (
    few_prompts(),
    "run.name=run",
    "model.values.steps=1",
    "values.contexts=['{}']",
    "evaluation.seen=1",
    "evaluation.first=1",
    "edits.total=3",
    "edits.batch_size=1",
    "checkpoint.every=1",
)


def run(root: Path, *overrides: str) -> int:
    return main(["run", f"run.root={root}", *SETTINGS, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert run(root) == 0
    return root / "run"


@pytest.fixture
def halfway(whole: Path, tmp_path: Path) -> Path:
    """A root with the run, which does not know that it is done."""
    shutil.copytree(whole, tmp_path / "run")
    rewrite(tmp_path / "run" / "progress.json", lambda progress: progress.update(state="running"))
    return tmp_path


def rewrite(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_another_release_of_what_computes_is_refused_and_shown(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = halfway / "run" / "provenance.json"
    rewrite(file, lambda facts: facts["packages"].update(torch="1.0", transformers="3.0"))
    rewrite(file, lambda facts: facts.update(sphere_bench="0.0.1"))
    assert run(halfway) == 2
    now = provenance.versions()
    assert (
        f"{halfway / 'run'} holds another run (sphere_bench 0.0.1 -> {now['sphere_bench']}; torch "
        f"1.0 -> {now['packages']['torch']}; transformers 3.0 -> "
        f"{now['packages']['transformers']}): choose another run.name, or discard that run with "
        "run.on_mismatch=restart"
    ) in capsys.readouterr().err
    # Those that only carry numbers may be others, and a run that is done needs none of them.
    rewrite(file, lambda facts: facts["packages"].update(provenance.versions()["packages"]))
    rewrite(file, lambda facts: facts.update(sphere_bench=now["sphere_bench"]))
    rewrite(file, lambda facts: facts["packages"].update(pandas="1.0"))
    assert run(halfway) == 0
    rewrite(file, lambda facts: facts["packages"].update(torch="1.0"))
    assert run(halfway) == 0


def test_another_model_under_the_same_name_is_refused(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        halfway / "run" / "provenance.json",
        lambda facts: facts.update(model_fingerprint="0123456789abcdef"),
    )
    assert run(halfway) == 2
    assert "holds another run (model_fingerprint 0123456789ab -> " in capsys.readouterr().err


def test_every_key_that_differs_is_shown(halfway: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(halfway, "sphere.alpha=0.5", "seed=3") == 2
    assert "(seed 0 -> 3; sphere.alpha 0.8 -> 0.5)" in capsys.readouterr().err
    # Where a run happens and what it keeps does not make it another one.
    assert run(halfway, "checkpoint.every=2", "checkpoint.keep=5") == 0


def test_a_restart_discards_the_other_run_and_nothing_else(
    halfway: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (halfway / "run" / "notes.txt").write_text("mine")
    assert run(halfway, "seed=3", "checkpoint.keep=1", "run.on_mismatch=restart") == 0
    assert "holds another run (seed 0 -> 3): starting anew" in capsys.readouterr().err
    facts = RunFolder(halfway / "run").provenance()
    assert (facts["config"]["seed"], facts["resumed"]) == (3, [])
    assert Checkpoints(halfway / "run" / "checkpoints").steps() == [3]
    assert (halfway / "run" / "notes.txt").read_text() == "mine"
    # Back again; a run that is the same goes on, whatever is to happen to others.
    assert run(halfway, "run.on_mismatch=restart") == 0
    assert_same_tables(halfway / "run", whole)
    before = (halfway / "run" / "provenance.json").read_bytes()
    assert run(halfway, "run.on_mismatch=restart") == 0
    assert (halfway / "run" / "provenance.json").read_bytes() == before


def test_a_restart_that_cannot_begin_leaves_the_other_run(halfway: Path, tmp_path: Path) -> None:
    def files() -> dict[Path, bytes]:
        folder = halfway / "run"
        found = [path for path in folder.rglob("*") if path.is_file()]
        return {
            path: path.read_bytes() for path in found if path.name not in ("run.log", "run.lock")
        }

    before = files()
    nowhere = f"model.path={tmp_path / 'nowhere'}"
    assert run(halfway, nowhere, "run.on_mismatch=restart") == 2
    assert files() == before


def test_a_run_whose_origin_is_lost_is_not_gone_on_with(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (halfway / "run" / "provenance.json").unlink()
    assert run(halfway) == 2
    assert "provenance.json, which says what the numbers are from" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        halfway / "run" / "provenance.json",
        lambda facts: facts.update(contexts=["{}", "Altered. {}"]),
    )
    assert run(halfway) == 2
    assert "is of another run than the folder around it" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["torn", "flipped", "gone"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage: str, halfway: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = halfway / "run" / "checkpoints" / "step-3" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content[:-100] if damage == "torn" else content)
    assert run(halfway) == 0
    assert "passing over a damaged checkpoint" in capsys.readouterr().err
    assert_same_tables(halfway / "run", whole)
    assert Checkpoints(halfway / "run" / "checkpoints").load(3).step == 3


def test_a_run_without_a_checkpoint_goes_on_with_its_own_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = ("values.contexts=null", "values.context_tokens=2", "checkpoint.every=3")
    assert run(tmp_path / "whole", *generated) == 0
    edit, made = LocateThenEdit.edit, []

    def stopping(self: LocateThenEdit, batch: Batch) -> None:
        made.append(batch)
        if len(made) == 3:
            raise KeyboardInterrupt
        edit(self, batch)

    def never(*_: object) -> None:
        raise AssertionError("generated again")

    with monkeypatch.context() as patch:
        patch.setattr(LocateThenEdit, "edit", stopping)
        assert run(tmp_path, *generated) == 130
    assert not (tmp_path / "run" / "checkpoints").exists()
    with monkeypatch.context() as patch:
        patch.setattr(build, "generated_contexts", never)
        assert run(tmp_path, *generated) == 0
    assert_same_tables(tmp_path / "run", tmp_path / "whole" / "run")


def test_a_run_folder_may_not_be_a_link_out_of_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, results = tmp_path / "outside", tmp_path / "results"
    for folder in (outside, results, results / "other"):
        folder.mkdir()
    (outside / "run.log").write_text("of somebody else")
    (results / "run").symlink_to(outside)
    assert run(results) == 2
    assert f"{results / 'run'} is a link out of {results}, to {outside}" in capsys.readouterr().err
    assert [file.name for file in outside.iterdir()] == ["run.log"]
