import os
from typing import Any

import pytest
import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.checkpoints import Checkpoint, Checkpoints

FILES = ["weights.safetensors", "editor.safetensors", "probes.safetensors", "state.json"]


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    storage = torch.randn(3, 6, generator=generator)
    return Checkpoint(
        step=step,
        weights={4: torch.randn(2, 3, generator=generator), 10: storage.T},
        editor={
            "keys": storage[:, 2:],
            "solver": {"4": {"past": torch.randn(3, 3, generator=generator).double()}},
            "alias": storage,
            "count": torch.tensor(step),
        },
        probes={"unedited": {"logits": torch.arange(4.0)}},
        run_hash="abc",
    )


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    else:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    saved = checkpoint(20)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(saved)
    loaded = checkpoints.latest()
    assert loaded is not None
    assert (loaded.step, loaded.run_hash) == (20, "abc")
    assert list(loaded.weights) == [4, 10]
    assert_same(dict(saved.weights), dict(loaded.weights))
    assert_same(dict(saved.editor), dict(loaded.editor))
    assert_same(dict(saved.probes), dict(loaded.probes))
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "step-20").iterdir()) == [
        "editor.safetensors",
        "probes.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_checkpoint_up_to_a_step_can_be_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(checkpoint(step))
    found = checkpoints.latest(until=29)
    assert found is not None and found.step == 20
    assert checkpoints.latest(until=9) is None


def test_an_editor_without_memory_has_a_checkpoint_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(step=1, weights={0: torch.ones(2, 2)}))
    loaded = checkpoints.latest()
    assert loaded is not None
    assert loaded.editor == {}


def test_the_latest_checkpoints_and_the_milestones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, milestones=[10])
    for step in (5, 10, 20, 100, 30):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [10, 30, 100]
    assert checkpoints.load(10).step == 10


def test_a_milestone_stays_for_those_who_do_not_name_it(tmp_path):
    Checkpoints(tmp_path, keep=1, milestones=[2]).save(checkpoint(2))
    for step in (3, 4):
        Checkpoints(tmp_path, keep=1).save(checkpoint(step))
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_without_a_checkpoint_there_is_no_latest(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None


def test_loading_a_step_without_a_checkpoint_names_those_there_are(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(10))
    with pytest.raises(SphereBenchError, match="no checkpoint of step 11; there is 10"):
        checkpoints.load(11)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(name, damage, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(checkpoint(step))
    file = tmp_path / "step-20" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-3])
    else:
        # Inside a tensor, or the name of a key of state.json.
        content[3 if name == "state.json" else -3] ^= 1
        file.write_bytes(content)
    loaded = checkpoints.latest()
    assert loaded is not None
    assert loaded.step == 10
    assert "step-20" in caplog.text
    with pytest.raises(SphereBenchError, match="damaged"):
        checkpoints.load(20)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(10))

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sphere_bench.run_folder.checkpoints.write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(checkpoint(20))
    monkeypatch.undo()
    assert checkpoints.steps() == [10]
    (tmp_path / ".step-30.0.partial").mkdir()  # what a kill that nothing can catch leaves
    checkpoints.save(checkpoint(40))
    assert sorted(os.listdir(tmp_path)) == ["step-10", "step-40"]


@pytest.mark.parametrize("state", [{"a/b": torch.ones(1)}, {"a": 1}, {3: torch.ones(1)}])
def test_an_editors_state_that_cannot_be_stored_is_refused(state, tmp_path):
    with pytest.raises(SphereBenchError, match="state"):
        Checkpoints(tmp_path).save(Checkpoint(step=1, weights={}, editor=state))
