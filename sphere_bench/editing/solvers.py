"""Update solvers: from the keys and residuals of a batch to the update of one weight.

All is computed in double precision. K [d_in, n] holds the keys, R [d_out, n] the residuals.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError, check_at_least, check_choice
from sphere_bench.geometry.energy import as_double

# A symmetric matrix [d, d] to its eigenvalues in rising order and its eigenvectors, as columns.
Decompose: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class UpdateSolver(ABC):
    """(K, R, state) -> dW, layer by layer."""

    #: How C is decomposed, where that is needed; a run sets one that keeps what it found.
    decompose: Decompose = staticmethod(torch.linalg.eigh)

    #: Whether :meth:`remember` must be called with the keys measured after the batch is written.
    remembers_written_keys: bool = False

    @property
    def bases(self) -> Mapping[int, Tensor]:
        """V [d_in, m] of every layer with updates in a null space only, once it is prepared."""
        return {}

    @abstractmethod
    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        """Prepare for the run with C [d_in, d_in] of edited layers, one at a time or several."""

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        """The update dW [d_out, d_in] of ``layer``."""

    @abstractmethod
    def remember(self, layer: int, keys: Tensor) -> None:
        """Remember the keys [d_in, n] of a finished batch at ``layer``.

        Raises:
            torch.linalg.LinAlgError: with these keys no later batch could be solved.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the solver remembers of earlier batches."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""


class LeastSquares(UpdateSolver):
    """Regularised least squares, dW = R K^T (A + K K^T)^-1; most editors are a case of it.

    A = lambda C + ridge I. Where keys are remembered, Kp Kp^T of all earlier batches is added to A.
    With a null space, the system is solved in its coordinates: V [d_in, m] spans the null space, K
    becomes V^T K, C becomes V^T C V, and dW = (...) V^T maps every key orthogonal to it to 0.

    | editor | A | remembers | null space |
    | --- | --- | --- | --- |
    | MEMIT (arXiv 2210.07229) | lambda C | - | - |
    | MEMIT-seq (the same authors' code) | lambda C + Kp Kp^T | written | - |
    | ENCORE (arXiv 2502.01636) | lambda C + Kp Kp^T + ridge I | solved | - |
    | AlphaEdit (arXiv 2410.02355) | Kp Kp^T + L2 I | written | of C |

    By the Woodbury identity, dW = R (K^T A^-1 K + I)^-1 K^T A^-1 is the same, and so is AlphaEdit's
    non-symmetric system in d_in dimensions.

    A is factored once, or once per batch where keys are remembered. A batch then costs n right-hand
    sides and one n x n system, however many batches came before.

    Args:
        second_moment_weight: lambda.
        ridge: factor of the identity.
        remember: add the keys of earlier batches to A: those that the update was ``solved`` with,
            or those that the model has once the batch is ``written``. ``None`` adds none.
        null_space: restricts updates to the null space of C.
    """

    def __init__(
        self,
        second_moment_weight: float = 0.0,
        ridge: float = 0.0,
        remember: Literal["solved", "written"] | None = None,
        null_space: "NullSpace | None" = None,
    ) -> None:
        check_at_least("solver.second_moment_weight", second_moment_weight, 0)
        check_at_least("solver.ridge", ridge, 0)
        self.second_moment_weight = second_moment_weight
        self.ridge = ridge
        check_choice("solver.remember", remember, ("solved", "written", None))
        self.remembered = remember
        self.remembers_written_keys = remember == "written"
        self.null_space = null_space
        self._bases: dict[int, Tensor] = {}
        self._systems: dict[int, Tensor] = {}
        self._factors: dict[int, Tensor] = {}

    @property
    def bases(self) -> Mapping[int, Tensor]:
        return self._bases

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        for layer, moment in second_moments.items():
            if self.null_space is not None:
                self._bases[layer] = self.null_space.basis(moment, layer, self.decompose)
            system = self._ordinary(layer, moment)
            system.diagonal().add_(self.ridge)
            self._factor(layer, system)

    def _ordinary(self, layer: int, moment: Tensor) -> Tensor:
        """lambda C in the m coordinates of the system, [m, m]."""
        basis = self._bases.get(layer)
        if basis is not None and not self.second_moment_weight:
            # Without products that all come to nothing.
            return basis.new_zeros(basis.shape[1], basis.shape[1])
        ordinary = self.second_moment_weight * as_double(moment)
        return ordinary if basis is None else basis.T @ ordinary @ basis

    def add_ridge(self, ridge: float) -> None:
        """Add ``ridge`` times the identity to A of every layer, once it is prepared."""
        self.ridge += ridge
        for layer, factor in list(self._factors.items()):
            system = factor @ factor.T
            system.diagonal().add_(ridge)
            self._factor(layer, system)

    def factor(self, layer: int) -> Tensor:
        """The lower Cholesky factor [m, m] of A, with the keys of earlier batches."""
        return self._factors[layer]

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        projected = self.project(layer, keys)
        weighted = torch.cholesky_solve(projected, self._factors[layer])
        inner = projected.T @ weighted
        inner.diagonal().add_(self._slack(keys.shape[1]))
        weighted = torch.linalg.solve(inner, weighted.T)
        if layer in self._bases:  # before the residual: a batch is smaller than the output
            weighted = weighted @ self._bases[layer].T
        update: Tensor = as_double(residual) @ weighted
        if self.remembered == "solved":
            self.remember(layer, keys)
        return update

    def _slack(self, requests: int) -> float:
        """s of R (K^T A^-1 K + s I)^-1 K^T A^-1, with which one batch of ``requests`` is solved."""
        return 1.0

    def remember(self, layer: int, keys: Tensor) -> None:
        keys = self.project(layer, keys)
        try:
            self._factor(layer, self._systems[layer] + keys @ keys.T)
        except SphereBenchError as error:
            # A was positive definite: next to keys this large it is less than a rounding error.
            raise torch.linalg.LinAlgError(
                f"with its keys the system of layer {layer} is singular"
            ) from error

    def state_dict(self) -> dict[str, Tensor]:
        return {str(layer): system for layer, system in self._systems.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for layer, system in state.items():
            present = self._factors[int(layer)]
            if system.shape != present.shape:
                raise SphereBenchError(
                    f"the checkpoint remembers keys of layer {layer} in {len(system)} dimensions, "
                    f"and now there are {len(present)}: its second moments were computed anew and "
                    "differ; bring back those that the run began with (statistics.cache), or give "
                    "another run.name"
                )
            self._factor(int(layer), system.to(present))

    def project(self, layer: int, keys: Tensor) -> Tensor:
        """The keys [d_in, n] in the m coordinates of the system, [m, n]; m = d_in or fewer."""
        keys = as_double(keys)
        return self._bases[layer].T @ keys if layer in self._bases else keys

    def _factor(self, layer: int, system: Tensor) -> None:
        self._factors[layer] = factor_second_moment(system, layer)
        if self.remembered is not None:
            self._systems[layer] = system


class NullSpace:
    """Directions in which ordinary keys hardly vary: eigenvectors of C with small eigenvalues.

    Args:
        threshold: bound on the eigenvalues, or on their share.
        rule: ``absolute`` keeps eigenvalues below the threshold (AlphaEdit's published code).
            ``share`` keeps the smallest ones that together have at most this share of the sum, for
            models with keys of another scale.
    """

    def __init__(self, threshold: float, rule: Literal["absolute", "share"] = "absolute") -> None:
        self.threshold = threshold
        check_choice("null_space.rule", rule, ("absolute", "share"))
        self.rule = rule

    def basis(self, moment: Tensor, layer: int, decompose: Decompose = torch.linalg.eigh) -> Tensor:
        """V [d_in, m], orthonormal columns, of C [d_in, d_in].

        Args:
            moment: C.
            layer: named in the error.
            decompose: finds eigenvalues and eigenvectors.

        Raises:
            SphereBenchError: no direction is below the threshold.
        """
        eigenvalues, vectors = decompose(as_double(moment))
        measured = eigenvalues.clamp(min=0)
        if self.rule == "share":
            measured = measured.cumsum(0) / measured.sum()
            small = measured <= self.threshold
        else:
            small = measured < self.threshold
        if not small.any():
            raise SphereBenchError(
                f"layer {layer} has no null space below the threshold {self.threshold} "
                f"({self.rule}; the smallest is {measured[0].item():.3g}): raise "
                "editor.method.solver.null_space.threshold"
            )
        basis: Tensor = vectors[:, small]
        # The sign of an eigenvector differs between libraries. With a fixed one, what is remembered
        # in these coordinates still fits when a run goes on with another device.
        largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
        return (basis * largest.sign()).contiguous()


def factor_second_moment(moment: Tensor, layer: int) -> Tensor:
    """The Cholesky factor of a symmetric positive definite matrix [d, d].

    The factor of a matrix that is not finite is NaN, and so is all that is computed with it.

    Raises:
        SphereBenchError: the matrix is finite, but not positive definite.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(moment)
    finite = torch.isfinite(moment).all()
    is_finite, has_failed = torch.stack([finite, failed != 0]).tolist()
    if not is_finite:
        return torch.full_like(moment, torch.nan)
    if has_failed:
        raise SphereBenchError(
            f"the second moment of layer {layer}'s keys is singular: raise statistics.tokens to "
            "10 times the layer's width or more"
        )
    return factor
