"""Attention of a few new tokens to a long prefix, fast on a CPU."""

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
    """On the CPU, the plain kernel and keys and values that are not repeated for every head.

    Flash attention's backward is eight times slower there in bfloat16, and repeating the prefix
    costs more than attending to it.
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
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in which the heads that share keys and values are further queries of one head.

    Args:
        attend: transformers' own, which repeats keys and values for the heads of ``module``.
        query: [b, heads, s, d_head].
        key, value: [b, groups, t, d_head].
        attention_mask: [b, 1, s, t].

    Returns:
        [b, s, heads, d_head].
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    shared_mask = attention_mask is not None and attention_mask.shape[1:3] == (1, length)
    if heads == groups or not shared_mask or options.get("position_bias") is not None:
        return attend(module, query, key, value, attention_mask, **options)
    assert attention_mask is not None
    packed = query.reshape(batch, groups, -1, width)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)
    output, _ = attend(None, packed, key, value, mask, **options)
    return output.transpose(1, 2).reshape(batch, heads, length, -1).transpose(1, 2), None
