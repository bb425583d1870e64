from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.contexts import BARE, OPENINGS, fixed_contexts, generated_contexts
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.sampling import sample_continuations, self_written_texts
from tests.tiny_models import tiny_model, with_bos


def test_samples_follow_the_seed_and_leave_the_global_one_alone() -> None:
    loaded = tiny_model("llama")
    starts = torch.tensor([[5], [6]])
    state = torch.get_rng_state()
    first = sample_continuations(loaded, starts, 6, seed=1, top_k=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample_continuations(loaded, starts, 6, seed=1, top_k=0) == first
    assert sample_continuations(loaded, starts, 6, seed=2, top_k=0) != first


def test_generated_contexts_are_templates_behind_the_bare_prompt() -> None:
    contexts = generated_contexts(tiny_model("gpt2"), 0, [[6, 5]])
    assert contexts[0] == BARE
    assert len(contexts) == 1 + len(OPENINGS)
    for context, opening in zip(contexts[1:], OPENINGS, strict=True):
        assert context.startswith(opening) and context.endswith(". {}")
        assert context.count("{") == 1
    assert generated_contexts(tiny_model("gpt2"), 0, [[6, 5]]) == contexts
    assert generated_contexts(tiny_model("gpt2"), 1, [[6, 5]]) != contexts


@pytest.mark.parametrize("bos", [False, True])
def test_a_length_counts_the_opening_word_and_a_bos(
    bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model("llama")
    if bos:
        loaded = replace(loaded, tokenizer=with_bos(loaded.tokenizer))
    ends = []

    def sampled(loaded: LoadedModel, starts: Tensor, tokens: int, **others: Any) -> list[str]:
        ends.append((len(starts), starts.shape[1] + tokens))
        assert (starts[0, 0] == loaded.tokenizer.bos_token_id) == bos
        return sample_continuations(loaded, starts, tokens, **others)

    monkeypatch.setattr("sphere_bench.editing.contexts.sample_continuations", sampled)
    contexts = generated_contexts(loaded, 0, [[8, 7], [11, 2]])
    # Seven of a length: two for each of the first two openings, and one for each of the others.
    assert ends == [(2, 8), (2, 8), (1, 8), (1, 8), (1, 8), (1, 11), (1, 11)]
    assert len(contexts) == len(set(contexts)) == 1 + 7 + 2
    # The longer ones do not begin like the shorter ones.
    assert not contexts[8].startswith(contexts[1].removesuffix(f". {BARE}"))


def test_an_opening_that_is_as_long_as_the_context_stands_alone() -> None:
    contexts = generated_contexts(tiny_model("llama"), 0, [[1, 5]])
    assert contexts == [BARE, *(f"{opening}. {BARE}" for opening in OPENINGS)]


def test_fixed_contexts_begin_with_the_bare_prompt_once() -> None:
    assert fixed_contexts(["I think. {}", "{}"]) == ["{}", "I think. {}"]
    with pytest.raises(SphereBenchError, match=r"'no place'.*exactly one"):
        fixed_contexts(["no place"])


def test_the_self_written_corpus_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sphere_bench.models.sampling._TOKENS_A_TEXT", 5)
    loaded = tiny_model("llama")
    texts = list(islice(self_written_texts(loaded), 40))  # more than one batch
    assert texts == list(islice(self_written_texts(loaded), 40))
    assert len(set(texts)) > 35
