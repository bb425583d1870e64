"""Attention of a few new tokens to themselves and to a prefix whose keys and values are known."""

import torch
from torch import Tensor


def attend_behind(
    prefix: tuple[Tensor, Tensor] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention to a prefix and to the tokens behind it.

    Heads with the same keys and values are treated as more queries of one head, and the prefix is
    neither copied behind the new keys nor given a gradient: on a CPU either would take longer
    than the attention itself.

    Args:
        prefix: its keys and values, [b, groups, p, d_head]; ``None`` if there is none.
        query: [b, s, heads, d_head].
        key, value: [b, s, groups, d_head].
        mask: is added to the scores, [b, 1, s, p + s].
        scaling: of the scores; ``None`` is d_head^-0.5.
        softcap: bound of the scores, by tanh; ``None`` is no bound.

    Returns:
        [b, s, heads, d_head].
    """
    batch, length, heads, width = query.shape
    groups, total = key.shape[2], mask.shape[-1]
    query = query * (width**-0.5 if scaling is None else scaling)
    query = query.view(batch, length, groups, -1, width).permute(0, 2, 3, 1, 4)
    query = query.reshape(batch, groups, -1, width)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    scores = query @ key.transpose(2, 3)
    if prefix is not None:
        scores = torch.cat([query @ prefix[0].transpose(2, 3), scores], dim=-1)
    scores = scores.view(batch, heads, length, total)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The softmax is at least float32, as in the plain attention of transformers.
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = (scores + mask).softmax(dim=-1, dtype=exact).to(scores.dtype)
    weights = weights.view(batch, groups, -1, total)
    output = weights[..., total - length :] @ value
    if prefix is not None:
        output = output + weights[..., : total - length] @ prefix[1]
    return output.view(batch, heads, length, -1).transpose(1, 2)


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores in ``dtype``: 0 where ``seen`` is true, and a large negative number.

    A query that sees nothing stays finite, in float16 as well.
    """
    zero = torch.zeros((), dtype=dtype, device=seen.device)
    return zero.where(seen, torch.finfo(dtype).min / 2)
