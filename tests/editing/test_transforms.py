import pytest
import torch

from sphere_bench.editing.transforms import EditedWeight, Revive, Sphere
from sphere_bench.errors import SphereBenchError

OUT, WIDTH = 6, 10


@pytest.fixture
def weight() -> EditedWeight:
    torch.manual_seed(0)
    pretrained = torch.randn(OUT, WIDTH)
    return EditedWeight(3, pretrained, pretrained + torch.randn(OUT, WIDTH))


def leading(matrix: torch.Tensor, count: int) -> torch.Tensor:
    return torch.linalg.svd(matrix.double()).Vh[:count].T


def test_alpha_zero_changes_nothing(weight: EditedWeight) -> None:
    update = torch.randn(OUT, WIDTH, dtype=torch.float64)
    assert torch.equal(Sphere(alpha=0.0)(update, weight), update)


def test_alpha_one_leaves_nothing_in_the_principal_directions(weight: EditedWeight) -> None:
    sphere = Sphere(alpha=1.0, eta=0.6)
    update = torch.randn(OUT, WIDTH, dtype=torch.float64)
    projected = sphere(update, weight)
    directions = leading(weight.pretrained, sphere.ranks[3])
    assert (projected @ directions).norm() < 1e-10 * update.norm()


@pytest.mark.parametrize("basis", ["pretrained", "current"])
def test_projection_equals_the_explicit_projector(weight: EditedWeight, basis: str) -> None:
    sphere = Sphere(alpha=0.7, eta=0.5, basis=basis)  # type: ignore[arg-type]
    update = torch.randn(OUT, WIDTH, dtype=torch.float64)
    projected = sphere(update, weight)
    matrix = weight.pretrained if basis == "pretrained" else weight.current
    directions = leading(matrix, sphere.ranks[3])
    projector = torch.eye(WIDTH) - 0.7 * directions @ directions.T
    torch.testing.assert_close(projected, update @ projector, rtol=1e-9, atol=1e-9)


def test_a_pretrained_basis_does_not_follow_the_weight(weight: EditedWeight) -> None:
    sphere = Sphere(alpha=1.0)
    update = torch.randn(OUT, WIDTH, dtype=torch.float64)
    first = sphere(update, weight)
    moved = weight._replace(current=torch.randn(OUT, WIDTH))
    assert torch.equal(sphere(update, moved), first)
    following = Sphere(alpha=1.0, basis="current")
    assert not torch.allclose(following(update, weight), following(update, moved))


@pytest.mark.parametrize("shape", [(OUT, WIDTH), (WIDTH, OUT)])
@pytest.mark.parametrize("energy", [0.3, 0.5, 0.9])
def test_revive_leaves_out_every_term_of_a_dominant_input_or_output(
    energy: float, shape: tuple[int, int]
) -> None:
    """dW = sum_ij a_ij u_i v_j^T; terms with i <= k or j <= k are dropped."""
    torch.manual_seed(1)
    pretrained, update = torch.randn(shape), torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(pretrained.double(), full_matrices=True)
    total, reached, rank = values.square().sum(), 0.0, 0
    while reached < energy * total:
        reached, rank = reached + values[rank].item() ** 2, rank + 1
    assert 0 < rank < OUT
    terms = left.T @ update @ right.T
    terms[:rank] = 0
    terms[:, :rank] = 0
    weight = EditedWeight(0, pretrained, pretrained + 1)
    revive = Revive(energy)
    for _ in range(2):  # the second time from what the first one found
        assert torch.allclose(revive(update, weight), left @ terms @ right, rtol=0, atol=5e-14)


@pytest.mark.parametrize("energy", [0, 1.1, float("nan")])
def test_a_share_of_energy_is_above_0_and_at_most_1(energy: float) -> None:
    with pytest.raises(SphereBenchError, match=r"^Revive: energy="):
        Revive(energy)
