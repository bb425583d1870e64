"""Forward passes from one layer on, for the tokens from one position on, on a cached prefix.

A change of layer z's output at position p reaches nothing at or before z, and nothing before p. So
the keys and values of the tokens before p, for the layers above z, are computed once; a replay
runs the layers above z for the tokens from p on only.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import DynamicCache, DynamicLayer

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


def with_upper_layers_in(loaded: LoadedModel, layer: int, dtype: torch.dtype) -> LoadedModel:
    """The model with all that a replay behind ``layer`` runs in ``dtype``.

    Embeddings, head and the layers above are copies; the layers up to ``layer`` are the model's
    own. Where the model has that dtype anyway it is the model itself.
    """
    if dtype == loaded.dtype:
        return loaded
    lower = list(loaded.layout.decoder_layers[: layer + 1])
    kept = {id(parameter) for module in lower for parameter in module.parameters()}
    memo: dict[int, Any] = {id(shared): shared for shared in (loaded.tokenizer, *lower)}
    for parameter in loaded.model.parameters():
        if id(parameter) not in kept:
            memo[id(parameter)] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return deepcopy(loaded, memo)


@dataclass(frozen=True)
class SuffixBatch:
    """A batch of texts, split at one position each, ready to be replayed from ``layer`` on.

    The prefixes are padded on the left, the suffixes on the right, so that every row's position p
    is the suffix's first column.

    Attributes:
        upper: the model that runs the layers above z.
        layer: the layer z whose output is replaced in a replay.
        tokens: the suffixes' ids, [b, s].
        hidden: layer z's own output for the suffixes, [b, s, d_model].
        mask: 1 at real tokens of prefix and suffix, [b, prefix + s].
        positions: the suffixes' position ids, [b, s].
        prefix: keys and values of the prefixes per layer, each [b, heads, prefix, d_head].
    """

    upper: LoadedModel
    layer: int
    tokens: Tensor
    hidden: Tensor
    mask: Tensor
    positions: Tensor
    prefix: list[tuple[Tensor, Tensor]]

    @classmethod
    def build(
        cls,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        layer: int,
        upper: LoadedModel | None = None,
    ) -> "SuffixBatch":
        """Run the rows up to ``layer``, and the prefixes ``row[:start]`` through those above.

        Args:
            loaded: the model.
            rows: token ids.
            starts: each row's position p.
            layer: z.
            upper: the model that runs the layers above z, ``loaded`` itself when ``None``.
        """
        device = loaded.device
        upper = upper or loaded
        longest = max(starts)
        padding = torch.tensor([longest - start for start in starts])
        ends = padding + torch.tensor([len(row) for row in rows])
        columns = torch.arange(int(ends.max()))
        mask = ((columns >= padding[:, None]) & (columns < ends[:, None])).long()
        tokens = torch.zeros_like(mask)
        tokens[mask.bool()] = torch.tensor([token for row in rows for token in row])
        positions = (columns - padding[:, None]).clamp(min=0)
        tokens, mask, positions = tokens.to(device), mask.to(device), positions.to(device)
        layers = loaded.layout.decoder_layers
        with torch.no_grad():
            with capture({layer: layers[layer]}, "output", stop=True) as seen:
                loaded.model.base_model(
                    input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
                )
            hidden = seen[layer]
            prefix: list[tuple[Tensor, Tensor]] = []
            if longest and layer + 1 < len(layers):
                cache = DynamicCache()
                with _starting_after(upper, layer, hidden[:, :longest]):
                    upper.model.base_model(
                        input_ids=tokens[:, :longest],
                        attention_mask=mask[:, :longest],
                        position_ids=positions[:, :longest],
                        past_key_values=cache,
                        use_cache=True,
                    )
                above = cache.layers[layer + 1 :]
                prefix = [(entry.keys, entry.values) for entry in above]  # type: ignore[union-attr, misc]
                # Layers up to z are never run again; the first above stands for all of them.
                prefix = [prefix[0]] * (layer + 1) + prefix
        return cls(
            upper,
            layer,
            tokens[:, longest:],
            hidden[:, longest:],
            mask,
            positions[:, longest:],
            prefix,
        )

    def logits(self, hidden: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at chosen places when layer z's output is ``hidden``; gradients flow to it.

        Args:
            hidden: [b, s, d_model]; rounded to the dtype of the layers above.
            rows, columns: n places in the suffixes.

        Returns:
            [n, vocab], in float32.
        """
        with (
            _starting_after(self.upper, self.layer, hidden),
            select_positions(self.upper.layout.head, rows, columns),
            _attention_kernels(hidden.device),
        ):
            output = self.upper.model(
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
            self.upper,
            self.layer,
            self.tokens[rows, :width],
            self.hidden[rows, :width],
            mask[:, first : prefix_length + width],
            self.positions[rows, :width],
            [(keys[rows, :, first:], values[rows, :, first:]) for keys, values in self.prefix]
            if left
            else [],
        )


def _starting_after(
    loaded: LoadedModel, layer: int, hidden: Tensor
) -> AbstractContextManager[None]:
    return start_after(
        loaded.layout.decoder_layers,
        layer,
        hidden.to(loaded.layout.head.weight.dtype),  # type: ignore[arg-type]
        tuples=loaded.layers_return_tuples,
    )


def _attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU the plain one: flash attention's backward is eight times slower in bfloat16."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _prefix_cache(prefix: list[tuple[Tensor, Tensor]]) -> DynamicCache | None:
    if not prefix:
        return None
    cache = DynamicCache()
    cache.layers = [_PrefixLayer(keys, values) for keys, values in prefix]
    return cache
