"""Keys and values of beginnings that are run once, and the two parts that a forward is run in.

Layer z parts a model: the layers up to it, and those above, which may have another precision.
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
    """Beginnings that many rows share, run once.

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
        """Run ``stems`` (token ids) up to ``layer`` by ``loaded`` and above it by ``upper``."""
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
    """A model's inputs, padded on both sides so that all ``starts`` share a column."""
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
    """Each row's first ``lengths`` tokens of its stem, [b, heads, longest, d_head] a layer."""
    width = max(lengths)
    if not width or not stems:
        return []
    device = stems[0][0].device
    rows = torch.tensor(owners, device=device)[:, None]
    missing = width - torch.tensor(lengths, device=device)[:, None]
    places = (torch.arange(width, device=device) - missing).clamp(min=0)
    return [
        (
            keys.transpose(1, 2)[rows, places].transpose(1, 2),
            values.transpose(1, 2)[rows, places].transpose(1, 2),
        )
        for keys, values in stems
    ]


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
    """Keys and values of the layers above ``layer``, those of ``prefix`` in front."""
    cache = _cache(prefix, DynamicLayer, layer + 1)
    with starting_after(upper, layer, hidden):
        upper.model.base_model(**inputs, past_key_values=cache, use_cache=True)
    return _entries(cache)[layer + 1 :]


def starting_after(loaded: LoadedModel, layer: int, hidden: Tensor) -> AbstractContextManager[None]:
    """In the block, forwards begin behind ``layer``, whose output ``hidden`` is."""
    return start_after(
        loaded.layout.decoder_layers,
        layer,
        hidden.to(loaded.layout.head.weight.dtype),  # type: ignore[arg-type]
        tuples=loaded.layers_return_tuples,
    )


def fixed_cache(prefix: list[KeysValues], skipped: int = 0) -> DynamicCache | None:
    """A cache that a forward reads ``prefix`` from and leaves as it is; ``None`` without one.

    Args:
        skipped: layers below the first of ``prefix``, which are not run.
    """
    return _cache(prefix, _PrefixLayer, skipped) if prefix else None


def _cache(prefix: list[KeysValues], kind: type[DynamicLayer], skipped: int) -> DynamicCache:
    """Layers that hold the prefix already; the first's stands for those that are skipped."""
    cache = DynamicCache()
    for keys, values in [*prefix[:1] * skipped, *prefix]:
        entry = kind()
        entry.lazy_initialization(keys, values)
        entry.keys, entry.values = keys, values
        cache.layers.append(entry)
    return cache


def _entries(cache: DynamicCache) -> list[KeysValues]:
    return [(entry.keys, entry.values) for entry in cache.layers]  # type: ignore[union-attr, misc]


class _PrefixLayer(DynamicLayer):
    """Keys and values of the prefix, put in front of the new ones and never grown."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )
