"""Blocks of texts with suffixes of similar length, as rows and as tokens behind one another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_bench.models.replay.suffix import SuffixBatch


@dataclass(frozen=True)
class Block:
    """A padded block of texts as the packed forward sees it.

    Attributes:
        batch: b texts with suffixes of at most s tokens.
        length: s.
        places: of the real tokens in the b * s padded ones; ``None`` if there is no padding.
        mask: what may be attended to, [b, 1, s, prefix + s].
    """

    batch: SuffixBatch
    length: int
    places: Tensor | None
    mask: Tensor

    @classmethod
    def of(cls, batch: SuffixBatch) -> "Block":
        length = batch.tokens.shape[1]
        prefix = batch.prefix_length
        device = batch.tokens.device
        places = None
        if min(batch.suffixes) < length:
            places = torch.tensor(
                [
                    row * length + column
                    for row, own in enumerate(batch.suffixes)
                    for column in range(own)
                ],
                device=device,
            )
        columns = torch.arange(prefix + length, device=device)
        causal = columns <= columns[prefix:, None]
        return cls(batch, length, places, (batch.mask[:, None, None].bool() & causal))

    def pad(self, packed: Tensor) -> Tensor:
        """[tokens, ...] as [b, s, ...], with zeros in the places without a token."""
        shape = (len(self.batch.tokens), self.length, *packed.shape[1:])
        if self.places is None:
            return packed.reshape(shape)
        grid = packed.new_zeros(shape[0] * shape[1], *shape[2:])
        return grid.index_copy(0, self.places.to(grid.device), packed).view(shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """[b, s, ...] as [tokens, ...]."""
        flat = padded.flatten(0, 1)
        if self.places is None:
            return flat
        places = self.places.to(flat.device)
        taken: Tensor = _Take.apply(flat, places)  # type: ignore[no-untyped-call]
        return taken

    def mask_within(self, window: int | None) -> Tensor:
        """The mask where a query sees no more than the last ``window`` tokens, itself included."""
        if window is None or window >= self.mask.shape[-1]:
            return self.mask
        columns = torch.arange(self.mask.shape[-1], device=self.mask.device)
        return self.mask & (columns[-self.length :, None] - columns < window)


class Places(NamedTuple):
    """Tokens of some blocks after which a prediction is read; made without waiting for a device.

    Attributes:
        parts: for each forward that reads some of them: which block it is of, and their rows and
            columns there.
        order: puts what the forwards give, one after another, into the order that was asked for,
            [n]; ``None`` if they have it.
    """

    parts: list[tuple[int, Tensor, Tensor]]
    order: Tensor | None = None

    @classmethod
    def together(cls, blocks: Sequence[SuffixBatch], chosen: Sequence[int]) -> "Places":
        """Of one forward for all blocks, whose tokens are one row; ``chosen`` are n of them."""
        columns = torch.tensor(chosen, device=blocks[0].tokens.device)
        return cls([(0, torch.zeros_like(columns), columns)])

    @classmethod
    def of(cls, blocks: Sequence[SuffixBatch], chosen: Sequence[int]) -> "Places":
        """The same with a padded forward for each block."""
        grid = [
            (number, row, column)
            for number, block in enumerate(blocks)
            for row, length in enumerate(block.suffixes)
            for column in range(length)
        ]
        wanted = sorted((*grid[place], index) for index, place in enumerate(chosen))
        numbers = Counter(number for number, *_ in wanted)
        _, rows, columns, indices = torch.tensor(wanted).T.to(blocks[0].tokens.device)
        sizes = list(numbers.values())
        parts = zip(numbers, rows.split(sizes), columns.split(sizes), strict=True)
        return cls(list(parts), indices.argsort())


class _Take(torch.autograd.Function):
    """Rows of a matrix, none of them twice: the gradient is copied, where PyTorch's adds it up."""

    @staticmethod
    def forward(context: Any, rows: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = context.saved_tensors
        rows = gradient.new_zeros(context.count, *gradient.shape[1:])
        return rows.index_copy_(0, places, gradient), None
