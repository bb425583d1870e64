"""Forward passes that start at one layer and one position, with a cached prefix.

A change of layer z's output at position p changes nothing up to z, and nothing before p. So the
keys and values of the tokens before p, in the layers above z, are computed once. A replay runs
only the layers above z, and only for the tokens from p on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sphere_bench.models.batching import launch_price, token_batches
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.replay.prefixes import (
    KeysValues,
    Stems,
    fixed_cache,
    left_padded,
    padded_inputs,
    run_lower,
    run_upper,
    starting_after,
)


@dataclass(frozen=True)
class SuffixBatch:
    """A batch of texts, each split at a position p, that can be replayed from ``layer`` on.

    Prefixes are padded on the left and suffixes on the right, so that the position p of every row
    is the first column of the suffixes.

    Attributes:
        upper: the model that runs the layers above z.
        layer: the layer z; a replay replaces its output.
        tokens: token ids of the suffixes, [b, s].
        hidden: the output of layer z for the suffixes, [b, s, d_model].
        mask: 1 at real tokens of prefix and suffix, [b, prefix + s].
        positions: position ids of the suffixes, [b, s].
        prefix: keys and values of the prefixes for every layer above z, each
            [b, heads, prefix, d_head]. Empty if no row has a prefix or no layer is above z.
        prefixes, suffixes: number of tokens in front of each row's p, and from it on; known on the
            host, so that no index has to be fetched from a device.
    """

    upper: LoadedModel
    layer: int
    tokens: Tensor
    hidden: Tensor
    mask: Tensor
    positions: Tensor
    prefix: list[KeysValues]
    prefixes: list[int]
    suffixes: list[int]

    @classmethod
    def build(
        cls,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        layer: int,
        upper: LoadedModel | None = None,
        stems: Stems | None = None,
        owners: Sequence[int] = (),
    ) -> "SuffixBatch":
        """Run the rows up to ``layer``, and the prefixes ``row[:start]`` through those above.

        Rows with prefixes of similar length run together, so that there is little padding.

        Args:
            loaded: the model.
            rows: token ids.
            starts: each row's position p.
            layer: z.
            upper: the model that runs the layers above z; ``None`` is ``loaded``.
            stems: beginnings that were run before. Their tokens run again only in place of
                padding.
            owners: for each row, the index of the stem that its prefix begins with.
        """
        # Suffixes are padded to the longest one in any case.
        longest = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        run = [start + longest for start in starts]
        if stems is not None:
            run = [tokens - stems.lengths[owner] for tokens, owner in zip(run, owners, strict=True)]
        groups = [
            sorted(group)
            for group in token_batches(run, len(run) * max(run), launch_price(loaded.device))
        ]
        parts = [
            cls._build_together(
                loaded,
                [rows[index] for index in group],
                [starts[index] for index in group],
                layer,
                upper or loaded,
                stems,
                [owners[index] for index in group] if stems is not None else [],
            )
            for group in groups
        ]
        return _joined(parts, groups)

    @classmethod
    def _build_together(
        cls,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        layer: int,
        upper: LoadedModel,
        stems: Stems | None,
        owners: Sequence[int],
    ) -> "SuffixBatch":
        """As :meth:`build`, with all rows in one forward of the layers up to ``layer``."""
        skipped = [0] * len(rows)
        lower: list[KeysValues] = []
        prefix: list[KeysValues] = []
        longest = max(starts)  # of what is run of the prefixes
        if stems is not None and stems.lower:
            own = [stems.lengths[owner] for owner in owners]
            longest = max(start - length for start, length in zip(starts, own, strict=True))
            skipped = [max(0, start - longest) for start in starts]
            lower, prefix = (
                left_padded(cached, owners, skipped) for cached in (stems.lower, stems.upper)
            )
        width = max(skipped)
        inputs = padded_inputs(
            [row[length:] for row, length in zip(rows, skipped, strict=True)],
            [start - length for start, length in zip(starts, skipped, strict=True)],
            loaded.device,
        )
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        offsets = torch.tensor(skipped, device=loaded.device)[:, None]
        positions = inputs["position_ids"] + offsets
        of_stems = torch.arange(width, device=loaded.device) >= width - offsets
        mask = torch.cat([of_stems.to(mask.dtype), mask], dim=1)
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        hidden = run_lower(loaded, layer, inputs, fixed_cache(lower))
        if longest:
            inputs = {
                "input_ids": tokens[:, :longest],
                "attention_mask": mask[:, : width + longest],
                "position_ids": positions[:, :longest],
            }
            prefix = run_upper(upper, layer, hidden[:, :longest], inputs, prefix)
        return cls(
            upper,
            layer,
            tokens[:, longest:],
            hidden[:, longest:],
            mask,
            positions[:, longest:],
            prefix,
            list(starts),
            [len(row) - start for row, start in zip(rows, starts, strict=True)],
        )

    @property
    def prefix_length(self) -> int:
        """Length of the longest prefix."""
        return self.mask.shape[1] - self.tokens.shape[1]

    def logits(self, hidden: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at some places if layer z's output is ``hidden``; gradients flow to it.

        Args:
            hidden: [b, s, d_model]; it is rounded to the dtype of the layers above.
            rows, columns: n places in the suffixes.

        Returns:
            [n, vocab], in float32.
        """
        with (
            starting_after(self.upper, self.layer, hidden),
            select_positions(self.upper.layout.head, rows, columns),
            # On a CPU the backward pass of flash attention is eight times slower in bfloat16; on a
            # GPU cuDNN's plans anew for every shape.
            sdpa_kernel(SDPBackend.MATH),
        ):
            output = self.upper.model(
                input_ids=self.tokens,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=fixed_cache(self.prefix, self.layer + 1),
                use_cache=False,
            )
        logits: Tensor = output.logits.squeeze(0).float()
        return logits

    def keep(self, rows: Sequence[int]) -> "SuffixBatch":
        """The same batch with only these rows, and no more padding than they need."""
        prefixes = [self.prefixes[row] for row in rows]
        suffixes = [self.suffixes[row] for row in rows]
        left, right = max(prefixes), max(suffixes)
        first = self.prefix_length - left
        kept = torch.tensor(rows, device=self.tokens.device)

        def own(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
            return tensor.narrow(dim, start, length).index_select(0, kept.to(tensor.device))

        return SuffixBatch(
            self.upper,
            self.layer,
            own(self.tokens, 1, 0, right),
            own(self.hidden, 1, 0, right),
            own(self.mask, 1, first, left + right),
            own(self.positions, 1, 0, right),
            [
                (own(keys, 2, first, left), own(values, 2, first, left))
                for keys, values in self.prefix
            ]
            if left
            else [],
            prefixes,
            suffixes,
        )


def _joined(parts: Sequence[SuffixBatch], places: Sequence[Sequence[int]]) -> SuffixBatch:
    """The rows of all parts as one batch; those of a part go to its ``places``."""
    if len(parts) == 1:
        return parts[0]
    left = max(part.prefix_length for part in parts)
    right = max(part.tokens.shape[1] for part in parts)
    missing = [left - part.prefix_length for part in parts]
    count = sum(map(len, places))

    def joined(
        tensors: Sequence[Tensor | None], width: int, starts: Sequence[int], dim: int = 1
    ) -> Tensor:
        """One tensor with each part's from ``starts`` on along ``dim``, and zeros elsewhere."""
        example = next(tensor for tensor in tensors if tensor is not None)
        shape = list(example.shape)
        shape[0], shape[dim] = count, width
        whole = example.new_zeros(shape)
        for tensor, start, rows in zip(tensors, starts, places, strict=True):
            if tensor is not None:
                whole.narrow(dim, start, tensor.shape[dim])[list(rows)] = tensor
        return whole

    def suffixes(tensors: Sequence[Tensor]) -> Tensor:
        return joined(tensors, right, [0] * len(parts))

    def prefixes(tensors: Sequence[Tensor | None]) -> Tensor:
        return joined(tensors, left, missing, dim=2)

    prefix = []
    while any(part.prefix for part in parts):
        # Removed from the parts, so that no more than one layer is in memory twice.
        layer = [part.prefix.pop(0) if part.prefix else (None, None) for part in parts]
        prefix.append(
            (prefixes([keys for keys, _ in layer]), prefixes([values for _, values in layer]))
        )
    return replace(
        parts[0],
        tokens=suffixes([part.tokens for part in parts]),
        hidden=suffixes([part.hidden for part in parts]),
        mask=joined([part.mask for part in parts], left + right, missing),
        positions=suffixes([part.positions for part in parts]),
        prefix=prefix,
        prefixes=_in_order([part.prefixes for part in parts], places),
        suffixes=_in_order([part.suffixes for part in parts], places),
    )


def _in_order(parts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of all parts as one list; those of a part go to its ``places``."""
    placed = {
        place: number
        for own, numbers in zip(places, parts, strict=True)
        for place, number in zip(own, numbers, strict=True)
    }
    return [placed[place] for place in range(len(placed))]
