"""Copies some of a model's layers in another precision, for forwards that may be less exact."""

from collections.abc import Collection
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from sphere_bench.models.loading import LoadedModel


def with_layers_in(loaded: LoadedModel, layers: Collection[int], dtype: torch.dtype) -> LoadedModel:
    """The model with these decoder layers, and all modules outside the layers, in ``dtype``.

    Outside the layers are the embeddings, the final norm and the head. All these are copies; the
    other layers are shared with the model. If the model has that dtype, it is returned itself.
    """
    if dtype == loaded.dtype:
        return loaded
    kept = [
        module for layer, module in enumerate(loaded.layout.decoder_layers) if layer not in layers
    ]
    unchanged = {id(parameter) for module in kept for parameter in module.parameters()}
    memo: dict[int, Any] = {id(shared): shared for shared in (loaded.tokenizer, *kept)}
    for parameter in loaded.model.parameters():
        if id(parameter) not in unchanged:
            memo[id(parameter)] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return deepcopy(loaded, memo)
