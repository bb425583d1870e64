import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sphere_bench.editing.statistics import second_moments as statistics
from sphere_bench.editing.statistics.cache import CachedStatistics, default_cache_dir
from sphere_bench.editing.statistics.second_moments import second_moments, token_count
from sphere_bench.editing.statistics.texts import OrdinaryText
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.fingerprint import model_fingerprint
from sphere_bench.models.loading import LoadedModel, load_model
from tests.reference.statistics import second_moment

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = [
    "The river runs through the old town and under two bridges.",
    "Nobody knew why.",
    "However, it is known that the tower was built by a merchant from the coast, and that his "
    "sons sold it again when the harbour filled with sand and the ships no longer came.",
    "Because of this, it rained all day.",
    "I think that the language of the island is older than its name.",
]


@pytest.fixture(params=["tiny-llama", "tiny-gpt2"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(str(GOLDEN / request.param), device="cpu")


@pytest.fixture
def llama() -> LoadedModel:
    return load_model(str(GOLDEN / "tiny-llama"), device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(TEXTS), "utf-8")
    return file


def windows(loaded: LoadedModel, tokens: int, max_length: int) -> list[list[int]]:
    """The first ``tokens`` tokens of the texts, each text in rows of at most ``max_length``."""
    cut: list[list[int]] = []
    for text in TEXTS:
        ids = loaded.tokenizer(text)["input_ids"][: tokens - sum(map(len, cut))]
        cut += [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return cut


def cached(
    loaded: LoadedModel, layers: Sequence[int], corpus: object, tokens: int, folder: Path
) -> dict[int, torch.Tensor]:
    text = OrdinaryText(str(corpus), tokens, order="file")
    return CachedStatistics(loaded, layers, text, folder).second_moments()


def forbid_forwards(loaded: LoadedModel) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the model was run")

    loaded.model.base_model.register_forward_pre_hook(fail)


@pytest.mark.parametrize("tokens", [1, 17, 60, 10_000])
@pytest.mark.parametrize("max_length", [7, 512])
def test_moments_equal_the_plain_references_over_exactly_the_tokens_asked_for(
    loaded, tokens, max_length
):
    result = second_moments(loaded, [0, 2], TEXTS, tokens, max_length=max_length)
    texts = windows(loaded, tokens, max_length)
    for layer in (0, 2):
        expected = second_moment(loaded, layer, texts)
        moment = result.moments[layer]
        assert moment.dtype == torch.float64
        assert (moment - expected).norm() < 1e-6 * expected.norm()
    assert result.tokens == sum(map(len, texts))
    if tokens < 100:
        assert result.tokens == tokens


@pytest.mark.parametrize("tokens_per_batch", [1, 20, 64])
def test_moments_do_not_depend_on_the_batch_size(loaded, tokens_per_batch):
    small = second_moments(loaded, [1], TEXTS, 80, tokens_per_batch=tokens_per_batch)
    large = second_moments(loaded, [1], TEXTS, 80)
    assert small.tokens == large.tokens
    torch.testing.assert_close(small.moments[1], large.moments[1], rtol=1e-5, atol=1e-7)


def test_moments_do_not_change_when_memory_runs_out_halfway(llama):
    expected = second_moments(llama, [0, 1], TEXTS, 90).moments
    calls = 0

    def out_of_memory_once(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("CUDA out of memory.")

    llama.layout.projection(1).register_forward_pre_hook(out_of_memory_once)
    result = second_moments(llama, [0, 1], TEXTS, 90, tokens_per_batch=50)
    assert result.tokens == 90
    for layer, moment in expected.items():
        torch.testing.assert_close(result.moments[layer], moment, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tokens_in_single", [1, 30])
def test_moments_do_not_depend_on_how_long_sums_stay_in_single_precision(
    loaded, monkeypatch, tokens_in_single
):
    expected = second_moments(loaded, [0, 1], TEXTS, 90).moments
    flushes = 0
    flush = statistics._KeySums._flush

    def counted(sums):
        nonlocal flushes
        flushes += 1
        flush(sums)

    monkeypatch.setattr(statistics, "_TOKENS_IN_SINGLE", tokens_in_single)
    monkeypatch.setattr(statistics, "_ROWS_OF_SUMS", 100)
    monkeypatch.setattr(statistics._KeySums, "_flush", counted)
    result = second_moments(loaded, [0, 1], TEXTS, 90, tokens_per_batch=20)
    assert flushes > 2
    for layer, moment in expected.items():
        torch.testing.assert_close(result.moments[layer], moment, rtol=1e-5, atol=1e-7)


def test_keys_are_never_added_twice_when_memory_runs_out_while_they_are_added(llama, monkeypatch):
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "addmm_", out_of_memory)
    with pytest.raises(SphereBenchError, match=r"lower statistics\.tokens_per_batch"):
        second_moments(llama, [0, 1], TEXTS, 90)


def test_keys_of_a_bfloat16_forward_give_nearly_the_same_moments(loaded):
    expected = second_moments(loaded, [0, 1], TEXTS, 90).moments
    result = second_moments(loaded, [0, 1], TEXTS, 90, precision=torch.bfloat16)
    for layer, moment in expected.items():
        found = result.moments[layer]
        assert found.dtype == torch.float64
        assert 1e-6 * moment.norm() < (found - moment).norm() < 2e-2 * moment.norm()
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_without_a_number_there_are_so_many_tokens_for_every_dimension_of_a_key(llama):
    assert token_count(llama, [0, 2], None, 10) == 10 * llama.layout.weight(0).shape[1]
    assert token_count(llama, [0, 2], 7, 10) == 7


def test_of_a_long_text_only_its_beginning_is_read(loaded, corpus, tmp_path):
    texts = [loaded.tokenizer(text)["input_ids"][:6] for text in TEXTS]
    expected = second_moment(loaded, 1, texts)
    result = second_moments(loaded, [1], TEXTS, 10_000, tokens_per_text=6)
    assert result.tokens == sum(map(len, texts)) < sum(map(len, windows(loaded, 10_000, 512)))
    text = OrdinaryText(str(corpus), 10_000, order="file", tokens_per_text=6)
    found = CachedStatistics(loaded, [1], text, tmp_path / "cache").second_moments()
    for moment in (result.moments[1], found[1]):
        assert (moment - expected).norm() < 1e-6 * expected.norm()


def test_layers_behind_the_last_one_asked_for_are_not_run(llama):
    def fail(*_: object) -> None:
        raise AssertionError("a layer too many was run")

    llama.layout.decoder_layers[2].register_forward_pre_hook(fail)
    second_moments(llama, [0, 1], TEXTS, 20)


def test_a_corpus_that_ends_early_is_named_at_every_run(llama, corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        cached(llama, [0], corpus, 1000, tmp_path / "cache")
    assert "tokens/s" in caplog.text
    for _ in range(2):
        assert "of 1000 tokens: name a larger statistics.corpus" in caplog.text
        caplog.clear()
        cached(llama, [0], corpus, 1000, tmp_path / "cache")


def test_no_text_is_an_error(llama):
    with pytest.raises(SphereBenchError, match=r"statistics\.corpus"):
        second_moments(llama, [0], [], 10)


def test_keys_that_are_not_finite_are_an_error(llama):
    llama.layout.projection(0).register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] * float("inf"),), prepend=True
    )
    with pytest.raises(SphereBenchError, match="not finite"):
        second_moments(llama, [0], TEXTS, 10)


def test_cached_moments_are_the_computed_ones_and_need_no_forward(loaded, corpus, tmp_path):
    computed = cached(loaded, [0, 1], corpus, 50, tmp_path / "cache")
    forbid_forwards(loaded)
    again = cached(loaded, [0, 1], corpus, 50, tmp_path / "cache")
    assert list(again) == [0, 1]
    for layer in (0, 1):
        assert torch.equal(computed[layer], again[layer])
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_where_model_and_corpus_lie_does_not_matter_to_the_cache(corpus, tmp_path):
    first = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    cached(first, [1], corpus, 30, tmp_path / "cache")
    link = tmp_path / "a-link--with-hyphens" / "v1.0"
    link.parent.mkdir()
    link.symlink_to(GOLDEN / "tiny-gpt2", target_is_directory=True)
    moved = tmp_path / "moved-corpus.txt"
    corpus.rename(moved)
    second = load_model(str(link), device="cpu")
    forbid_forwards(second)
    cached(second, [1], moved, 30, tmp_path / "cache")


CHANGES = {
    "tokens": {"tokens": 31},
    "window": {"max_length": 16},
    "order": {"order": "random"},
    "limit of a text": {"tokens_per_text": 20},
}


@pytest.mark.parametrize("change", ["weights", "corpus", "layers", "precision", *CHANGES])
def test_a_change_of_what_the_moments_come_from_misses_the_cache(change, llama, corpus, tmp_path):
    cache = tmp_path / "cache"
    text = OrdinaryText(str(corpus), 30, order="file")
    CachedStatistics(llama, [0, 1], text, cache).second_moments()
    layers, precision = [0, 1], None
    if change == "weights":
        llama.layout.weight(0)[3, 4] += 1e-3
    elif change == "corpus":
        corpus.write_text("Another text altogether, of quite some length, for the same file.")
    elif change == "layers":
        layers = [0, 2]
    elif change == "precision":
        precision = torch.bfloat16
    text = replace(text, **CHANGES.get(change, {}))
    CachedStatistics(llama, layers, text, cache, precision=precision).second_moments()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "not safetensors"])
def test_a_damaged_cache_file_is_named_with_the_mend(damage, llama, corpus, tmp_path):
    cached(llama, [0], corpus, 30, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[-1000] ^= 1
    else:
        content = {"truncated": content[:-9], "empty": b"", "not safetensors": b"?" * 99}[damage]
    file.write_bytes(content)
    with pytest.raises(SphereBenchError, match=f"delete {file}"):
        cached(llama, [0], corpus, 30, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(llama, corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SphereBenchError, match=r"statistics\.cache"):
        cached(llama, [0], corpus, 30, tmp_path / "file" / "cache")


def test_the_default_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPHERE_BENCH_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "statistics"
    monkeypatch.delenv("SPHERE_BENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "sphere-bench" / "statistics"


def test_a_models_fingerprint_is_its_content(llama):
    again = load_model(str(GOLDEN / "tiny-llama"), device="cpu")
    assert model_fingerprint(again) == model_fingerprint(llama)
    again.model.config.rms_norm_eps = 1e-3
    assert model_fingerprint(again) != model_fingerprint(llama)
    other = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    assert model_fingerprint(other) != model_fingerprint(llama)


def test_a_self_written_corpus_is_cached_by_what_decides_its_text(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_bench.models.sampling._TOKENS_A_TEXT", 8)
    moments = cached(llama, [0], "generated", 100, tmp_path)

    def never(*arguments):
        raise AssertionError("text is written again")

    monkeypatch.setattr("sphere_bench.editing.statistics.texts.self_written_texts", never)
    # Written texts are in no file, so they have no other order.
    text = OrdinaryText("generated", 100, order="random")
    again = CachedStatistics(llama, [0], text, tmp_path).second_moments()
    assert torch.equal(again[0], moments[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(AssertionError, match="written again"):
        cached(llama, [0], "generated", 100, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("sphere_bench.editing.statistics.texts.self_written_texts", never)
    monkeypatch.setattr("sphere_bench.editing.statistics.texts.device_kind", lambda _: "a GPU")
    with pytest.raises(AssertionError, match="written again"):
        cached(llama, [0], "generated", 100, tmp_path)


def test_threads_and_device_do_not_matter_to_the_cache_of_any_other_text(
    llama, corpus, tmp_path, monkeypatch
):
    cached(llama, [0], corpus, 30, tmp_path / "cache")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr("sphere_bench.editing.statistics.texts.device_kind", lambda _: "a GPU")
    forbid_forwards(llama)
    cached(llama, [0], corpus, 30, tmp_path / "cache")
