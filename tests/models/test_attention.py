"""Attention in which heads share keys and values equals transformers' own."""

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sphere_bench.models.replay.attention import grouped_attention, replay_attention


@pytest.mark.parametrize("mask_kind", ["bool", "float", "none", "per head"])
@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_heads_that_share_keys_attend_as_repeated_ones(
    mask_kind: str, groups: int, scaling: float | None
) -> None:
    heads, length, width = 6, 3, 5
    query = torch.randn(2, heads, length, 4, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, groups, width, 4, dtype=torch.float64) for _ in range(2))
    module = nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]
    allowed = torch.ones(2, heads if mask_kind == "per head" else 1, length, width).tril(2).bool()
    mask = {
        "float": torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -1e9),
        "none": None,
    }.get(mask_kind, allowed)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    expected, _ = attend(module, query, key, value, mask, scaling=scaling)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), query)
    found, _ = grouped_attention(attend, module, query, key, value, mask, scaling)
    (gradient,) = torch.autograd.grad(found.square().sum(), query)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_that_sees_nothing_stays_finite(dtype: torch.dtype) -> None:
    query, key = (
        torch.full((1, 2, 1, 4), 30, dtype=dtype),
        torch.full((1, 2, 3, 4), -30, dtype=dtype),
    )
    mask = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    found, _ = grouped_attention(
        ALL_ATTENTION_FUNCTIONS["sdpa"], nn.Module(), query, key, key, mask
    )
    assert torch.isfinite(found).all()


def test_what_the_library_refuses_is_refused() -> None:
    tensor, mask = torch.ones(1, 2, 1, 4), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(attend, nn.Module(), tensor, tensor, tensor, mask, softcap=30.0)


def test_the_library_has_its_own_attention_back_after_an_error() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(KeyError), replay_attention(torch.device("cpu")):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
