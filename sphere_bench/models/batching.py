"""Puts rows of different lengths into padded batches of limited size."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from sphere_bench.errors import SphereBenchError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The cost of one more forward pass, as the number of tokens that take as long to compute.
_TOKENS_A_FORWARD_IS_WORTH = 32
# As many times that, on a CPU, where the padding is in attention alone, not in the linear layers.
# Measured on SmolLM2-135M: from 3 to 12 the seconds are the same, at 60 they are more.
_IN_ATTENTION_ALONE = 12
# On an accelerator, which computes faster than its kernels are launched.
_ON_AN_ACCELERATOR = 1000

# What accelerate does not know: the driver's own message, and libraries that find no workspace.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def launch_price(device: torch.device, *, attention_alone: bool = False) -> int:
    """The cost of one more forward pass on ``device``, or of one more attention, in tokens."""
    if device.type != "cpu":
        return _ON_AN_ACCELERATOR
    return _TOKENS_A_FORWARD_IS_WORTH * (_IN_ATTENTION_ALONE if attention_alone else 1)


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows of token ids as one tensor [rows, longest], with ``value`` after the shorter ones.

    With causal attention no real token sees the padding after it, so no mask is needed.
    """
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded


def token_batches(
    lengths: Sequence[int], tokens_per_batch: int, price: int | None = None
) -> list[list[int]]:
    """Indices of rows, grouped by similar length, with the padded size of a group limited.

    The total cost of padding and of starting the forwards is the least possible. A row longer than
    ``tokens_per_batch`` is a group of its own. The groups are ordered by length.

    Args:
        lengths: of the rows.
        tokens_per_batch: the limit.
        price: of starting a forward, in tokens; see :func:`launch_price`.
    """
    price = _TOKENS_A_FORWARD_IS_WORTH if price is None else price
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
            cost = rows * width + price * chunks(rows, width)
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


@dataclass
class Budget:
    """How much goes into one forward; what memory allowed is remembered for the rest of a run.

    Attributes:
        size: padded tokens, or whatever else the work is counted in.
    """

    size: int


def backing_off(
    function: Callable[[int], Result], budget: int | Budget, unit: str = "tokens"
) -> Result:
    """Call ``function(size)``, and again with half of it whenever memory runs out.

    Args:
        function: takes a size and needs memory in proportion to it.
        budget: the size to begin with, in ``unit``; a :class:`Budget` keeps the one that fitted.

    Raises:
        SphereBenchError: there is not enough memory for a single row.
    """
    remembered = Budget(budget) if isinstance(budget, int) else budget
    while True:
        try:
            return function(remembered.size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if remembered.size <= 1:
                raise SphereBenchError(
                    "out of memory with one row at a time: use a smaller model, "
                    "model.dtype=bfloat16 or another device"
                ) from error
        # Behind the handler, where the error no longer holds the frames and their tensors.
        remembered.size //= 2
        logger.warning("out of memory: going on with batches of %d %s", remembered.size, unit)
        clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that memory ran out, on whichever device."""
    return should_reduce_batch_size(error) or any(sign in str(error) for sign in _OUT_OF_MEMORY)
