"""Second moments of keys over ordinary text, C = E[k k^T].

A key is the input of a layer's edited projection. In MEMIT (arXiv 2210.07229), C describes what a
layer already stores; AlphaEdit (arXiv 2410.02355) writes into its null space only.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import backing_off, launch_price, pad_right, token_batches
from sphere_bench.models.hooks import capture
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in
from sphere_bench.models.tokens import token_windows

logger = logging.getLogger(__name__)

MAX_LENGTH = 512
TOKENS_PER_BATCH = 2048
# How many windows are sorted by length together, so that a batch needs little padding.
_WINDOWS_AT_A_TIME = 256
# How many rows of the sums of k k^T are computed at a time, each block from its diagonal on.
_ROWS_OF_SUMS = 256
# How many tokens are summed in float32, in place, before the sum is added to the one in float64; a
# batch may exceed it.
_TOKENS_IN_SINGLE = 16384


class SecondMoments(NamedTuple):
    """Uncentred second moments of keys.

    Attributes:
        moments: layer to C [d_in, d_in], float64, on the layer's device.
        tokens: number of tokens that they are the mean over.
    """

    moments: dict[int, Tensor]
    tokens: int


def second_moments(
    loaded: LoadedModel,
    layers: Sequence[int],
    texts: Iterable[str],
    tokens: int,
    *,
    max_length: int = MAX_LENGTH,
    tokens_per_text: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    precision: torch.dtype | None = None,
    name: str = "key statistics",
) -> SecondMoments:
    """C of several layers over the first ``tokens`` tokens of ``texts``, in one pass.

    Every token has the same weight, also a BOS that the tokenizer adds. How the tokens are batched
    changes the result only by rounding.

    Args:
        loaded: the unedited model.
        layers: decoder layers; the forward ends after the keys of the last one.
        texts: ordinary text; a long one is read in windows.
        tokens: number of tokens; fewer where the texts end.
        max_length, tokens_per_text: see :func:`token_windows`.
        tokens_per_batch: padded tokens in one forward.
        precision: dtype of the forward; ``None`` is the model's own. Sums are in float32 or better.
        name: what these moments are, for the log.

    Raises:
        SphereBenchError: the texts have no token, or keys are not finite.
    """
    loaded = with_layers_in(loaded, range(max(layers) + 1), precision or loaded.dtype)
    windows = token_windows(loaded, texts, tokens, max_length, tokens_per_text)
    waiting: list[list[int]] = []
    sums = _KeySums(loaded, layers)
    price = launch_price(loaded.device)

    def add_all(size: int) -> None:
        # When called again with a smaller size, it goes on where memory ran out.
        while True:
            if not waiting:
                waiting.extend(islice(windows, _WINDOWS_AT_A_TIME))
            if not waiting:
                return
            batch = token_batches([len(window) for window in waiting], size, price)[-1]
            added = sums.add([waiting[index] for index in batch])
            for index in sorted(batch, reverse=True):
                del waiting[index]
            progress.update(added)

    started = perf_counter()
    with tqdm(total=tokens, desc=name, unit="token", disable=None) as progress:
        backing_off(add_all, tokens_per_batch)
    seconds = perf_counter() - started
    if not sums.tokens:
        raise SphereBenchError("no text for key statistics: name another statistics.corpus")
    logger.info(
        "%s of layers %s: %d tokens in %.1f s, %.0f tokens/s",
        name,
        list(layers),
        sums.tokens,
        seconds,
        sums.tokens / seconds,
    )
    return SecondMoments(sums.means(), sums.tokens)


class _KeySums:
    """Sums of k k^T over tokens for each layer, as upper triangles."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[int]) -> None:
        self.tokens = 0
        self._loaded = loaded
        self._projections = {layer: loaded.layout.projection(layer) for layer in layers}
        self._sums = {
            layer: torch.zeros(
                width, width, dtype=torch.float64, device=double_device(loaded, layer)
            )
            for layer, width in key_widths(loaded, layers).items()
        }
        # In blocks of rows; each block begins at the column of its first diagonal entry.
        self._single = {
            layer: [
                torch.zeros(
                    min(_ROWS_OF_SUMS, width - start),
                    width - start,
                    device=loaded.device_of(layer),
                )
                for start in range(0, width, _ROWS_OF_SUMS)
            ]
            for layer, width in key_widths(loaded, layers).items()
        }
        self._single_tokens = 0
        self._half_added = False

    @torch.no_grad()
    def add(self, windows: list[list[int]]) -> int:
        """Add the keys of a batch of windows, and return how many there were."""
        if self._half_added:
            raise SphereBenchError(
                "out of memory while key statistics were summed: lower statistics.tokens_per_batch"
            )
        if self._single_tokens >= _TOKENS_IN_SINGLE:
            self._flush()
        tokens = pad_right(windows)
        lengths = torch.tensor([len(window) for window in windows])
        # Found here: a mask on the device would have to be waited for.
        real = (torch.arange(tokens.shape[1]) < lengths[:, None]).flatten().nonzero()[:, 0]
        added = len(real)
        padded = tokens.numel() > added
        with capture(self._projections, "input", stop=True) as captured:
            self._loaded.model.base_model(input_ids=tokens.to(self._loaded.device), use_cache=False)
        keys = {}
        for layer, seen in captured.items():
            rows = seen.flatten(0, 1)
            keys[layer] = (rows[real.to(rows.device)] if padded else rows).float()
        # Here memory should not run out. If it does, a second try would count some keys twice.
        self._half_added = True
        for layer, blocks in self._single.items():
            rows = keys[layer].T.split(_ROWS_OF_SUMS)
            for index, (block, own) in enumerate(zip(blocks, rows, strict=True)):
                block.addmm_(own, keys[layer][:, index * _ROWS_OF_SUMS :])
        self._half_added = False
        self.tokens += added
        self._single_tokens += added
        return added

    def means(self) -> dict[int, Tensor]:
        """C of every layer; afterwards nothing can be added."""
        self._flush()
        self._single.clear()
        for layer, sums in self._sums.items():
            # By the Cauchy-Schwarz inequality, all entries are finite if the diagonal is.
            if not torch.isfinite(sums.diagonal()).all():
                raise SphereBenchError(
                    f"keys of layer {layer} are not finite: use model.dtype=float32, and for "
                    "statistics.precision float32 or null"
                )
            sums.div_(self.tokens)
            # The lower triangle is mirrored block by block, without a second matrix.
            for start in range(0, len(sums), _ROWS_OF_SUMS):
                own = slice(start, start + _ROWS_OF_SUMS)
                behind = slice(start + _ROWS_OF_SUMS, None)
                square = sums[own, own]
                square.copy_(square.triu() + square.triu(1).T)
                sums[behind, own] = sums[own, behind].T
        return self._sums

    def _flush(self) -> None:
        for layer, blocks in self._single.items():
            for index, block in enumerate(blocks):
                start = index * _ROWS_OF_SUMS
                self._sums[layer][start : start + len(block), start:] += block.to(
                    self._sums[layer].device
                )
                block.zero_()
        self._single_tokens = 0


def token_count(
    loaded: LoadedModel, layers: Sequence[int], tokens: int | None, tokens_per_dimension: int
) -> int:
    """``tokens``, or where they are ``None``, so many for every dimension of the widest key."""
    widest = max(key_widths(loaded, layers).values())
    return tokens_per_dimension * widest if tokens is None else tokens


def key_widths(loaded: LoadedModel, layers: Sequence[int]) -> dict[int, int]:
    """d_in of every layer's edited projection."""
    return {layer: loaded.layout.weight(layer).shape[1] for layer in layers}


def module_names(loaded: LoadedModel, layers: Sequence[int]) -> dict[int, str]:
    """The name in the model of every layer's edited projection."""
    names = {module: name for name, module in loaded.model.named_modules()}
    return {layer: names[loaded.layout.projection(layer)] for layer in layers}


def double_device(loaded: LoadedModel, layer: int) -> torch.device:
    """The layer's device, or the CPU if that device has no double precision."""
    device = loaded.device_of(layer)
    return torch.device("cpu") if device.type == "mps" else device
