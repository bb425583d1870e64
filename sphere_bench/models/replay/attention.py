"""Attention of a few new tokens to a long prefix that is fast on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextmanager
def replay_attention(device: torch.device) -> Iterator[None]:
    """On the CPU, use plain attention, and do not repeat keys and values for every head.

    There, the backward pass of flash attention is eight times slower in bfloat16, and repeating
    the prefix takes longer than the attention to it.
    """
    if device.type != "cpu":
        yield
        return
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(grouped_attention, before)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def grouped_attention(
    attend: Callable[..., tuple[Tensor, None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention that treats heads with the same keys and values as more queries of one head.

    Args:
        attend: the function of transformers, for other masks and for options not known here.
        query: [b, heads, s, d_head].
        key, value: [b, groups, t, d_head].
        attention_mask: [b, 1, s, t].

    Returns:
        [b, s, heads, d_head].
    """
    batch, heads, length, width = query.shape
    groups, total = key.shape[1:3]
    shared_mask = attention_mask is not None and attention_mask.shape[1:] == (1, length, total)
    special = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    if not shared_mask or special:
        return attend(module, query, key, value, attention_mask, scaling=scaling, **options)
    assert attention_mask is not None
    if attention_mask.dtype == torch.bool:
        # So a query that sees nothing stays finite, in float16 as well.
        lowest = torch.finfo(query.dtype).min / 2
        attention_mask = query.new_zeros(()).where(attention_mask, lowest)
    scaling = width**-0.5 if scaling is None else scaling
    packed = (query * scaling).reshape(batch, groups, -1, width)
    scores = (packed @ key.transpose(2, 3)).view(batch, heads, length, total) + attention_mask
    # The softmax is at least float32, as in the plain attention of transformers.
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(query.dtype)
    output = weights.view(batch, groups, -1, total) @ value
    return output.view(batch, heads, length, -1).transpose(1, 2), None
