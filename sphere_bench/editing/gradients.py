"""Inputs of projections and gradients at their outputs, where a target token is predicted."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.geometry.energy import as_double
from sphere_bench.models.batching import launch_price, pad_right, token_batches
from sphere_bench.models.hooks import capture, probe_outputs, select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import Continuation


class ProjectionRows(NamedTuple):
    """What is read at the m positions that predict a target token.

    Attributes:
        owners: index of each position's text, m.
        layers: each layer's h [m, d_in], the input of its projection, and g [m, d_out], the
            gradient of the loss at the projection's output; in double precision.
    """

    owners: list[int]
    layers: dict[int, tuple[Tensor, Tensor]]


def projection_rows(
    loaded: LoadedModel,
    layers: Sequence[int],
    texts: Sequence[Continuation],
    shares: Tensor,
    tokens_per_batch: int,
) -> ProjectionRows:
    """Read the present model.

    Args:
        loaded: the model.
        layers: decoder layers.
        texts: n texts, each with at least one token before its target.
        shares: of each text, [n]: the loss is the sum of shares times NLLs of target tokens.
        tokens_per_batch: padded tokens in one forward.
    """
    projections = {layer: loaded.layout.projection(layer) for layer in layers}
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    owners: list[int] = []
    lengths = [len(text.ids) - 1 for text in texts]
    for group in token_batches(lengths, tokens_per_batch, launch_price(loaded.device)):
        places = [
            (row, column, texts[index].ids[column + 1], index)
            for row, index in enumerate(group)
            for column in texts[index].predicting
        ]
        owners += [index for *_, index in places]
        rows, columns, targets, indices = torch.tensor(places, device=loaded.device).T
        tokens = pad_right([texts[index].ids[:-1] for index in group]).to(loaded.device)
        with (
            capture(projections, "input") as inputs,
            probe_outputs(projections) as probes,
            select_positions(loaded.layout.head, rows, columns),
        ):
            output = loaded.model(input_ids=tokens, use_cache=False)
        nll = functional.cross_entropy(output.logits.squeeze(0).float(), targets, reduction="none")
        loss = (nll * shares.to(nll)[indices]).sum()
        gradients = torch.autograd.grad(loss, [probes[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            own = rows.to(gradient.device), columns.to(gradient.device)
            hidden = as_double(inputs[layer].detach()[own])
            found[layer].append((hidden, as_double(gradient[own])))
    return ProjectionRows(
        owners,
        {
            layer: (torch.cat([hidden for hidden, _ in pairs]), torch.cat([g for _, g in pairs]))
            for layer, pairs in found.items()
        },
    )
