"""Second moments that exist already: published files and our own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sphere_bench.editing.statistics.cache import CachedStatistics
from sphere_bench.editing.statistics.given import GivenStatistics
from sphere_bench.editing.statistics.texts import OrdinaryText
from sphere_bench.errors import SphereBenchError
from tests.golden_numbers import NAMES, Golden, load_golden

TOKENS = 5000


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def module(golden: Golden, layer: int) -> str:
    """The published name of a layer's edited projection."""
    if golden.name == "tiny-gpt2":
        return f"transformer.h.{layer}.mlp.c_proj"
    return f"model.layers.{layer}.mlp.down_proj"


def publish(golden: Golden, folder: Path, layer: int, suffix: str = "100000", **changes: Any):
    """A file as ROME's, MEMIT's and AlphaEdit's code writes it: sums, and how many tokens."""
    folder.mkdir(exist_ok=True)
    sums = {
        "constructor": "util.runningstats.CombinedStat()",
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": TOKENS,
        "mom2.mom2": (golden.second_moments[layer] * TOKENS).float().numpy(),
        "sample_size": 100000,
    }
    content = {key: value for key, value in {**sums, **changes}.items() if value is not None}
    file = folder / f"{module(golden, layer)}_float32_mom2_{suffix}.npz"
    np.savez(file, **content)
    return file


def given(golden: Golden, path: object, layers=(0, 1, 2), wanted: int = TOKENS):
    return GivenStatistics(golden.loaded, layers, str(path), wanted)


def test_published_files_give_the_sum_over_the_count(golden, tmp_path, caplog):
    for layer in (0, 1, 2):
        publish(golden, tmp_path, layer)
    (tmp_path / "notes.txt").write_text("other files do not matter")
    found = given(golden, tmp_path).second_moments()
    assert list(found) == [0, 1, 2]
    for layer, moment in found.items():
        assert moment.dtype == torch.float64
        expected = golden.second_moments[layer].double()
        assert (moment - expected).norm() < 1e-6 * expected.norm()
    assert given(golden, tmp_path).held_out_moments() == {}
    assert caplog.text == ""


def test_one_file_is_enough_for_one_layer(golden, tmp_path):
    file = publish(golden, tmp_path, 1)
    assert list(given(golden, file, [1]).second_moments()) == [1]


def test_the_name_may_stand_anywhere_in_the_files(golden, tmp_path):
    for layer, name in ((0, "mine_{}_t1024.npz"), (1, "{}.npz")):
        publish(golden, tmp_path, layer).rename(tmp_path / name.format(module(golden, layer)))
    assert list(given(golden, tmp_path, [0, 1]).second_moments()) == [0, 1]


def test_a_low_count_only_warns(golden, tmp_path, caplog):
    publish(golden, tmp_path, 0)
    publish(golden, tmp_path, 1, **{"mom2.count": 4000})
    given(golden, tmp_path, [0, 1], wanted=4000).second_moments()
    assert caplog.text == ""
    given(golden, tmp_path, [0, 1], wanted=4001).second_moments()
    assert "c_proj" in caplog.text or "down_proj" in caplog.text
    assert "are of 4000 tokens, fewer than 4001" in caplog.text and len(caplog.records) == 1


BROKEN = {
    "another width": ({"mom2.mom2": np.zeros((3, 3), np.float32)}, r"matrix is \[3, 3\], but keys"),
    "no matrix": ({"mom2.mom2": np.zeros(5, np.float32)}, r"matrix is \[5\]"),
    "not finite": ("nan", "numbers are not all finite"),
    "whole numbers": ({"mom2.mom2": np.zeros((3, 3), np.int64)}, "is of type int64"),
    "no count": ({"mom2.count": None}, "lacks mom2.mom2 or mom2.count"),
    "no tokens": ({"mom2.count": 0}, "mom2.count is 0"),
    "objects": ({"mom2.mom2": np.array([{}], object)}, "is no npz file of numbers"),
    "cut off": (b"PK", "is no npz file of numbers"),
    "empty": (b"", "is no npz file of numbers"),
    "text": (b"mom2", "is no npz file of numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_fit_is_one_line_with_its_name(case, golden, tmp_path):
    change, problem = BROKEN[case]
    if change == "nan":
        sums = golden.second_moments[1].float().numpy().copy()
        sums[2, 3] = np.inf
        change = {"mom2.mom2": sums}
    file = publish(golden, tmp_path, 1, **(change if isinstance(change, dict) else {}))
    if isinstance(change, bytes):
        file.write_bytes(change)
    with pytest.raises(SphereBenchError, match=problem) as caught:
        given(golden, tmp_path, [1]).second_moments()
    assert str(caught.value).startswith(f"statistics.path={file}: ")
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_file_or_with_several_is_named(golden, tmp_path):
    publish(golden, tmp_path, 1)
    with pytest.raises(SphereBenchError) as caught:
        given(golden, tmp_path, [1, 2]).second_moments()
    expected = f"statistics.path={tmp_path}: layer 2 is {module(golden, 2)}, and no file has it"
    assert str(caught.value) == expected
    publish(golden, tmp_path, 1, suffix="t1024_100000")
    with pytest.raises(
        SphereBenchError, match=r"several files hold it: .*100000\.npz, .*npz: name"
    ):
        given(golden, tmp_path, [1]).second_moments()


@pytest.mark.parametrize(
    "other", ["{}1_float32_mom2", "tower.{}_float32_mom2", "{}.below_float32_mom2", "1{}_mom2"]
)
def test_a_module_of_nearly_the_same_name_is_another_one(other, golden, tmp_path):
    file = publish(golden, tmp_path, 1)
    file.rename(tmp_path / f"{other.format(module(golden, 1))}.npz")
    with pytest.raises(SphereBenchError, match=r"layer 1 is .* and no file has it"):
        given(golden, tmp_path, [1]).second_moments()


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz"])
def test_a_place_that_is_not_there_is_named(name, golden, tmp_path):
    with pytest.raises(SphereBenchError, match=r"statistics\.path=.*nowhere.*: no such file"):
        given(golden, tmp_path / name).second_moments()


@pytest.fixture
def own(golden: Golden, tmp_path: Path) -> Path:
    """A cache folder with our statistics of layers 1 and 2 and their held-out ones."""
    text = OrdinaryText("bundled", 300)
    statistics = CachedStatistics(golden.loaded, [1, 2], text, tmp_path, held_out=200)
    statistics.second_moments()
    statistics.held_out_moments()
    assert len(list(tmp_path.iterdir())) == 2
    return tmp_path


def test_our_own_cached_files_are_read_by_folder_and_by_name(own, golden, caplog):
    text = OrdinaryText("bundled", 300)
    expected = CachedStatistics(golden.loaded, [1, 2], text, own).second_moments()
    files = given(golden, own, [1, 2])._files()[1]
    assert len(files) == 1  # the held-out ones do not count
    for place, layers in ((own, [1, 2]), (files[0], [1, 2]), (own, [2])):
        found = given(golden, place, layers, wanted=300).second_moments()
        assert list(found) == layers
        for layer in layers:
            assert torch.equal(found[layer], expected[layer])
    assert caplog.text == ""
    given(golden, own, [2], wanted=301).second_moments()
    assert "of 300 tokens, fewer than 301" in caplog.text


def test_our_own_file_that_is_damaged_or_of_other_layers_is_named(own, golden):
    with pytest.raises(SphereBenchError, match=r"layer 0 is .*, and no file has it"):
        given(golden, own, [0, 1]).second_moments()
    (file,) = given(golden, own, [1])._files()[1]
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(SphereBenchError, match=f"{file}: its checksum does not fit"):
        given(golden, own, [1]).second_moments()


def test_the_fingerprint_is_the_content_of_the_layers_files(golden, tmp_path):
    first, other = publish(golden, tmp_path, 0), publish(golden, tmp_path, 1)
    before = given(golden, tmp_path, [0]).fingerprint()
    assert list(before) == [0]
    other.unlink()
    moved = tmp_path / "moved"
    moved.mkdir()
    first.rename(moved / first.name)
    assert given(golden, moved, [0, 1]).fingerprint() == before
    publish(golden, moved, 0, **{"mom2.count": TOKENS + 1})
    assert given(golden, moved, [0]).fingerprint() != before
