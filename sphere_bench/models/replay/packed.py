"""Many texts in one forward without padding.

The tokens of all texts stand behind one another, [1, T, d_model], so that no linear layer, no norm
and no activation computes on padding. Only inside attention they are put back into rows, block by
block, behind the keys and values of their prefixes.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sphere_bench.models.batching import launch_price, token_batches
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.replay.attention import additive_mask, attend_behind
from sphere_bench.models.replay.blocks import Block, Places
from sphere_bench.models.replay.prefixes import Stems, starting_after
from sphere_bench.models.replay.suffix import SuffixBatch

# With a mask of four dimensions transformers makes none of its own; ours is inside attention.
_NO_MASK = (1, 1, 1, 1)
# A block is divided where that saves more than so many tokens of padding in front of its texts: one
# long prefix would pad the keys and values of all.
_PADDED_PREFIXES = 4000
# Options of an attention function that change nothing here, or are known.
_KNOWN = {"dropout", "is_causal", "position_ids", "use_cache", "sliding_window", "softcap"}


class _CannotPack(Exception):
    """The model's attention does something that is not known here."""


@dataclass(frozen=True)
class PackedBatch:
    """Texts that are replayed together from layer z on; see :class:`SuffixBatch`.

    Attributes:
        blocks: the texts; those of a block have suffixes and prefixes of similar lengths.
        order: for each text of the blocks, one after another, its index among the rows that the
            batch was built of.
        whole: whether the model's attention takes packed tokens. If not, each block is a padded
            forward of its own.
    """

    blocks: list[SuffixBatch]
    order: list[int]
    whole: bool

    @classmethod
    def build(
        cls,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        layer: int,
        upper: LoadedModel,
        stems: Stems | None = None,
        owners: Sequence[int] = (),
        *,
        whole: bool,
    ) -> "PackedBatch":
        """Run the rows up to ``layer`` and their prefixes above it.

        The arguments are those of :meth:`SuffixBatch.build`; for ``whole`` see
        :func:`takes_packed_tokens`.
        """
        lengths = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        size = len(rows) * max(lengths)
        price = launch_price(loaded.device, attention_alone=whole)
        groups = [
            [group[place] for place in alike]
            for group in token_batches(lengths, size, price)
            for alike in _with_like_prefixes([starts[index] for index in group])
        ]
        blocks = [
            SuffixBatch.build(
                loaded,
                [rows[index] for index in group],
                [starts[index] for index in group],
                layer,
                upper,
                stems,
                [owners[index] for index in group] if stems is not None else [],
            )
            for group in groups
        ]
        order = [index for group in groups for index in group]
        return cls(blocks, order, whole)

    @cached_property
    def firsts(self) -> list[int]:
        """The place of each text's first suffix token among all T."""
        lengths = [length for block in self.blocks for length in block.suffixes]
        return [0, *accumulate(lengths)][:-1]

    @cached_property
    def hidden(self) -> Tensor:
        """The output of layer z for all suffix tokens, [T, d_model]."""
        return torch.cat([view.unpad(view.batch.hidden) for view in self._views])

    def places(self, chosen: Sequence[int]) -> Places:
        """Some of the T tokens, for :meth:`logits`."""
        return (
            Places.together(self.blocks, chosen) if self.whole else Places.of(self.blocks, chosen)
        )

    def logits(self, hidden: Tensor, places: Places) -> Tensor:
        """Logits at some places if layer z's output is ``hidden``; gradients flow to it.

        Args:
            hidden: [T, d_model]; it is rounded to the dtype of the layers above.
            places: of n of the T tokens.

        Returns:
            [n, vocab], in float32.
        """
        if not self.whole:
            return self._padded_logits(hidden, places)
        upper, layer = self.blocks[0].upper, self.blocks[0].layer
        ((_, rows, columns),) = places.parts
        with (
            starting_after(upper, layer, hidden[None]),
            select_positions(upper.layout.head, rows, columns),
            self._attention.in_place_of(upper),
        ):
            output = upper.model(
                input_ids=self._tokens,
                attention_mask=hidden.new_zeros(_NO_MASK),
                position_ids=self._positions,
                use_cache=False,
            )
        logits: Tensor = output.logits.squeeze(0).float()
        return logits

    def keep(self, texts: Sequence[int]) -> "PackedBatch":
        """The same batch with only these texts, given in rising order by their place in it."""
        kept, blocks, first = set(texts), [], 0
        for block in self.blocks:
            own = [row for row in range(len(block.suffixes)) if first + row in kept]
            first += len(block.suffixes)
            if own:
                blocks.append(block.keep(own) if len(own) < len(block.suffixes) else block)
        return PackedBatch(blocks, [self.order[text] for text in texts], self.whole)

    @cached_property
    def _views(self) -> list[Block]:
        return [Block.of(batch) for batch in self.blocks]

    @cached_property
    def _tokens(self) -> Tensor:
        return torch.cat([view.unpad(view.batch.tokens) for view in self._views])[None]

    @cached_property
    def _positions(self) -> Tensor:
        return torch.cat([view.unpad(view.batch.positions) for view in self._views])[None]

    @cached_property
    def _attention(self) -> "_PackedAttention":
        return _PackedAttention(self._views, self.blocks[0].layer + 1)

    def _padded_logits(self, hidden: Tensor, places: Places) -> Tensor:
        """As :meth:`logits`, with a forward for each block."""
        parts = hidden.split(self._sizes)
        found = []
        for number, rows, columns in places.parts:
            view = self._views[number]
            found.append(view.batch.logits(view.pad(parts[number]), rows, columns))
        logits = torch.cat(found)
        return logits if places.order is None else logits[places.order]

    @cached_property
    def _sizes(self) -> list[int]:
        return [sum(block.suffixes) for block in self.blocks]


def _with_like_prefixes(starts: Sequence[int]) -> list[list[int]]:
    """Indices of rows whose prefixes are of such lengths that padding them takes little memory."""
    size = len(starts) * (max(starts) + 1)
    return token_batches([start + 1 for start in starts], size, _PADDED_PREFIXES)


class _PackedAttention:
    """The attention of a batch's forwards: blocks of rows, each behind its own prefix."""

    def __init__(self, blocks: Sequence[Block], first_layer: int) -> None:
        self._blocks = blocks
        self._sizes = [sum(block.batch.suffixes) for block in blocks]
        self._first_layer = first_layer
        self._masks: dict[tuple[int | None, torch.device], list[Tensor]] = {}

    @contextmanager
    def in_place_of(self, upper: LoadedModel) -> Iterator[None]:
        """In the block, one forward of ``upper`` attends here.

        Raises:
            _CannotPack: not all layers have come here, or with an option that is not known.
        """
        self._calls = 0
        name = upper.model.config._attn_implementation or "eager"
        before = ALL_ATTENTION_FUNCTIONS.get(name)
        ALL_ATTENTION_FUNCTIONS[name] = self
        try:
            yield
        finally:
            if before is None:
                del ALL_ATTENTION_FUNCTIONS[name]
            else:
                ALL_ATTENTION_FUNCTIONS[name] = before
        if self._calls != len(upper.layout) - self._first_layer:
            raise _CannotPack

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """As an attention function of transformers: query [1, heads, T, d_head] and so on."""
        windows = getattr(module.config, "sliding_window", None) is not None
        if any(option is not None and name not in _KNOWN for name, option in options.items()) or (
            windows and "sliding_window" not in options
        ):
            raise _CannotPack
        self._calls += 1
        index = module.layer_idx - self._first_layer  # type: ignore[operator]
        queries, keys, values = (
            each.squeeze(0).transpose(0, 1).split(self._sizes) for each in (query, key, value)
        )
        masks = self._masks_within(options.get("sliding_window"), query)
        attended = [
            block.unpad(
                attend_behind(
                    block.batch.prefix[index] if block.batch.prefix else None,
                    block.pad(own_query),
                    block.pad(own_key),
                    block.pad(own_value),
                    mask,
                    scaling,
                    options.get("softcap"),
                )
            )
            for block, mask, own_query, own_key, own_value in zip(
                self._blocks, masks, queries, keys, values, strict=True
            )
        ]
        return torch.cat(attended)[None], None

    def _masks_within(self, window: int | None, query: Tensor) -> list[Tensor]:
        key = (window, query.device)
        if key not in self._masks:
            self._masks[key] = [
                additive_mask(block.mask_within(window).to(query.device), query.dtype)
                for block in self._blocks
            ]
        return self._masks[key]


def takes_packed_tokens(upper: LoadedModel, layer: int) -> bool:
    """Whether the layers above ``layer`` can be replayed with the tokens of many texts in one row.

    That needs an attention that transformers lets one replace, as almost all decoders have; GPT-J,
    GPT-Neo, BLOOM, MPT and Falcon do not. It is tried on one token.
    """
    module = sys.modules[type(upper.layout.decoder_layers[layer]).__module__]
    if not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return False
    one = torch.zeros(1, 1, dtype=torch.long, device=upper.device)
    width = upper.model.config.get_text_config().hidden_size
    hidden = torch.zeros(1, 1, width, device=upper.device)
    text = SuffixBatch(upper, layer, one, hidden, one + 1, one, [], [0], [1])
    try:
        with torch.no_grad():
            batch = PackedBatch([text], [0], whole=True)
            batch.logits(hidden[0], batch.places([0]))
    except _CannotPack:
        return False
    return True
