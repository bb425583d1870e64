"""Keys and values of common beginnings, and forwards in two halves.

Layer z divides a model: the layers up to z, and the layers above, which may have another precision.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from sphere_bench.models.hooks import capture, start_after
from sphere_bench.models.loading import LoadedModel

KeysValues: TypeAlias = tuple[Tensor, Tensor]  # of one layer


@dataclass(frozen=True)
class Stems:
    """Beginnings that many rows have in common; they are run once.

    Attributes:
        lengths: tokens of each of n stems.
        lower: keys and values of the layers up to z, each [n, heads, longest, d_head].
        upper: those of the layers above.
    """

    lengths: list[int]
    lower: list[KeysValues]
    upper: list[KeysValues]

    @classmethod
    def build(
        cls, loaded: LoadedModel, stems: Sequence[Sequence[int]], layer: int, upper: LoadedModel
    ) -> "Stems":
        """Run ``stems`` (token ids) with ``loaded`` up to ``layer``, and with ``upper`` above."""
        lengths = [len(stem) for stem in stems]
        if not any(lengths):
            return cls(lengths, [], [])
        inputs = padded_inputs(stems, [0] * len(stems), loaded.device)
        cache = DynamicCache()
        hidden = run_lower(loaded, layer, inputs, cache)
        return cls(lengths, _entries(cache), run_upper(upper, layer, hidden, inputs, []))


def padded_inputs(
    rows: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """A model's inputs, padded on both sides so that all ``starts`` are in the same column."""
    longest = max(starts)
    padding = torch.tensor([longest - start for start in starts])
    ends = padding + torch.tensor([len(row) for row in rows])
    columns = torch.arange(int(ends.max()))
    mask = ((columns >= padding[:, None]) & (columns < ends[:, None])).long()
    tokens = torch.zeros_like(mask)
    tokens[mask.bool()] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    positions = (columns - padding[:, None]).clamp(min=0)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def left_padded(
    stems: list[KeysValues], owners: Sequence[int], lengths: Sequence[int]
) -> list[KeysValues]:
    """The first ``lengths`` tokens of each row's stem, [b, heads, longest, d_head] per layer."""
    width = max(lengths)
    if not width or not stems:
        return []
    rows = torch.tensor(owners)[:, None]
    missing = width - torch.tensor(lengths)[:, None]
    places = (torch.arange(width) - missing).clamp(min=0)
    # Layers may be on several devices.
    found = {keys.device for keys, _ in stems}
    indices = {device: (rows.to(device), places.to(device)) for device in found}

    def taken(states: Tensor) -> Tensor:
        return states.transpose(1, 2)[indices[states.device]].transpose(1, 2)

    return [(taken(keys), taken(values)) for keys, values in stems]


@torch.no_grad()
def run_lower(
    loaded: LoadedModel, layer: int, inputs: dict[str, Tensor], cache: DynamicCache | None
) -> Tensor:
    """``layer``'s output, [b, tokens, d_model]."""
    with capture({layer: loaded.layout.decoder_layers[layer]}, "output", stop=True) as seen:
        loaded.model.base_model(**inputs, past_key_values=cache, use_cache=cache is not None)
    return seen[layer]


@torch.no_grad()
def run_upper(
    upper: LoadedModel,
    layer: int,
    hidden: Tensor,
    inputs: dict[str, Tensor],
    prefix: list[KeysValues],
) -> list[KeysValues]:
    """Keys and values of the layers above ``layer``, after those of ``prefix``."""
    cache = _cache(prefix, DynamicLayer, layer + 1)
    with starting_after(upper, layer, hidden):
        upper.model.base_model(**inputs, past_key_values=cache, use_cache=True)
    return _entries(cache)[layer + 1 :]


def starting_after(loaded: LoadedModel, layer: int, hidden: Tensor) -> AbstractContextManager[None]:
    """In the block, forwards begin after ``layer``, with ``hidden`` as its output."""
    return start_after(
        loaded.layout.decoder_layers,
        layer,
        hidden.to(loaded.layout.head.weight.dtype),  # type: ignore[arg-type]
        tuples=loaded.layers_return_tuples,
    )


def fixed_cache(prefix: list[KeysValues], skipped: int = 0) -> DynamicCache | None:
    """A cache that holds ``prefix`` and does not change in a forward; ``None`` without a prefix.

    Args:
        skipped: how many layers are below the first of ``prefix``; they do not run.
    """
    return _cache(prefix, _PrefixLayer, skipped) if prefix else None


def _cache(prefix: list[KeysValues], kind: type[DynamicLayer], skipped: int) -> DynamicCache:
    """A cache filled with the prefix. The skipped layers get that of the first layer that runs."""
    cache = DynamicCache()
    for keys, values in [*prefix[:1] * skipped, *prefix]:
        entry = kind()
        # As `lazy_initialization`, without the empty tensors that it sends to the device.
        entry.keys, entry.values = keys, values
        entry.dtype, entry.device = keys.dtype, keys.device
        entry.is_initialized = True
        cache.layers.append(entry)
    return cache


def _entries(cache: DynamicCache) -> list[KeysValues]:
    return [(entry.keys, entry.values) for entry in cache.layers]  # type: ignore[union-attr, misc]


class _PrefixLayer(DynamicLayer):
    """Keys and values of the prefix: new ones are appended in the result, but not kept."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )
