"""The edited model, as transformers loads it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sphere_bench.assets import tiny_gpt2_path
from sphere_bench.cli import main
from sphere_bench.models.loading import load_model, wrap_model
from sphere_bench.run_folder.checkpoints import Checkpoints
from tests.tiny_models import tiny_model

SETTINGS = (
    "model.values.steps=2",
    "values.contexts=['{}']",
    "evaluation.seen=1",
    "evaluation.first=1",
    "edits.total=4",
    "edits.batch_size=1",
    "checkpoint.every=4",
    "checkpoint.keep=1",
    "checkpoint.steps=[1,3]",
)
PROMPT = "Someone lives in"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a Conv1D model, which is in a folder of its own."""
    root = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_gpt2_path(), root / "model")
    overrides = (f"run.root={root}", "run.name=run", f"model.path={root / 'model'}")
    assert main(["run", *overrides, *SETTINGS]) == 0
    return root / "run"


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found: torch.Tensor = model(**tokenizer(PROMPT, return_tensors="pt")).logits
    return found


def export(run: Path, out: Path, *flags: str) -> int:
    return main(["export", str(run), "--out", str(out), *flags])


def test_steps_that_were_asked_for_are_kept(run: Path) -> None:
    assert Checkpoints(run / "checkpoints").steps() == [1, 3, 4]


@pytest.mark.parametrize("step", [1, 4, None])
def test_the_exported_model_gives_the_logits_of_the_edited_one(
    step: int | None, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "model"
    assert export(run, out, *([] if step is None else ["--step", str(step)])) == 0
    edited = load_model("bundled", device="cpu")
    tokens = edited.tokenizer(PROMPT, return_tensors="pt")
    unedited = edited.model(**tokens).logits
    for layer, weight in Checkpoints(run / "checkpoints").load(step or 4).weights.items():
        edited.layout.write(layer, weight)
    assert torch.equal(logits(out), edited.model(**tokens).logits)
    assert not torch.equal(logits(out), unedited)


def test_a_model_in_bfloat16_with_linear_layers_keeps_its_type(tmp_path: Path) -> None:
    llama = tiny_model("llama")
    llama.model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    overrides = (
        f"run.root={tmp_path}",
        "run.name=run",
        f"model.path={tmp_path / 'model'}",
        "model.editors.ultraedit.layers=[1,2]",
        "model.dtype=bfloat16",
        "statistics.corpus=bundled",
        "editor=ultraedit",
    )
    assert main(["run", *overrides, *SETTINGS]) == 0
    assert export(tmp_path / "run", tmp_path / "out") == 0
    edited = load_model(str(tmp_path / "model"), dtype="bfloat16", device="cpu")
    for layer, weight in Checkpoints(tmp_path / "run" / "checkpoints").load(4).weights.items():
        edited.layout.write(layer, weight)
    tokens = edited.tokenizer(PROMPT, return_tensors="pt")
    assert logits(tmp_path / "out").dtype == torch.bfloat16
    assert torch.equal(logits(tmp_path / "out"), edited.model(**tokens).logits)


def test_a_dequantised_model_can_be_saved(tmp_path: Path) -> None:
    loaded = tiny_model("llama")
    # What transformers leaves on a model that it read from a GGUF file.
    loaded.model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method=0))
    loaded.model.config.quantization_config = {}
    wrap_model(loaded.model, loaded.tokenizer).model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_what_is_wrong_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, unfinished = tmp_path / "out", tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("provenance.json", "config.yaml"):
        shutil.copy(run / name, unfinished / name)
    (tmp_path / "there").mkdir()
    wrong = {
        "holds no run: name a run's own folder": (tmp_path, out),
        "no checkpoint of step 2; there is 1, 3, 4": (run, out, "--step", "2"),
        "has no checkpoint yet: let the run go on first": (unfinished, out),
        "there exists: name a folder that does not": (run, tmp_path / "there"),
        "invalid int value: 'two'": (run, out, "--step", "two"),
        "nowhere: no model folder": (run, out, "--model", str(tmp_path / "nowhere")),
    }
    for message, arguments in wrong.items():
        assert export(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_a_model_that_moved_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, moved = run.parent / "model", tmp_path / "moved"
    model.rename(moved)
    try:
        assert export(run, tmp_path / "out") == 2
        assert "with --model" in capsys.readouterr().err
        assert export(run, tmp_path / "out", "--model", str(moved)) == 0
    finally:
        moved.rename(model)


def test_another_model_in_its_place_is_not_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model("gpt2")
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    assert export(run, tmp_path / "out", "--model", str(tmp_path / "other")) == 2
    assert "is not the model that" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_weights_are_drawn_on_the_device_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (
        "{model_type:gpt2,vocab_size:3000,n_embd:16,n_layer:3,n_head:2,n_positions:64,"
        "num_hidden_layers:3}"
    )
    own = (f"run.root={tmp_path}", "run.name=run", "edits.total=1", "edits.batch_size=1")
    arguments = ["run", *SETTINGS[:4], *own, f"model.shape={shape}", "device=cpu"]
    assert main(arguments) == 0
    run = tmp_path / "run"
    assert export(run, tmp_path / "out") == 0
    facts = run / "provenance.json"
    facts.write_text(facts.read_text().replace('"torch_device": "cpu"', '"torch_device": "cuda:0"'))
    capsys.readouterr()
    assert export(run, tmp_path / "elsewhere") == 2
    line = capsys.readouterr().err
    assert "its weights are random, drawn on cuda, and others elsewhere: export it on" in line
