"""Keys of a batch at one layer, and what the last edited layer says now."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import BARE, PromptTokens, prompt_up_to_subject
from sphere_bench.models.batching import backing_off, pad_right, token_batches
from sphere_bench.models.hooks import capture
from sphere_bench.models.loading import LoadedModel

# A module, and which side of it is read.
Site = tuple[nn.Module, Literal["input", "output"]]


class Measurement(NamedTuple):
    """What the model says at the subjects' last tokens of n requests.

    Attributes:
        keys: inputs of one layer's projection, [d_in, n].
        hidden: outputs of the last edited layer in the bare prompts, [d_model, n].
    """

    keys: Tensor
    hidden: Tensor


def measure(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    value_layer: int,
    contexts: Sequence[str],
    tokens_per_batch: int,
) -> Measurement:
    """Keys at ``layer`` and hidden states at ``value_layer`` on the model as it is now.

    A key is a mean over contexts: the bare prompt and the mean of all others weigh half each.

    Args:
        loaded: the model.
        requests: n edits.
        layer: the layer whose projection is about to be edited.
        value_layer: z, the last edited layer.
        contexts: templates with one ``{}``, the first of them the bare prompt.
        tokens_per_batch: padded tokens in one forward.
    """
    layout = loaded.layout
    sites: list[Site] = [
        (layout.projection(layer), "input"),
        (layout.decoder_layers[value_layer], "output"),
    ]
    bare = [prompt_up_to_subject(loaded.tokenizer, request) for request in requests]
    keys, hidden = _last_token_states(loaded, bare, sites, tokens_per_batch)
    others = [context for context in contexts if context != BARE]
    if others:
        behind = context_keys(loaded, requests, layer, others, tokens_per_batch)
        keys = (keys + behind.mean(dim=1)) / 2
    return Measurement(keys.T, hidden.T)


def context_keys(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    tokens_per_batch: int,
) -> Tensor:
    """Keys at ``layer`` behind every context, [n, contexts, d_in]."""
    prompts = [
        prompt_up_to_subject(loaded.tokenizer, request, context)
        for request in requests
        for context in contexts
    ]
    sites: list[Site] = [(loaded.layout.projection(layer), "input")]
    (keys,) = _last_token_states(loaded, prompts, sites, tokens_per_batch)
    return keys.view(len(requests), len(contexts), -1)


def projection_output_norms(
    loaded: LoadedModel, requests: Sequence[EditRequest], layer: int, tokens_per_batch: int
) -> Tensor:
    """Norms of what ``layer``'s projection says at the subjects in the bare prompts, [n]."""
    prompts = [prompt_up_to_subject(loaded.tokenizer, request) for request in requests]
    sites: list[Site] = [(loaded.layout.projection(layer), "output")]
    (outputs,) = _last_token_states(loaded, prompts, sites, tokens_per_batch)
    return outputs.norm(dim=1)


def _last_token_states(
    loaded: LoadedModel,
    prompts: Sequence[PromptTokens],
    sites: Sequence[Site],
    tokens_per_batch: int,
) -> list[Tensor]:
    """What passes each site at the prompts' last tokens, [n, width] each, in float32.

    The sites are in the order in which a forward reaches them; it ends at the last one.
    """

    def read(tokens: int) -> list[Tensor]:
        groups = token_batches([len(prompt.ids) for prompt in prompts], tokens)
        parts = [
            _read_group(loaded, [prompts[index] for index in group], sites) for group in groups
        ]
        order = torch.tensor([index for group in groups for index in group]).argsort()
        return [torch.cat(states)[order.to(loaded.device)] for states in zip(*parts, strict=True)]

    return backing_off(read, tokens_per_batch)


def _read_group(
    loaded: LoadedModel, prompts: Sequence[PromptTokens], sites: Sequence[Site]
) -> list[Tensor]:
    rows = torch.arange(len(prompts), device=loaded.device)
    last = torch.tensor([prompt.subject_last for prompt in prompts], device=loaded.device)
    with torch.no_grad(), ExitStack() as stack:
        seen = [
            stack.enter_context(capture({0: module}, side, stop=index == len(sites) - 1))
            for index, (module, side) in enumerate(sites)
        ]
        tokens = pad_right([prompt.ids for prompt in prompts]).to(loaded.device)
        loaded.model.base_model(input_ids=tokens, use_cache=False)
    return [captured[0][rows, last].float() for captured in seen]
