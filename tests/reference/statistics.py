"""Second moments of keys as published: one layer, one text at a time."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sphere_bench.models.hooks import capture
from sphere_bench.models.loading import LoadedModel


@torch.no_grad()
def second_moment(loaded: LoadedModel, layer: int, texts: Iterable[Sequence[int]]) -> Tensor:
    """C [d_in, d_in] over all tokens of the texts, summed in float32 as published."""
    width = loaded.layout.weight(layer).shape[1]
    total = torch.zeros(width, width, device=loaded.device)
    count = 0
    for ids in texts:
        with capture({0: loaded.layout.projection(layer)}, "input", stop=True) as captured:
            loaded.model(input_ids=torch.tensor([ids], device=loaded.device), use_cache=False)
        keys = captured[0][0].float()
        total += keys.T @ keys
        count += len(keys)
    return total.double() / count
