"""Update solvers: a batch's keys and residuals to an update of one weight.

Everything is computed in double precision; K [d_in, n] holds the keys, R [d_out, n] the residuals.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError, check_at_least, check_choice
from sphere_bench.geometry.energy import as_double


class UpdateSolver(ABC):
    """(K, R, state) -> dW, layer by layer."""

    #: Whether :meth:`remember` wants a batch's keys, measured once the whole batch is written.
    remembers_written_keys: bool = False

    @abstractmethod
    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        """Take what the whole run needs: each edited layer's C [d_in, d_in]."""

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        """The update dW [d_out, d_in] of ``layer``."""

    @abstractmethod
    def remember(self, layer: int, keys: Tensor) -> None:
        """Take note of a finished batch's keys at ``layer``, as the edited model has them.

        Raises:
            torch.linalg.LinAlgError: with them no later batch can be solved.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What the solver remembers of earlier batches."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""


class LeastSquares(UpdateSolver):
    """Regularised least squares, dW = R K^T (A + K K^T)^-1, which most editors are an instance of.

    A = lambda C + ridge I, to which Kp Kp^T of all earlier batches is added where keys are
    remembered. With a null space the whole solve happens in its coordinates: V [d_in, m] spans it,
    K becomes V^T K, C and I shrink with it, and dW = (...) V^T leaves every key outside it alone.

    | editor | A | remembers | null space |
    | --- | --- | --- | --- |
    | MEMIT (arXiv 2210.07229) | lambda C | - | - |
    | MEMIT-seq (the same authors' code) | lambda C + Kp Kp^T | written | - |
    | EMMET (arXiv 2403.14236) | 0.1 C | - | - |
    | ENCORE (arXiv 2502.01636) | lambda C + Kp Kp^T + 20 I | written | - |
    | RLSEdit (github.com/Euphoria040201/RLSEdit) | lambda C + Kp Kp^T | solved | - |
    | AlphaEdit (arXiv 2410.02355) | Kp Kp^T + L2 I | written | of C |

    EMMET's R (K^T C^-1 K + 0.1 I)^-1 K^T C^-1 is the same by the Woodbury identity. So are the
    recursion of RLSEdit, which carries A^-1 along, and AlphaEdit's non-symmetric system in d_in
    dimensions.

    A is factored once, or once a batch where keys are remembered; a batch then costs n right-hand
    sides and one n x n system, whatever went before.

    Args:
        second_moment_weight: lambda.
        ridge: factor of the identity.
        remember: add the keys of earlier batches to A, as they were when the update was
            ``solved``, or as the edited model has them once the batch is ``written``.
        null_space: restrict updates to the null space of C.
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

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        for layer, moment in second_moments.items():
            system = self.second_moment_weight * as_double(moment)
            if self.null_space is not None:
                basis = self.null_space.basis(moment, layer)
                self._bases[layer] = basis
                system = basis.T @ system @ basis
            system.diagonal().add_(self.ridge)
            self._factor(layer, system)

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        projected = self._project(layer, keys)
        # Woodbury: K^T (A + K K^T)^-1 = (I + K^T A^-1 K)^-1 K^T A^-1.
        weighted = torch.cholesky_solve(projected, self._factors[layer])
        inner = projected.T @ weighted
        inner.diagonal().add_(1)
        update = as_double(residual) @ torch.linalg.solve(inner, weighted.T)
        if self.remembered == "solved":
            self.remember(layer, keys)
        return update @ self._bases[layer].T if layer in self._bases else update

    def remember(self, layer: int, keys: Tensor) -> None:
        keys = self._project(layer, keys)
        try:
            self._factor(layer, self._systems[layer] + keys @ keys.T)
        except SphereBenchError as error:
            # A was positive definite: keys this large bury it under their rounding.
            raise torch.linalg.LinAlgError(
                f"with its keys the system of layer {layer} is singular"
            ) from error

    def state_dict(self) -> dict[str, Tensor]:
        return {str(layer): system for layer, system in self._systems.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for layer, system in state.items():
            self._factor(int(layer), system.to(self._factors[int(layer)]))

    def _project(self, layer: int, keys: Tensor) -> Tensor:
        """Keys in the coordinates of the solve."""
        keys = as_double(keys)
        return self._bases[layer].T @ keys if layer in self._bases else keys

    def _factor(self, layer: int, system: Tensor) -> None:
        self._factors[layer] = factor_second_moment(system, layer)
        if self.remembered is not None:
            self._systems[layer] = system


class NullSpace:
    """Directions in which ordinary keys hardly vary: eigenvectors of C with small eigenvalues.

    Args:
        threshold: the bound.
        rule: ``absolute`` keeps eigenvalues below the threshold (AlphaEdit's published code);
            ``share`` the smallest ones that together hold at most that share of their sum, for
            models whose keys are of another scale.
    """

    def __init__(self, threshold: float, rule: Literal["absolute", "share"] = "absolute") -> None:
        self.threshold = threshold
        check_choice("null_space.rule", rule, ("absolute", "share"))
        self.rule = rule

    def basis(self, moment: Tensor, layer: int) -> Tensor:
        """V [d_in, m], orthonormal columns, of C [d_in, d_in].

        Raises:
            SphereBenchError: no direction is below the threshold.
        """
        eigenvalues, vectors = torch.linalg.eigh(as_double(moment))
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
        return vectors[:, small].contiguous()


def factor_second_moment(moment: Tensor, layer: int) -> Tensor:
    """The Cholesky factor of a symmetric positive definite [d, d] matrix.

    One that is not finite has a factor of NaN, so that all that is computed with it is NaN.

    Raises:
        SphereBenchError: it is finite, but not positive definite.
    """
    if not torch.isfinite(moment).all():
        return torch.full_like(moment, torch.nan)
    factor, failed = torch.linalg.cholesky_ex(moment)
    if failed:
        raise SphereBenchError(
            f"the second moment of layer {layer}'s keys is singular: raise statistics.tokens to "
            "10 times the layer's width or more"
        )
    return factor
