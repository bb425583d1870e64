import numpy as np
import torch

from sphere_bench.geometry.neurons import (
    COSINE_BINS,
    PLANE_NEURONS,
    describe_neurons,
    principal_plane,
)


def random_weight(neurons: int, width: int) -> torch.Tensor:
    return torch.randn(neurons, width, generator=torch.Generator().manual_seed(0))


def test_cosines_are_counted_as_numpy_counts_them_over_all_pairs():
    weight = random_weight(300, 7)
    rows = weight.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows @ rows.T)[np.triu_indices(300, k=1)]
    counts = describe_neurons(weight, principal_plane(weight)).cosine_counts
    assert sum(counts) == 300 * 299 / 2
    # Not exactly equal: a cosine on the edge of two bins may be rounded into either.
    edges = np.linspace(-1, 1, COSINE_BINS + 1)
    np.testing.assert_allclose(counts, np.histogram(cosines, edges)[0], atol=1)


def test_equal_and_opposite_neurons_fall_into_the_outermost_bins():
    weight = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [-1.0, -2.0, -3.0]])
    counts = describe_neurons(weight, principal_plane(weight)).cosine_counts
    assert (counts[0], counts[-1], sum(counts)) == (2, 1, 3)


def test_the_plane_of_a_diagonal_weight_is_its_two_longest_axes():
    weight = torch.diag(torch.tensor([1.0, -5.0, 3.0]))
    plane = principal_plane(weight)
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(plane, expected)
    drawn = describe_neurons(2 * weight, plane)
    assert (drawn.neurons, drawn.plane_x, drawn.plane_y) == ([0, 1, 2], [0, -10, 0], [0, 0, 6])


def test_a_weight_of_rank_one_has_a_plane_too():
    plane = principal_plane(torch.ones(4, 3))
    torch.testing.assert_close(plane[:, 0], torch.full((3,), 3**-0.5, dtype=torch.float64))
    assert (plane[:, 1] == 0).all()


def test_a_large_weight_is_drawn_by_some_of_its_neurons():
    weight = random_weight(1000, 4)
    drawn = describe_neurons(weight, principal_plane(weight))
    assert len(drawn.neurons) == len(drawn.plane_x) == len(set(drawn.neurons)) == PLANE_NEURONS
    assert (drawn.neurons[0], drawn.neurons[-1]) == (0, 999)


def test_a_weight_that_is_not_finite_is_drawn_without_its_bad_cosines():
    weight = random_weight(5, 4)
    plane = principal_plane(weight)
    weight[2, 1] = torch.nan
    assert sum(describe_neurons(weight, plane).cosine_counts) == 4 * 3 / 2
