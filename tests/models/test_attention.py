"""Attention behind a prefix equals transformers' own attention to prefix and new tokens."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from sphere_bench.models.replay.attention import additive_mask, attend_behind

HEADS, LENGTH, WIDTH = 6, 3, 4


def of_transformers(
    prefix: tuple[Tensor, Tensor] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    module = nn.Module()
    module.num_key_value_groups = HEADS // key.shape[2]  # type: ignore[assignment]
    module.head_dim = WIDTH  # type: ignore[assignment]
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
    return eager_attention_forward(
        module, query, key, value, mask, scaling=scaling, softcap=softcap
    )[0]


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("scaling, softcap", [(None, None), (0.3, None), (None, 0.7)])
def test_attention_behind_a_prefix_is_attention_to_all(
    before: int, groups: int, scaling: float | None, softcap: float | None
) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    own = [random(2, LENGTH, count, WIDTH) for count in (HEADS, groups, groups)]
    prefix = (random(2, groups, before, WIDTH), random(2, groups, before, WIDTH))
    seen = torch.ones(2, 1, LENGTH, before + LENGTH).tril(before).bool()
    if before:
        seen[1, :, :, :1] = False  # padding
    mask = additive_mask(seen, torch.float64)
    found, expected = (
        attend(prefix if before else None, *own, mask, scaling, softcap)  # type: ignore[operator]
        for attend in (attend_behind, of_transformers)
    )
    # transformers takes its softmax in float32.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(out.square().sum(), own) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_that_sees_nothing_stays_finite(dtype: torch.dtype) -> None:
    query = torch.full((1, 1, 2, 4), 30, dtype=dtype)
    mask = additive_mask(torch.zeros(1, 1, 1, 1, dtype=torch.bool), dtype)
    assert torch.isfinite(attend_behind(None, query, -query, query, mask)).all()
