"""Text that is kept apart, and how much of its keys lies in a null space."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch

from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.editing.statistics.cache import CachedStatistics
from sphere_bench.editing.statistics.null_space import compare_energies, energy_shares
from sphere_bench.editing.statistics.texts import OrdinaryText
from sphere_bench.models.tokens import encode
from tests.golden_numbers import LAYERS, Golden, load_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("tiny-llama")


def corpus_of(folder: Path, texts: Sequence[str]) -> str:
    file = folder / "corpus.txt"
    file.write_text("\n".join(texts), "utf-8")
    return str(file)


def numbered(count: int) -> list[str]:
    return [f"Number {number} comes before {number + 1}." for number in range(count)]


def read(text: OrdinaryText, golden: Golden) -> list[str]:
    """The texts of which tokens are read."""
    found, left = [], text.tokens
    for each in text.read(golden.loaded):
        if left <= 0:
            break
        found.append(each)
        left -= len(encode(golden.loaded.tokenizer, each).ids[: text.tokens_per_text])
    return found


def held_out(text: OrdinaryText, golden: Golden) -> list[str]:
    return list(text.held_out(golden.loaded))


@pytest.mark.parametrize("order", ["random", "file"])
@pytest.mark.parametrize("tokens_per_text", [None, 4])
def test_every_text_is_read_or_held_out_and_none_is_both(order, tokens_per_text, golden, tmp_path):
    corpus = corpus_of(tmp_path, numbered(120))
    text = OrdinaryText(corpus, 300, order, tokens_per_text)
    first, second = read(text, golden), held_out(text, golden)
    assert len(first) > 10 and len(second) > 10
    assert sorted([*first, *second]) == sorted(numbered(120))
    if order == "file":
        assert [*first, *second] == numbered(120)


@pytest.mark.parametrize("order", ["random", "file"])
def test_copies_of_a_text_that_is_read_are_not_held_out(order, golden, tmp_path):
    # Every text three times, and in random order copies are anywhere.
    text = OrdinaryText(corpus_of(tmp_path, [*numbered(60)] * 3), 500, order)
    first, second = read(text, golden), held_out(text, golden)
    assert set(first).isdisjoint(second)
    assert len(set(second)) == len(second)
    assert set(first) | set(second) == set(numbered(60))


def test_a_corpus_that_ends_early_leaves_a_tenth_in_random_order_and_nothing_in_the_files(
    golden, tmp_path
):
    corpus = corpus_of(tmp_path, numbered(220))
    random = OrdinaryText(corpus, 10**6, "random")
    assert len(held_out(random, golden)) == 20 and len(read(random, golden)) == 200
    assert held_out(OrdinaryText(corpus, 10**6, "file"), golden) == []


def test_text_that_the_model_writes_is_held_out_without_being_written_twice(golden, monkeypatch):
    monkeypatch.setattr("sphere_bench.models.sampling._TOKENS_A_TEXT", 8)
    text = OrdinaryText("generated", 100)
    first = list(islice(text.read(golden.loaded), 64))
    second = list(islice(text.held_out(golden.loaded), 64))
    assert len(set(first)) > 60 and set(first).isdisjoint(second)


def test_moments_of_held_out_text_are_those_of_its_tokens_and_cached(golden, tmp_path, monkeypatch):
    corpus = corpus_of(tmp_path, numbered(220))
    text = OrdinaryText(corpus, 600, "random")
    statistics = CachedStatistics(golden.loaded, [1], text, tmp_path / "cache", held_out=10**6)
    read_ones = statistics.second_moments()
    found = statistics.held_out_moments()
    assert not torch.allclose(found[1], read_ones[1], rtol=1e-3)
    own = OrdinaryText(corpus_of(tmp_path, held_out(text, golden)), 10**6, "file")
    expected = CachedStatistics(golden.loaded, [1], own, tmp_path / "cache").second_moments()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-7)
    corpus_of(tmp_path, numbered(220))
    monkeypatch.setattr(OrdinaryText, "held_out", lambda *_: pytest.fail("read again"))
    assert torch.equal(statistics.held_out_moments()[1], found[1])


def test_no_text_to_hold_out_is_a_line_and_no_error(golden, tmp_path, caplog):
    text = OrdinaryText(corpus_of(tmp_path, numbered(20)), 10**6, "file")
    statistics = CachedStatistics(golden.loaded, [1], text, tmp_path / "cache", held_out=100)
    assert statistics.held_out_moments() == {}
    assert "no text is left to check a null space on: name a larger" in caplog.text
    assert CachedStatistics(golden.loaded, [1], text, tmp_path).held_out_moments() == {}
    assert len(caplog.records) == 1


def test_the_energy_in_a_null_space_is_the_keys_share_of_squares():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 12, generator=generator, dtype=torch.float64)  # [n, d_in]
    other = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    moments = {3: keys.T @ keys / 40}
    bases = {3: NullSpace(0.3, "share").basis(moments[3], 3)}
    for found in (keys, other):
        share = ((found @ bases[3]) ** 2).sum() / (found**2).sum()
        assert energy_shares(bases, {3: found.T @ found / 40})[3] == pytest.approx(share.item())
    # The share rule bounds it.
    assert 0.2 < energy_shares(bases, moments)[3] <= 0.3
    assert energy_shares(bases, {}) == {}


def test_twice_the_energy_on_held_out_text_is_a_warning_with_the_mend(caplog):
    bases = {4: torch.eye(8)[:, :5], 5: torch.eye(8)[:, :2]}
    with caplog.at_level(logging.INFO):
        facts = compare_energies(bases, {4: 0.1, 5: 0.2}, {4: 0.199, 5: 0.401})
    *lines, warning = caplog.records
    assert [line.levelname for line in (*lines, warning)] == ["INFO", "INFO", "WARNING"]
    assert "layer 4: 5 of 8 directions, with 10.0 %" in lines[0].getMessage()
    assert "19.9 % on held-out text" in lines[0].getMessage()
    assert "layer 5 has more than twice" in warning.getMessage()
    assert "(20.0 -> 40.1 %): raise statistics.tokens" in warning.getMessage()
    assert facts == {
        "4": {"directions": 5, "own": 0.1, "held_out": 0.199},
        "5": {"directions": 2, "own": 0.2, "held_out": 0.401},
    }


def test_without_held_out_text_its_energy_is_not_known(caplog):
    with caplog.at_level(logging.INFO):
        facts = compare_energies({4: torch.eye(8)}, {4: 0.1}, {})
    assert facts["4"]["held_out"] is None
    assert "not measured on held-out text" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_an_editor_with_a_null_space_measures_it_once_and_another_one_asks_for_nothing(golden):
    asked = []

    def held_out_moments():
        asked.append(1)
        return {layer: golden.second_moments[layer] + torch.eye(1) for layer in LAYERS}

    setup = golden.setup(held_out_moments=held_out_moments)
    memit = EditingPipeline(LocateThenEdit(setup, LeastSquares(5.0)), setup)
    assert memit.facts() == {} and asked == []
    solver = LeastSquares(ridge=10, null_space=NullSpace(0.02, "share"))
    facts = EditingPipeline(LocateThenEdit(setup, solver), setup).facts()["null_space"]
    assert asked == [1]
    assert list(facts) == [str(layer) for layer in LAYERS]
    for layer in LAYERS:
        moment = golden.second_moments[layer].double()
        basis = NullSpace(0.02, "share").basis(moment, layer)
        expected = (basis.T @ (moment + 1) @ basis).trace() / (moment + torch.eye(1)).trace()
        assert facts[str(layer)]["held_out"] == pytest.approx(expected.item(), rel=1e-6)
        assert facts[str(layer)]["own"] <= 0.02


def test_an_editor_without_facts_has_none(golden):
    class Plain:
        def edit(self, batch: object) -> None: ...

    assert EditingPipeline(Plain(), golden.setup()).facts() == {}
