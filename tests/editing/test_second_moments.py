import logging
from pathlib import Path

import pytest
import torch

from sphere_bench.editing.statistics import second_moments as statistics
from sphere_bench.editing.statistics.cache import default_cache_dir, load_or_compute
from sphere_bench.editing.statistics.second_moments import second_moments
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


def test_the_default_number_of_tokens_is_ten_for_every_dimension_of_a_key(llama):
    result = second_moments(llama, [0], TEXTS * 100)
    assert result.tokens == 10 * llama.layout.weight(0).shape[1]


def test_layers_behind_the_last_one_asked_for_are_not_run(llama):
    def fail(*_: object) -> None:
        raise AssertionError("a layer too many was run")

    llama.layout.decoder_layers[2].register_forward_pre_hook(fail)
    second_moments(llama, [0, 1], TEXTS, 20)


def test_a_corpus_that_ends_early_is_told(llama, caplog):
    with caplog.at_level(logging.INFO):
        second_moments(llama, [0], TEXTS[:1], 1000)
    assert "of 1000 tokens" in caplog.text
    assert "tokens/s" in caplog.text


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
    computed = load_or_compute(loaded, [0, 1], str(corpus), 50, tmp_path / "cache")
    forbid_forwards(loaded)
    cached = load_or_compute(loaded, [0, 1], str(corpus), 50, tmp_path / "cache")
    assert list(cached) == [0, 1]
    for layer in (0, 1):
        assert torch.equal(computed[layer], cached[layer])
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_where_model_and_corpus_lie_does_not_matter_to_the_cache(corpus, tmp_path):
    first = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    load_or_compute(first, [1], str(corpus), 30, tmp_path / "cache")
    link = tmp_path / "a-link--with-hyphens" / "v1.0"
    link.parent.mkdir()
    link.symlink_to(GOLDEN / "tiny-gpt2", target_is_directory=True)
    moved = tmp_path / "moved-corpus.txt"
    corpus.rename(moved)
    second = load_model(str(link), device="cpu")
    forbid_forwards(second)
    load_or_compute(second, [1], str(moved), 30, tmp_path / "cache")


@pytest.mark.parametrize("change", ["weights", "corpus", "tokens", "layers", "window", "precision"])
def test_a_change_of_what_the_moments_come_from_misses_the_cache(change, llama, corpus, tmp_path):
    cache = tmp_path / "cache"
    load_or_compute(llama, [0, 1], str(corpus), 30, cache)
    layers, tokens, window, precision = [0, 1], 30, 512, None
    if change == "weights":
        llama.layout.weight(0)[3, 4] += 1e-3
    elif change == "corpus":
        corpus.write_text("Another text altogether, of quite some length, for the same file.")
    elif change == "tokens":
        tokens = 31
    elif change == "layers":
        layers = [0, 2]
    elif change == "window":
        window = 16
    else:
        precision = torch.bfloat16
    load_or_compute(
        llama, layers, str(corpus), tokens, cache, max_length=window, precision=precision
    )
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "not safetensors"])
def test_a_damaged_cache_file_is_named_with_the_mend(damage, llama, corpus, tmp_path):
    load_or_compute(llama, [0], str(corpus), 30, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[-1000] ^= 1
    else:
        content = {"truncated": content[:-9], "empty": b"", "not safetensors": b"?" * 99}[damage]
    file.write_bytes(content)
    with pytest.raises(SphereBenchError, match=f"delete {file}"):
        load_or_compute(llama, [0], str(corpus), 30, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(llama, corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SphereBenchError, match=r"statistics\.cache"):
        load_or_compute(llama, [0], str(corpus), 30, tmp_path / "file" / "cache")


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


def test_a_self_written_corpus_is_cached_like_any_other(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_bench.models.sampling._TOKENS_A_TEXT", 8)
    moments = load_or_compute(llama, [0], "generated", 100, tmp_path)

    def never(*arguments):
        raise AssertionError("the moments are in the cache")

    monkeypatch.setattr("sphere_bench.editing.statistics.second_moments.self_written_texts", never)
    again = load_or_compute(llama, [0], "generated", 100, tmp_path)
    assert torch.equal(again[0], moments[0])
