"""Which layers are tried on a model of so many."""

import pytest

from sphere_bench.calibration.layers import candidate_layers

PUBLISHED = {
    "gpt2-xl": (48, (13, 14, 15, 16, 17)),
    "llama3-8b": (32, (4, 5, 6, 7, 8)),
    "qwen2.5-7b": (28, (4, 5, 6, 7, 8)),
    "phi-1.5": (24, (4, 5, 6, 7, 8)),
}


@pytest.mark.parametrize(("depth", "layers"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_published_layers_are_among_those_that_are_tried(
    depth: int, layers: tuple[int, ...]
) -> None:
    assert layers in candidate_layers(depth)


@pytest.mark.parametrize("depth", [*range(1, 100)])
def test_the_candidates_are_few_and_lie_in_the_first_half(depth: int) -> None:
    candidates = candidate_layers(depth)
    assert 1 <= len(candidates) == len(set(candidates)) <= 3
    for layers in candidates:
        assert list(layers) == list(range(layers[0], layers[-1] + 1))
        assert 0 <= layers[0] <= layers[-1] <= depth / 2
        assert len(layers) <= 5
