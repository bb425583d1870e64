"""Update solvers: a batch's keys and residuals to an update of one weight.

Everything is computed in double precision; K [d_in, n] holds the keys, R [d_out, n] the residuals.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError


class UpdateSolver(ABC):
    """(K, R, state) -> dW, layer by layer."""

    @abstractmethod
    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        """Take what the whole run needs: each edited layer's C [d_in, d_in]."""

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        """The update dW [d_out, d_in] of ``layer``."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the solver remembers of earlier batches."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""


class Memit(UpdateSolver):
    """MEMIT (arXiv 2210.07229): dW = R K^T (lambda C + K K^T)^-1.

    lambda C is factored once; a batch costs n right-hand sides and one n x n system by the
    Woodbury identity, R (I + K^T A^-1 K)^-1 (A^-1 K)^T with A = lambda C.

    Args:
        second_moment_weight: lambda.
    """

    def __init__(self, second_moment_weight: float) -> None:
        self.second_moment_weight = second_moment_weight
        self._factors: dict[int, Tensor] = {}

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        for layer, moment in second_moments.items():
            factor, failed = torch.linalg.cholesky_ex(self.second_moment_weight * moment.double())
            if failed:
                raise SphereBenchError(
                    f"the second moment of layer {layer}'s keys is singular: raise "
                    "statistics.tokens to 10 times the layer's width or more"
                )
            self._factors[layer] = factor

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        keys, residual = keys.double(), residual.double()
        weighted = torch.cholesky_solve(keys, self._factors[layer])
        system = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
        system = system + keys.T @ weighted
        return residual @ torch.linalg.solve(system, weighted.T)
