"""A causal model that says what it is told to, with the interface that scoring needs."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.team import Team

TOLD, OTHER = 20.0, -20.0


class FakeCache:
    """Keeps the tokens that each row of a batch has had so far; the only entry of its layers."""

    def __init__(self, rows: list[tuple[int, ...]]) -> None:
        self.rows = rows
        self.layers = [self]
        self.keys = torch.empty(0)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.rows = [self.rows[index] for index in indices.tolist()]


class FakeModel(nn.Module):
    """Behind each known beginning of a text, one token stands out: likely, or impossible."""

    def __init__(self, continuations: dict[tuple[int, ...], int], vocabulary: int, level: float):
        super().__init__()
        self.head = nn.Identity()
        self.rows = 0
        self._continuations = continuations
        self._vocabulary = vocabulary
        self._level = level

    def forward(
        self, input_ids: Tensor, use_cache: bool, past_key_values: FakeCache | None = None
    ) -> SimpleNamespace:
        self.rows += len(input_ids)
        logits = torch.zeros(*input_ids.shape, self._vocabulary)
        past = past_key_values.rows if past_key_values else [()] * len(input_ids)
        seen = [(*before, *ids) for before, ids in zip(past, input_ids.tolist(), strict=True)]
        for row, ids in enumerate(seen):
            for column in range(input_ids.shape[1]):
                token = self._continuations.get(ids[: len(past[row]) + column + 1])
                if token is not None:
                    logits[row, column, token] = self._level
        cache = FakeCache(seen) if use_cache else None
        return SimpleNamespace(logits=self.head(logits), past_key_values=cache)


def fake_model(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    obedient: bool = True,
    ending: bool = False,
) -> LoadedModel:
    """A model that goes on with exactly ``texts``, or, if not obedient, never does.

    It knows the texts by the tokens that the tokenizer itself gives them, its EOS left away. With
    ``ending`` it says its EOS behind a text, otherwise it goes on with the token 0.
    """
    continuations: dict[tuple[int, ...], int] = {}
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if ids[-1] == tokenizer.eos_token_id:
            del ids[-1]
        for end in range(1, len(ids)):
            # Texts part inside their prompts, where nobody asks; the first one is as good as any.
            continuations.setdefault(tuple(ids[:end]), ids[end])
        if ending:
            continuations.setdefault(tuple(ids), tokenizer.eos_token_id)
    model = FakeModel(continuations, len(tokenizer), TOLD if obedient else OTHER)
    layout = SimpleNamespace(head=model.head)
    device = torch.device("cpu")
    return cast(
        LoadedModel,
        SimpleNamespace(
            model=model,
            tokenizer=tokenizer,
            layout=layout,
            device=device,
            positions=None,
            team=Team(),
        ),
    )
