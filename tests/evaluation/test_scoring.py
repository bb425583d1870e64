"""Scores against the plain reference, and what batching must not change."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import normalizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.scoring import score_targets
from sphere_bench.models.loading import LoadedModel, wrap_model
from tests.evaluation.fake_model import FakeModel, fake_model
from tests.evaluation.tokenizer_families import build
from tests.reference.scoring import score_record

PAIRS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("The mother tongue of Danielle Darrieux is", "Serbian"),
    ("What sport does she play?", "professional basketball"),
    ("What sport does she play?", "professional football"),
    ("It was built by", "Bethlehem Steel in San Francisco"),
    ("It was built by", "Bethlehem"),
    ("Which", "ship"),
]


def random_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    if architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4))
    # Freshly initialised weights are so small that every token is nearly as likely as the next.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    return model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    tokenizer = build("byte-level-bos", "left")
    return wrap_model(random_model(request.param, len(tokenizer)), tokenizer)


def test_scores_are_those_of_the_plain_reference(loaded: LoadedModel) -> None:
    for pair, score in zip(PAIRS, score_targets(loaded, PAIRS), strict=True):
        # One pair at a time: no padding at all.
        (expected,) = score_record(loaded, [pair])
        assert score.nll == pytest.approx(expected.nll, abs=2e-6)
        assert score.matches == expected.matches


def test_scores_in_double_precision_are_exact(loaded: LoadedModel) -> None:
    loaded.model.double()
    try:
        scores = zip(score_targets(loaded, PAIRS), score_record(loaded, PAIRS), strict=True)
        for score, expected in scores:
            assert score.nll == pytest.approx(expected.nll, abs=1e-6)
    finally:
        loaded.model.float()


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_batches_do_not_change_scores(loaded: LoadedModel, tokens_per_batch: int) -> None:
    reference = score_targets(loaded, PAIRS)
    batched = score_targets(loaded, PAIRS[::-1], tokens_per_batch)[::-1]
    for score, expected in zip(batched, reference, strict=True):
        assert score.nll == pytest.approx(expected.nll, abs=5e-6)
        assert score.matches == expected.matches


def test_the_same_pair_twice_has_the_same_score(loaded: LoadedModel) -> None:
    first, second = score_targets(loaded, [PAIRS[0], PAIRS[0]])
    assert first == second


def test_no_pairs_no_scores(loaded: LoadedModel) -> None:
    assert score_targets(loaded, []) == []


def test_targets_of_one_token_share_their_prompts_row() -> None:
    tokenizer = build("byte-level", "right")
    loaded = fake_model(tokenizer, [])
    model = loaded.model
    assert isinstance(model, FakeModel)
    score_targets(loaded, [("Which", "a"), ("Which", "b"), ("Which", "a"), ("What", "a")])
    assert model.rows == 2


def test_a_row_that_begins_another_is_not_run() -> None:
    tokenizer = build("byte-level", "right")
    loaded = fake_model(tokenizer, ["It was built by Bethlehem Steel"])
    model = loaded.model
    assert isinstance(model, FakeModel)
    pairs = [
        ("It was built by", "Bethlehem Steel"),
        ("It was built", "by"),
        ("It was built by", "Bethlehem"),
    ]
    assert all(all(score.matches) for score in score_targets(loaded, pairs))
    assert model.rows == 1


def test_a_model_that_puts_out_nan_matches_nothing() -> None:
    def to_nan(module: nn.Module, inputs: object, output: SimpleNamespace) -> None:
        output.logits.fill_(math.nan)

    loaded = fake_model(build("byte-level", "right"), [])
    loaded.model.register_forward_hook(to_nan)
    # Among NaN alone the argmax is the first token, and the target ends with that one.
    (score,) = score_targets(loaded, [("Which", "ship<pad>")])
    assert math.isnan(score.nll)
    assert not any(score.matches)


@pytest.mark.parametrize(("lost", "part"), [("ship", "target"), ("Which", "prompt")])
def test_a_prompt_or_target_that_the_tokenizer_drops_is_named(lost: str, part: str) -> None:
    tokenizer = build("byte-level", "right")
    backend = cast(Any, tokenizer).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace(lost, ""), normalizers.Strip()])
    with pytest.raises(SphereBenchError, match=f"no token of the {part} in 'Which', 'ship'"):
        score_targets(fake_model(tokenizer, []), [("Which", "ship")])
