"""Model folders, key statistics and checkpoints that were damaged or changed by hand."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sphere_bench.editing.statistics.cache import CachedStatistics
from sphere_bench.editing.statistics.texts import OrdinaryText
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel, load_model
from sphere_bench.run_folder.checkpoints import Checkpoint, Checkpoints
from tests.fuzzing import damaged, fuzz, mutated
from tests.golden_numbers import GOLDEN, NAMES

MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def load(folder: Path) -> LoadedModel | None:
    try:
        return load_model(str(folder), device="cpu")
    except SphereBenchError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(("model.path=", "unknown layout"))
        return None


def copied(model: str, folder: str) -> Path:
    names = {*MODEL_FILES, "special_tokens_map.json"}
    ignored = [path.name for path in (GOLDEN / model).iterdir() if path.name not in names]
    copy = Path(folder) / model
    return Path(shutil.copytree(GOLDEN / model, copy, ignore=shutil.ignore_patterns(*ignored)))


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("model", NAMES)
@fuzz(8)
@given(data=st.data())
def test_a_damaged_file_of_a_model(model: str, name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = copied(model, folder) / name
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        loaded = load(file.parent)
    if loaded is not None:
        assert all(torch.isfinite(weight).all() for weight in loaded.model.parameters())


@pytest.mark.parametrize("name", MODEL_FILES[:3])
@fuzz(20)
@given(data=st.data())
def test_a_mutated_configuration_of_a_model(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = copied(NAMES[0], folder) / name
        file.write_text(json.dumps(data.draw(mutated(json.loads(file.read_text())))))
        load(file.parent)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_a_model(name: str, tmp_path: Path) -> None:
    folder = copied(NAMES[1], str(tmp_path))
    (folder / name).unlink()
    assert load(folder) is None


def test_weights_that_are_missing_or_not_finite_are_named(tmp_path: Path) -> None:
    model = load_model(str(GOLDEN / NAMES[1]), device="cpu").model
    model.transformer.h[1].mlp.c_fc.weight.data[2, 3] = torch.inf
    folder = copied(NAMES[1], str(tmp_path))
    model.save_pretrained(folder)
    with pytest.raises(SphereBenchError, match=r"the weight transformer\.h\.1\.mlp\.c_fc\.weight"):
        load_model(str(folder), device="cpu")
    weights = model.state_dict()
    del weights["transformer.h.1.mlp.c_fc.weight"], weights["lm_head.weight"]
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(
        SphereBenchError, match=r"lacks 1 of the model's weights, .*h\.1\.mlp\.c_fc"
    ):
        load_model(str(folder), device="cpu")


@cache
def golden_model() -> LoadedModel:
    return load_model(str(GOLDEN / NAMES[0]), device="cpu")


def key_statistics(folder: str) -> dict[int, torch.Tensor]:
    text = OrdinaryText("bundled", 30, order="file")
    return CachedStatistics(golden_model(), [0], text, folder).second_moments()


@cache
def statistics() -> tuple[str, bytes, torch.Tensor]:
    """A cache file's name and content, and the moment of layer 0 in it."""
    with tempfile.TemporaryDirectory() as folder:
        moments = key_statistics(folder)
        (file,) = Path(folder).iterdir()
        return file.name, file.read_bytes(), moments[0]


@fuzz(60)
@given(data=st.data())
def test_damaged_key_statistics_are_refused_or_unchanged(data: st.DataObject) -> None:
    name, content, moment = statistics()
    # Half of the damage goes to the header, where it can mean something.
    part = data.draw(st.sampled_from([len(content), content.index(b"}}") + 2]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data.draw(damaged(content[:part])) + content[part:])
        try:
            found = key_statistics(folder)
        except SphereBenchError as error:
            assert "damaged: delete" in str(error) and "\n" not in str(error)
        else:
            assert torch.equal(found[0], moment)


@pytest.mark.parametrize("name", ["weights.safetensors", "editor.safetensors", "state.json"])
@fuzz(60)
@given(data=st.data())
def test_a_damaged_checkpoint_is_passed_over_or_unchanged(name: str, data: st.DataObject) -> None:
    saved = Checkpoint(
        2, {0: torch.arange(6.0).view(2, 3)}, {"keys": torch.ones(4)}, run_hash="abc"
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save(Checkpoint(1, {0: torch.zeros(2, 3)}))
        checkpoints.save(saved)
        file = Path(folder) / "step-2" / name
        file.write_bytes(data.draw(damaged(file.read_bytes())))
        found = checkpoints.latest()
    assert found is not None
    if found.step != 1:
        assert (found.step, found.run_hash) == (2, "abc")
        assert torch.equal(found.weights[0], saved.weights[0])
        assert torch.equal(found.editor["keys"], saved.editor["keys"])
