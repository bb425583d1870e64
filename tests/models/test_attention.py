"""Attention in which heads share keys and values equals transformers' own."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sphere_bench.models.attention import cpu_attention, grouped_attention


@pytest.mark.parametrize("mask_kind", ["bool", "float", "none", "per head"])
def test_heads_that_share_keys_attend_as_repeated_ones(mask_kind: str) -> None:
    heads, groups, length, width = 6, 2, 3, 5
    query = torch.randn(2, heads, length, 4, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, groups, width, 4, dtype=torch.float64) for _ in range(2))
    module = torch.nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]
    allowed = torch.ones(2, heads if mask_kind == "per head" else 1, length, width).tril(2).bool()
    mask = {
        "float": torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -1e9),
        "none": None,
    }.get(mask_kind, allowed)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    expected, _ = attend(module, query, key, value, mask)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), query)
    found, _ = grouped_attention(attend, module, query, key, value, mask)
    (gradient,) = torch.autograd.grad(found.square().sum(), query)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_the_library_has_its_own_attention_back_after_an_error() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(KeyError), cpu_attention(torch.device("cpu")):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
