"""Principal directions of a weight, the subspace that SPHERE keeps updates out of."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sphere_bench.geometry.energy import as_double, unit_rows

RankRule = Literal["paper", "published-code"]

# Shares are sums of rounded eigenvalues: four equal ones must reach 0.5 with two.
_SHARE_TOLERANCE = 1e-12


class PrincipalDirections(NamedTuple):
    """Directions of largest variance of a weight's rows.

    Attributes:
        directions: [d_in, m], orthonormal columns, the strongest first, float64.
        eigenvalues: [m] of W^T W / n, descending and positive, float64.
    """

    directions: Tensor
    eigenvalues: Tensor


def principal_directions(weight: Tensor, normalize_rows: bool = False) -> PrincipalDirections:
    """Unit vectors v that maximise ||W v||^2 / n one after another (arXiv 2510.01172, eq. of v).

    They are the eigenvectors of W^T W / n. Whichever of W^T W and W W^T is smaller is decomposed:
    an eigenvector u of W W^T gives v = W^T u / s with s the singular value.

    Args:
        weight: W [n, d_in], any floating dtype.
        normalize_rows: divide every row by its norm first, as SPHERE's published code does.

    Returns:
        m <= min(n, d_in) directions: those whose eigenvalue is numerically zero, so that their
        direction is rounding noise, are left out.
    """
    rows = unit_rows(weight.detach()) if normalize_rows else as_double(weight.detach())
    count, width = rows.shape
    wide = count < width
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0), vectors.flip(1)
    smallest = values[:1].clamp(min=0) * max(count, width) * torch.finfo(torch.float64).eps
    rank = int((values > smallest).sum())
    values, vectors = values[:rank], vectors[:, :rank]
    directions = rows.T @ vectors / values.sqrt() if wide else vectors
    return PrincipalDirections(directions, values / count)


def rank_for_share(eigenvalues: Tensor, eta: float, rule: RankRule = "paper") -> int:
    """How many leading eigenvalues make up the share ``eta`` of their sum.

    Args:
        eigenvalues: [m], descending, not negative.
        eta: cumulative ratio in [0, 1].
        rule: ``paper``: the smallest count whose share reaches eta. ``published-code``: the number
            of counts 1, 2, ... whose share does not exceed eta, plus one; one more than the
            paper's when a share equals eta, otherwise the same.

    Returns:
        A rank between 0 and m.
    """
    if rule not in ("paper", "published-code"):
        raise ValueError(f"unknown rank rule {rule!r}")
    if not len(eigenvalues):
        return 0
    sums = eigenvalues.double().cumsum(0)
    shares = sums / sums[-1]
    if rule == "published-code":
        return min(int((shares <= eta + _SHARE_TOLERANCE).sum()) + 1, len(shares))
    if eta <= 0:
        return 0
    return min(int((shares < eta - _SHARE_TOLERANCE).sum()) + 1, len(shares))


def leading_directions(
    weight: Tensor, eta: float, rule: RankRule = "paper", normalize_rows: bool = False
) -> Tensor:
    """The principal directions that make up the share ``eta``, [d_in, r]: what SPHERE suppresses.

    Args:
        weight, normalize_rows: see :func:`principal_directions`.
        eta, rule: see :func:`rank_for_share`.
    """
    directions, eigenvalues = principal_directions(weight, normalize_rows)
    return directions[:, : rank_for_share(eigenvalues, eta, rule)].contiguous()


def energy_share(basis: Tensor, moment: Tensor) -> float:
    """tr(V^T C V) / tr(C): the share of the sum of squares that lies in a subspace.

    Args:
        basis: V [d, m], orthonormal columns.
        moment: C [d, d], second moment of the vectors.
    """
    basis, moment = as_double(basis), as_double(moment)
    return ((basis * (moment @ basis)).sum() / moment.trace()).item()


def share_within(rows: Tensor, basis: Tensor) -> float:
    """||X V||^2 / ||X||^2: how much of the rows of X lies in a subspace; NaN where X is 0.

    Args:
        rows: X [n, d], any floating dtype.
        basis: V [d, m], orthonormal columns.
    """
    rows = as_double(rows)
    return ((rows @ as_double(basis)).square().sum() / rows.square().sum()).item()
