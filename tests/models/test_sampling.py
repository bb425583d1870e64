from itertools import islice

import pytest
import torch

from sphere_bench.editing.contexts import BARE, OPENINGS, fixed_contexts, generated_contexts
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.sampling import sample_continuations, self_written_texts
from tests.tiny_models import tiny_model


def test_samples_follow_the_seed_and_leave_the_global_one_alone() -> None:
    loaded = tiny_model("llama")
    starts = torch.tensor([[5], [6]])
    state = torch.get_rng_state()
    first = sample_continuations(loaded, starts, 6, seed=1, top_k=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample_continuations(loaded, starts, 6, seed=1, top_k=0) == first
    assert sample_continuations(loaded, starts, 6, seed=2, top_k=0) != first


def test_generated_contexts_are_templates_behind_the_bare_prompt() -> None:
    contexts = generated_contexts(tiny_model("gpt2"), seed=0, tokens=4)
    assert contexts[0] == BARE
    assert len(contexts) == 1 + len(OPENINGS)
    for context, opening in zip(contexts[1:], OPENINGS, strict=True):
        assert context.startswith(opening) and context.endswith(". {}")
        assert context.count("{") == 1
    assert generated_contexts(tiny_model("gpt2"), seed=0, tokens=4) == contexts


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
