"""A causal model that says what it is told to, with the interface that scoring needs."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sphere_bench.models.loading import LoadedModel

TOLD, OTHER = 20.0, -20.0


class FakeModel(nn.Module):
    """Behind each known beginning of a text, one token stands out: likely, or impossible."""

    def __init__(self, continuations: dict[tuple[int, ...], int], vocabulary: int, level: float):
        super().__init__()
        self.head = nn.Identity()
        self.rows = 0
        self._continuations = continuations
        self._vocabulary = vocabulary
        self._level = level

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        self.rows += len(input_ids)
        logits = torch.zeros(*input_ids.shape, self._vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for column in range(len(ids)):
                token = self._continuations.get(tuple(ids[: column + 1]))
                if token is not None:
                    logits[row, column, token] = self._level
        return SimpleNamespace(logits=self.head(logits))


def fake_model(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, obedient: bool = True
) -> LoadedModel:
    """A model that goes on with exactly ``texts``, or, if not obedient, never does.

    It knows the texts by the tokens that the tokenizer itself gives them, its EOS left away.
    """
    continuations: dict[tuple[int, ...], int] = {}
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if ids[-1] == tokenizer.eos_token_id:
            del ids[-1]
        for end in range(1, len(ids)):
            # Texts part inside their prompts, where nobody asks; the first one is as good as any.
            continuations.setdefault(tuple(ids[:end]), ids[end])
    model = FakeModel(continuations, len(tokenizer), TOLD if obedient else OTHER)
    layout = SimpleNamespace(head=model.head)
    device = torch.device("cpu")
    return cast(
        LoadedModel,
        SimpleNamespace(model=model, tokenizer=tokenizer, layout=layout, device=device),
    )
