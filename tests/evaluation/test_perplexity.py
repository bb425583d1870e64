import math
from typing import cast

import pytest
import torch

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.perplexity import Perplexity
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.models.loading import LoadedModel
from tests.tiny_models import VOCABULARY, tiny_model

TEXTS = ["The river runs through the old town.", "a", "Nobody knew why, and nobody asked again."]


def probe_of(
    loaded: LoadedModel, texts: list[str], tokens: int, tokens_per_batch: int = 4096
) -> Perplexity:
    weights = cast(EditedWeights, None)
    dataset = cast(EditDataset, None)
    setup = ProbeSetup(loaded, dataset, weights, 0, tokens_per_batch, lambda corpus, key: texts)
    return Perplexity(setup, tokens)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_it_is_that_of_the_models_own_loss(architecture: str, tokens_per_batch: int) -> None:
    loaded = tiny_model(architecture)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] > 1:
            total += loaded.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    found = probe_of(loaded, TEXTS, 10_000, tokens_per_batch).perplexity()
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabularys_size() -> None:
    loaded = tiny_model("llama")
    loaded.layout.head.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert probe_of(loaded, TEXTS, 20).perplexity() == pytest.approx(VOCABULARY, rel=1e-5)


def test_a_model_that_puts_out_nan_or_is_far_off_is_no_error() -> None:
    loaded = tiny_model("llama")
    probe = probe_of(loaded, TEXTS, 20)
    head: torch.Tensor = loaded.layout.head.weight.data  # type: ignore[union-attr, assignment]
    head.mul_(1e6)
    assert probe.perplexity() == math.inf
    head.fill_(math.nan)
    assert math.isnan(probe.perplexity())


@pytest.mark.parametrize("texts, tokens", [([], 10), (["a"], 1), (TEXTS, 1)])
def test_a_text_without_two_tokens_is_an_error(texts: list[str], tokens: int) -> None:
    with pytest.raises(SphereBenchError, match=rf"^perplexity\.tokens={tokens}: no text"):
        probe_of(tiny_model("gpt2"), texts, tokens)


def test_no_tokens_leave_it_out() -> None:
    assert probe_of(tiny_model("gpt2"), TEXTS, 0).measure(Moment(0, 0, 1, {})).step == {}
