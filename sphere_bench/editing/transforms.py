"""Transforms of proposed updates, (W0, W, dW) -> dW: SPHERE, REVIVE, RECT, PRUNE."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError, check_above, check_between
from sphere_bench.geometry.energy import as_double
from sphere_bench.geometry.subspace import leading_directions


class EditedWeight(NamedTuple):
    """The weight that an update is meant for.

    Attributes:
        layer: its decoder layer.
        pretrained: W0, [d_out, d_in].
        current: W before the update, [d_out, d_in].
    """

    layer: int
    pretrained: Tensor
    current: Tensor


class Transform(Protocol):
    """Maps a proposed update to another.

    It may remember something between updates: then it has ``state_dict()`` and
    ``load_state_dict(state)``, as an :class:`~sphere_bench.editing.editor.Editor` may.
    """

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        """The update [d_out, d_in] to write, of the shape of the one proposed."""


class Sphere:
    """SPHERE (arXiv 2510.01172): dW P, P = I - alpha U U^T, U the weight's principal directions.

    U [d_in, r] holds the leading eigenvectors of W^T W. Their number r is the smallest with which
    the eigenvalues reach the share ``eta`` of the total. P is never formed: the result is
    dW - alpha (dW U) U^T.

    Args:
        alpha: suppression strength, 0 (identity) to 1 (hard projection).
        eta: share of the eigenvalues' sum.
        basis: take U from the ``pretrained`` weight, once (the paper), or from the ``current`` one
            at every update (the published code).
        normalize_rows: divide W's rows by their norms first (the published code).
        rank_rule: ``paper`` as above, or ``published-code``: one more than the number of
            eigenvalues up to a cumulative share of eta.
    """

    def __init__(
        self,
        alpha: float,
        eta: float = 0.5,
        basis: Literal["pretrained", "current"] = "pretrained",
        normalize_rows: bool = False,
        rank_rule: Literal["paper", "published-code"] = "paper",
    ) -> None:
        self.alpha = alpha
        self.eta = eta
        self.basis = basis
        self.normalize_rows = normalize_rows
        self.rank_rule = rank_rule
        self.ranks: dict[int, int] = {}
        self._directions: dict[int, Tensor] = {}

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        directions = self._principal(weight).to(update)
        return update - self.alpha * (update @ directions) @ directions.T

    def _principal(self, weight: EditedWeight) -> Tensor:
        """U of the weight, [d_in, r]."""
        if self.basis == "current" or weight.layer not in self._directions:
            matrix = weight.pretrained if self.basis == "pretrained" else weight.current
            found = leading_directions(matrix, self.eta, self.rank_rule, self.normalize_rows)
            self.ranks[weight.layer] = found.shape[1]
            self._directions[weight.layer] = found
        return self._directions[weight.layer]


class Revive:
    """REVIVE (arXiv 2601.11042): (I - U U^T) dW (I - V V^T), nothing in or out of what is dominant.

    U [d_out, k] and V [d_in, k] are the pretrained weight's leading singular vectors: the smallest
    k with which the squared singular values reach the share ``energy`` of their sum. Of dW, in the
    basis of u_i v_j^T, every term with i <= k or j <= k is left out.

    Args:
        energy: the share, above 0 and up to 1.

    Raises:
        SphereBenchError: ``energy`` is no such share.
    """

    def __init__(self, energy: float = 0.5) -> None:
        check_above("Revive: energy", energy, 0)
        check_between("Revive: energy", energy, 0, 1)
        self.energy = energy
        self._dominant: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        if weight.layer not in self._dominant:
            self._dominant[weight.layer] = self._subspaces(weight.pretrained)
        left, right = (basis.to(update) for basis in self._dominant[weight.layer])
        update = update - left @ (left.T @ update)
        return update - (update @ right) @ right.T

    def _subspaces(self, pretrained: Tensor) -> tuple[Tensor, Tensor]:
        """U and V of W0 [d_out, d_in]."""
        right = leading_directions(pretrained, self.energy)
        outputs = as_double(pretrained) @ right  # their norms are the singular values
        return outputs / outputs.norm(dim=0), right


class Rect:
    """RECT (arXiv 2401.04700): keep the entries that change most, relative to the weight.

    Args:
        keep: share of the entries of dW to keep, those with the largest |dW / (W + 1e-8)|. The
            threshold is that of the published code, the int((1 - keep) * entries)-th smallest.

    Raises:
        SphereBenchError: ``keep`` is no share above 0.
    """

    def __init__(self, keep: float = 0.4) -> None:
        if not 0 < keep <= 1:
            raise SphereBenchError(f"Rect: keep={keep} must be above 0 and at most 1")
        self.keep = keep

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        change = (update / (weight.current.to(update) + 1e-8)).abs()
        dropped = int((1 - self.keep) * change.numel())
        if not dropped:
            return update
        entries = change.flatten()
        # Selecting is faster than sorting, but twenty times slower on CUDA.
        if entries.device.type == "cpu":
            threshold = entries.kthvalue(dropped).values
        else:
            threshold = entries.sort().values[dropped - 1]
        return update * (change >= threshold)


class Prune:
    """PRUNE (arXiv 2405.16821): damp the large singular values of the whole change W - W0.

    A value s above s_max, the largest one of W0, becomes log(s) - log(s_max) + s_max.
    """

    def __init__(self) -> None:
        self._bounds: dict[int, Tensor] = {}

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        earlier = (weight.current - weight.pretrained).to(update)
        change = earlier + update
        if weight.layer not in self._bounds:
            pretrained = _wide(as_double(weight.pretrained))
            squares = torch.linalg.eigvalsh(pretrained @ pretrained.T)
            self._bounds[weight.layer] = squares[-1].sqrt()
        bound = self._bounds[weight.layer].to(update)
        # No singular value is above the norm of all of them.
        if change.norm() <= bound:
            return update
        # The large ones alone are needed: the smaller Gram matrix has them, at a fraction of the
        # cost of a decomposition of the change.
        matrix = _wide(change)
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
        values = squares.clamp(min=0).sqrt()
        large = values > bound
        values, vectors = values[large], vectors[:, large]
        excess = 1 - (values.log() - bound.log() + bound) / values
        taken: Tensor = (vectors * excess) @ (vectors.T @ matrix)
        return update - (taken if matrix.shape == change.shape else taken.T)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, transposed if it has more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
