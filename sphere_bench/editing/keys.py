"""Keys of a batch at one layer, and what the last edited layer says now."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import BARE, PromptTokens, prompt_up_to_subject
from sphere_bench.models.batching import backing_off, pad_right, token_batches
from sphere_bench.models.hooks import capture
from sphere_bench.models.loading import LoadedModel


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
    bare = [prompt_up_to_subject(loaded.tokenizer, request) for request in requests]
    keys, hidden = backing_off(
        lambda tokens: _last_token_states(loaded, bare, layer, value_layer, tokens),
        tokens_per_batch,
    )
    assert hidden is not None
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
    keys, _ = backing_off(
        lambda tokens: _last_token_states(loaded, prompts, layer, None, tokens), tokens_per_batch
    )
    return keys.view(len(requests), len(contexts), -1)


def projection_output_norms(
    loaded: LoadedModel, requests: Sequence[EditRequest], layer: int, tokens_per_batch: int
) -> Tensor:
    """Norms of what ``layer``'s projection says at the subjects in the bare prompts, [n]."""
    prompts = [prompt_up_to_subject(loaded.tokenizer, request) for request in requests]
    module = {layer: loaded.layout.projection(layer)}
    norms: dict[int, Tensor] = {}
    for group in token_batches([len(prompt.ids) for prompt in prompts], tokens_per_batch):
        tokens = pad_right([prompts[index].ids for index in group]).to(loaded.device)
        with torch.no_grad(), capture(module, "output", stop=True) as outputs:
            loaded.model.base_model(input_ids=tokens, use_cache=False)
        for row, index in enumerate(group):
            norms[index] = outputs[layer][row, prompts[index].subject_last].float().norm()
    return torch.stack([norms[index] for index in range(len(prompts))])


def _last_token_states(
    loaded: LoadedModel,
    prompts: Sequence[PromptTokens],
    layer: int,
    value_layer: int | None,
    tokens_per_batch: int,
) -> tuple[Tensor, Tensor | None]:
    """Inputs of ``layer``'s projection [n, d_in], and outputs of ``value_layer`` [n, d_model] where
    it is asked for, at each prompt's last token."""
    layout = loaded.layout
    keys: dict[int, Tensor] = {}
    hidden: dict[int, Tensor] = {}
    for group in token_batches([len(prompt.ids) for prompt in prompts], tokens_per_batch):
        tokens = pad_right([prompts[index].ids for index in group]).to(loaded.device)
        rows = torch.arange(len(group), device=loaded.device)
        last = torch.tensor([prompts[index].subject_last for index in group], device=loaded.device)
        projection = {layer: layout.projection(layer)}
        stop_at = {} if value_layer is None else {value_layer: layout.decoder_layers[value_layer]}
        with (
            torch.no_grad(),
            capture(projection, "input", stop=value_layer is None) as inputs,
            capture(stop_at, "output", stop=True) as outputs,
        ):
            loaded.model.base_model(input_ids=tokens, use_cache=False)
        keys.update(zip(group, inputs[layer][rows, last].float(), strict=True))
        if value_layer is not None:
            hidden.update(zip(group, outputs[value_layer][rows, last].float(), strict=True))
    order = range(len(prompts))
    return (
        torch.stack([keys[index] for index in order]),
        torch.stack([hidden[index] for index in order]) if value_layer is not None else None,
    )
