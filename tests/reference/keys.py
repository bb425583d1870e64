"""Keys and hidden states as published: whole forwards, anew for every layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import BARE, prompt_up_to_subject
from sphere_bench.models.batching import pad_right
from sphere_bench.models.hooks import capture
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode


def keys_at(
    loaded: LoadedModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Tensor:
    """Keys [d_in, n]: the bare prompt and the mean of all other contexts weigh half each."""
    projection = loaded.layout.projection(layer)
    keys = []
    for request in requests:
        behind = _subject_states(loaded, request, contexts, projection, "input")  # [contexts, d_in]
        bare = [context == BARE for context in contexts]
        groups = [behind[torch.tensor(bare)], behind[~torch.tensor(bare)]]
        keys.append(torch.stack([group.mean(dim=0) for group in groups if len(group)]).mean(dim=0))
    return torch.stack(keys, dim=1)


def hidden_at(loaded: LoadedModel, requests: Sequence[EditRequest], layer: int) -> Tensor:
    """What ``layer`` says at the subjects' last tokens in the bare prompts, [d_model, n]."""
    module = loaded.layout.decoder_layers[layer]
    states = [_subject_states(loaded, request, [BARE], module, "output") for request in requests]
    return torch.cat(states).T


@torch.no_grad()
def _subject_states(
    loaded: LoadedModel,
    request: EditRequest,
    contexts: Sequence[str],
    module: nn.Module,
    side: Literal["input", "output"],
) -> Tensor:
    """One request's states at the subject's last token, [contexts, width] in float32."""
    texts = [context.replace(BARE, request.prompt) for context in contexts]
    rows = [encode(loaded.tokenizer, text).ids for text in texts]
    places = [
        prompt_up_to_subject(loaded.tokenizer, request, context).subject_last
        for context in contexts
    ]
    with capture({0: module}, side) as captured:
        loaded.model(input_ids=pad_right(rows).to(loaded.device), use_cache=False)
    return captured[0][range(len(rows)), places].float()
