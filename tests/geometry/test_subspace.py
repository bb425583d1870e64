import json

import numpy as np
import pytest
import torch

from sphere_bench.geometry.subspace import principal_directions, rank_for_share

MODELS = ("tiny-llama", "tiny-gpt2")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("eta", [0.2, 0.5, 0.8])
def test_ranks_equal_the_published_codes(golden_folder, golden_weight, name, layer, eta):
    figures = json.loads((golden_folder / name / "published.json").read_text())
    _, eigenvalues = principal_directions(golden_weight(name, layer), normalize_rows=True)
    rank = rank_for_share(eigenvalues, eta, "published-code")
    assert rank == figures[f"rank_e{eta}_{layer}"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("eta, alpha", [(0.2, 0.5), (0.5, 0.5), (0.5, 0.8), (0.8, 1.0)])
def test_the_subspace_projects_an_update_as_the_published_code_does(
    golden_folder, golden_weight, name, layer, eta, alpha
):
    figures = np.load(golden_folder / name / "published.npz")
    update = torch.from_numpy(figures[f"memit_b1_{layer}"]).double()
    directions, eigenvalues = principal_directions(golden_weight(name, layer), normalize_rows=True)
    kept = directions[:, : rank_for_share(eigenvalues, eta, "published-code")]
    projected = update - alpha * (update @ kept) @ kept.T
    expected = torch.from_numpy(figures[f"proj_e{eta}_a{alpha}_{layer}"]).double()
    assert (projected - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("normalize_rows", [False, True])
def test_directions_are_the_eigenvectors_of_the_second_moment_of_the_rows(shape, normalize_rows):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows = weight.double()
    if normalize_rows:
        rows = rows / rows.norm(dim=1, keepdim=True)
    directions, eigenvalues = principal_directions(weight, normalize_rows)
    moment = rows.T @ rows / shape[0]
    size = min(shape)
    assert directions.shape == (shape[1], size)
    torch.testing.assert_close(moment @ directions, directions * eigenvalues)
    torch.testing.assert_close(
        directions.T @ directions, torch.eye(size, dtype=torch.float64), atol=1e-10, rtol=0
    )
    assert (eigenvalues.diff() <= 0).all()
    torch.testing.assert_close(eigenvalues.sum(), moment.trace())


def test_directions_of_a_diagonal_weight_are_its_axes():
    # Rows (0, 3, 0) and (1, 0, 0): W^T W / 2 = diag(1/2, 9/2, 0), so the second axis leads.
    directions, eigenvalues = principal_directions(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(eigenvalues, torch.tensor([4.5, 0.5], dtype=torch.float64))
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(directions.abs(), expected)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_a_rank_deficient_weight_has_as_many_directions_as_its_rank(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape[0], 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, shape[1], generator=generator, dtype=torch.float64
    )
    weight[3] = 0
    directions, _ = principal_directions(weight)
    assert directions.shape == (shape[1], 4)
    torch.testing.assert_close(weight @ directions @ directions.T, weight)


@pytest.mark.parametrize("normalize_rows", [False, True])
def test_a_weight_of_zeros_has_no_directions(normalize_rows):
    directions, eigenvalues = principal_directions(torch.zeros(3, 5), normalize_rows)
    assert directions.shape == (5, 0)
    assert rank_for_share(eigenvalues, 0.5) == 0


@pytest.mark.parametrize(
    "eta, paper, published",
    [
        # Shares of (4, 3, 2, 1): 0.4, 0.7, 0.9, 1.0.
        (0.3, 1, 1),
        (0.4, 1, 2),
        (0.5, 2, 2),
        (0.7, 2, 3),
        (0.95, 4, 4),
        (1.0, 4, 4),
        (0.0, 0, 1),
    ],
)
def test_rank_rules_differ_where_a_share_equals_eta(eta, paper, published):
    eigenvalues = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert rank_for_share(eigenvalues, eta, "paper") == paper
    assert rank_for_share(eigenvalues, eta, "published-code") == published


def test_equal_eigenvalues_reach_a_share_whatever_their_rounding():
    # Four orthogonal rows of length one: four eigenvalues of 1/4, up to rounding.
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    _, eigenvalues = principal_directions(rotation[:4])
    assert rank_for_share(eigenvalues, 0.5, "paper") == 2
    assert rank_for_share(eigenvalues, 0.5, "published-code") == 3
    assert rank_for_share(torch.full((10,), 0.1), 0.3) == 3


def test_an_unknown_rank_rule_is_an_error():
    with pytest.raises(ValueError, match="rank rule"):
        rank_for_share(torch.ones(3), 0.5, "papers")  # type: ignore[arg-type]
