"""Forward passes from one layer on, for the tokens from one position on, on a cached prefix.

A change of layer z's output at position p reaches nothing at or before z, and nothing before p. So
the keys and values of the tokens before p, for the layers above z, are computed once; a replay
runs the layers above z for the tokens from p on only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from sphere_bench.models.batching import pad_right
from sphere_bench.models.hooks import capture, select_positions, start_after
from sphere_bench.models.loading import LoadedModel


class _PrefixLayer(DynamicLayer):
    """Keys and values of the prefix, put in front of the new ones and never grown."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


@dataclass(frozen=True)
class SuffixBatch:
    """A batch of texts, split at one position each, ready to be replayed from ``layer`` on.

    The prefixes are padded on the left, the suffixes on the right, so that every row's position p
    is the suffix's first column.

    Attributes:
        layer: the layer z whose output is replaced in a replay.
        tokens: the suffixes' ids, [b, s].
        hidden: layer z's own output for the suffixes, [b, s, d_model].
        mask: 1 at real tokens of prefix and suffix, [b, prefix + s].
        positions: the suffixes' position ids, [b, s].
        prefix: keys and values of the prefixes per layer, each [b, heads, prefix, d_head].
    """

    loaded: LoadedModel
    layer: int
    tokens: Tensor
    hidden: Tensor
    mask: Tensor
    positions: Tensor
    prefix: list[tuple[Tensor, Tensor]]

    @classmethod
    def build(
        cls, loaded: LoadedModel, rows: Sequence[Sequence[int]], starts: Sequence[int], layer: int
    ) -> "SuffixBatch":
        """Run the prefixes ``row[:start]`` once, and the suffixes up to ``layer``."""
        device = loaded.device
        longest = max(starts)
        padding = torch.tensor([longest - start for start in starts])
        prefix_tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
            prefix_tokens[index, longest - start :] = torch.as_tensor(row[:start])
        suffixes = [row[start:] for row, start in zip(rows, starts, strict=True)]
        tokens = pad_right(suffixes)
        columns = torch.arange(longest + tokens.shape[1])
        ends = longest + torch.tensor([len(suffix) for suffix in suffixes])
        mask = ((columns >= padding[:, None]) & (columns < ends[:, None])).long().to(device)
        positions = (columns - padding[:, None]).clamp(min=0).to(device)
        tokens, prefix_tokens = tokens.to(device), prefix_tokens.to(device)

        with torch.no_grad():
            prefix: list[tuple[Tensor, Tensor]] = []
            if longest:
                cache = DynamicCache()
                loaded.model.base_model(
                    input_ids=prefix_tokens,
                    attention_mask=mask[:, :longest],
                    position_ids=positions[:, :longest],
                    past_key_values=cache,
                    use_cache=True,
                )
                prefix = [(entry.keys, entry.values) for entry in cache.layers]  # type: ignore[union-attr, misc]
            with capture({layer: loaded.layout.decoder_layers[layer]}, "output", stop=True) as seen:
                loaded.model.base_model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions[:, longest:],
                    past_key_values=_prefix_cache(prefix),
                    use_cache=False,
                )
        if prefix:
            # Layers up to `layer` are not run again; the first stands for all of them.
            prefix[: layer + 1] = [prefix[0]] * (layer + 1)
        return cls(loaded, layer, tokens, seen[layer], mask, positions[:, longest:], prefix)

    def logits(self, hidden: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at chosen places when layer z's output is ``hidden``; gradients flow to it.

        Args:
            hidden: [b, s, d_model].
            rows, columns: n places in the suffixes.

        Returns:
            [n, vocab], in float32.
        """
        layout = self.loaded.layout
        tuples = self.loaded.layers_return_tuples
        with (
            start_after(layout.decoder_layers, self.layer, hidden, tuples=tuples),
            select_positions(layout.head, rows, columns),
        ):
            output = self.loaded.model(
                input_ids=self.tokens,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=_prefix_cache(self.prefix),
                use_cache=False,
            )
        return output.logits[0].float()

    def keep(self, rows: Tensor) -> "SuffixBatch":
        """The same batch with these rows only, its padding trimmed to what they need."""
        mask = self.mask[rows]
        prefix_length = self.mask.shape[1] - self.tokens.shape[1]
        # Of the columns, drop those in which no kept row has a token.
        used = mask.any(dim=0)
        left = int(used[:prefix_length].sum())
        width = int(used[prefix_length:].sum())
        first = prefix_length - left
        return SuffixBatch(
            self.loaded,
            self.layer,
            self.tokens[rows, :width],
            self.hidden[rows, :width],
            mask[:, first : prefix_length + width],
            self.positions[rows, :width],
            [(keys[rows, :, first:], values[rows, :, first:]) for keys, values in self.prefix]
            if left
            else [],
        )


def _prefix_cache(prefix: list[tuple[Tensor, Tensor]]) -> DynamicCache | None:
    if not prefix:
        return None
    cache = DynamicCache()
    cache.layers = [_PrefixLayer(keys, values) for keys, values in prefix]
    return cache
