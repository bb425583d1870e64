"""Hyperspherical energy of a weight's neurons and the angles between them.

A neuron is a row of a weight [out, in], divided by its norm: a point on the unit sphere. The energy
is low when the points are spread evenly (Liu et al., "Learning towards Minimum Hyperspherical
Energy", arXiv 1805.09298).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class RowGeometry(NamedTuple):
    """How the n rows of a weight lie on the sphere; the cosines are over all pairs i < j.

    Attributes:
        energy: hyperspherical energy, the sum over ordered pairs.
        energy_normalized: the same divided by n(n-1), so that weights of any width compare.
        cos_mean, cos_std: mean and population standard deviation.
        cos_p01, cos_p99: 1st and 99th percentile, interpolated linearly between order statistics.
    """

    energy: float
    energy_normalized: float
    cos_mean: float
    cos_std: float
    cos_p01: float
    cos_p99: float


def row_geometry(
    weight: Tensor, exponent: float = 1.0, eps: float = 1e-6, block_rows: int = 256
) -> RowGeometry:
    """Hyperspherical energy of the neurons and the angles between them, in one pass.

    The energy is the sum over all ordered pairs i != j of (||x_i - x_j||^2 + eps)^-exponent, x the
    unit rows. It is computed in double precision: the change from one batch of edits is often below
    1e-4 of the total, and a pair of nearly equal rows weighs up to eps^-exponent. The Gram matrix
    is held in blocks of rows, never n x n x d differences.

    The percentiles are exact up to float32 rounding: all n(n-1)/2 cosines are kept for them in
    that precision, which is less than the weight itself occupies whenever n < 2d.

    Args:
        weight: [n, d], any floating dtype. A row of zeros stays at the origin: its distance to
            every unit row is one, its cosine zero; equal rows have distance zero. Both give finite
            energies.
        exponent: positive.
        eps: positive; it bounds what a pair of equal rows contributes.
        block_rows: rows of the Gram matrix held at a time.

    Returns:
        The summary; with fewer than two rows the energy is 0 and everything else NaN. All of it is
        NaN when the weight is not finite.
    """
    if not torch.isfinite(weight).all():
        return RowGeometry(*[math.nan] * len(RowGeometry._fields))
    pair_count = weight.shape[0] * (weight.shape[0] - 1) // 2
    if pair_count < 1:
        return RowGeometry(0.0, math.nan, math.nan, math.nan, math.nan, math.nan)
    # Summed on the weight's device and fetched once: each transfer would wait for the device.
    parts: list[Tensor] = []
    kept: list[Tensor] = []
    for cosines, squared_distances in row_pairs(weight, block_rows):
        energies = _one_way_energy(squared_distances, exponent, eps)
        parts.append(torch.stack([energies, cosines.sum(), cosines.square().sum()]))
        kept.append(cosines.float())
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    energy, cosine_sum, square_sum = total.tolist()
    mean = cosine_sum / pair_count
    all_cosines = torch.cat(kept)
    return RowGeometry(
        energy=2 * energy,
        energy_normalized=energy / pair_count,
        cos_mean=mean,
        cos_std=math.sqrt(max(0.0, square_sum / pair_count - mean**2)),
        cos_p01=_extreme_percentile(all_cosines, largest=False),
        cos_p99=_extreme_percentile(all_cosines, largest=True),
    )


def unit_rows(weight: Tensor) -> Tensor:
    """Rows of ``weight`` [n, d] divided by their norms, in double precision; zero rows stay zero.

    The result is on the weight's device, or on the CPU where the device has no double precision.
    """
    rows = as_double(weight)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


def as_double(weight: Tensor) -> Tensor:
    """``weight`` in float64, moved to the CPU first where its device lacks that type (MPS)."""
    if weight.device.type == "mps":
        weight = weight.cpu()
    return weight.double()


def row_pairs(weight: Tensor, block_rows: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and squared distances of the pairs i < j, a block of rows i at a time, each [m]."""
    rows = unit_rows(weight.detach())
    # 1 for a unit row, 0 for a zero row: exact where the rounded squared norm is not.
    lengths = (rows != 0).any(dim=1).double()
    for start in range(0, len(rows), block_rows):
        block = slice(start, start + block_rows)
        gram = rows[block] @ rows[start:].T  # [b, n - start], its diagonal the pairs i = i
        distances = (lengths[block, None] + lengths[start:] - 2 * gram).clamp_(min=0)
        # Indices of known number: a device would have to count the places of a mask first.
        count, total = gram.shape
        row, column = torch.triu_indices(count, total, offset=1, device=gram.device)
        places = row * total + column
        yield gram.flatten()[places], distances.flatten()[places]


def _one_way_energy(squared_distances: Tensor, exponent: float, eps: float) -> Tensor:
    """Half the energy: each pair counted once."""
    return (squared_distances + eps).pow(-exponent).sum()


def _extreme_percentile(values: Tensor, largest: bool) -> float:
    """The 99th (``largest``) or 1st percentile, interpolated as ``numpy.percentile`` does it."""
    position = 0.01 * (len(values) - 1)  # counted from the end in question
    index = math.floor(position)
    extremes = values.topk(min(index + 2, len(values)), largest=largest).values
    found: list[float] = extremes[index:].tolist()  # two, or the last one alone
    return found[0] + (position - index) * (found[-1] - found[0])
