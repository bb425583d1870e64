"""Puts rows of different lengths into padded batches of limited size."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from sphere_bench.errors import SphereBenchError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The cost of one more forward pass, as the number of tokens that take as long to compute.
_TOKENS_A_FORWARD_IS_WORTH = 32


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows of token ids as one tensor [rows, longest], with ``value`` after the shorter ones.

    With causal attention no real token sees the padding after it, so no mask is needed.
    """
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded


def token_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices of rows, grouped by similar length, with the padded size of a group limited.

    The total cost of padding and of starting the forwards is the least possible. A row longer than
    ``tokens_per_batch`` is a group of its own. The groups are ordered by length.
    """
    of_length: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        of_length.setdefault(lengths[index], []).append(index)
    widths = list(of_length)

    def chunks(rows: int, width: int) -> int:
        return math.ceil(rows / max(1, tokens_per_batch // width))

    # For the rows of the first `end` lengths: the least cost, and where the last group begins.
    cheapest, cuts = [0], [0]
    for end in range(1, len(widths) + 1):
        width = widths[end - 1]
        options = []
        rows = 0
        for start in reversed(range(end)):
            rows += len(of_length[widths[start]])
            cost = rows * width + _TOKENS_A_FORWARD_IS_WORTH * chunks(rows, width)
            options.append((cheapest[start] + cost, start))
        cost, start = min(options)
        cheapest.append(cost)
        cuts.append(start)

    batches: list[list[int]] = []
    end = len(widths)
    while end:
        start = cuts[end]
        rows_together = [index for width in widths[start:end] for index in of_length[width]]
        count = chunks(len(rows_together), widths[end - 1])
        size = math.ceil(len(rows_together) / count)
        batches[:0] = [
            rows_together[first : first + size] for first in range(0, len(rows_together), size)
        ]
        end = start
    return batches


def backing_off(
    function: Callable[[int], Result], tokens_per_batch: int, unit: str = "tokens"
) -> Result:
    """Call ``function(tokens_per_batch)``, and again with half of it whenever memory runs out.

    Args:
        function: takes a size and needs memory in proportion to it.
        tokens_per_batch: the size, in ``unit``.

    Raises:
        SphereBenchError: there is not enough memory for a single row.
    """
    size = tokens_per_batch

    def halve() -> int:
        nonlocal size
        size //= 2
        logger.warning("out of memory: going on with batches of %d %s", size, unit)
        return size

    try:
        return function(size)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # accelerate's search empties the device's caches before every attempt. That is too slow for
    # the many calls that fit right away.
    try:
        search = find_executable_batch_size(
            function, starting_batch_size=halve(), reduce_batch_size_fn=halve
        )
        result: Result = search()
        return result
    except RuntimeError as error:
        if "No executable batch size found" not in str(error):
            raise
        raise SphereBenchError(
            "out of memory with one row at a time: use a smaller model, model.dtype=bfloat16 or "
            "another device"
        ) from error
