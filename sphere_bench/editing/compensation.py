"""Error compensation: what transforms change in an update is made up for in the next batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.editor import Editor
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.solvers import LeastSquares, UpdateSolver
from sphere_bench.errors import SphereBenchError
from sphere_bench.geometry.energy import as_double


class CompensatedLeastSquares(UpdateSolver):
    """OTE-SE's compensation (arXiv 2605.26670): dW = (R K^T - E) (A + K K^T)^-1.

    An update dW is deployed as dW', transformed. E = (dW' - dW) C' is what the normal equations of
    that batch lack from then on, and the next batch's get it. C' = A + K K^T is the batch's system,
    as published, where its keys are remembered. A solver that remembers no keys has forgotten K K^T
    by the next batch, so there C' = A, and what is missing of dW is proposed once more.

    As published, the identity is added to A: next to an ill-conditioned A, a transform of single
    entries makes errors grow from batch to batch. A solver with a ridge of its own keeps that.

    With a null space all is in its coordinates: what a transform changes outside of it is lost.

    Args:
        solver: prepared; A and K are as in its documentation.
    """

    def __init__(self, solver: LeastSquares) -> None:
        self.solver = solver
        if not solver.ridge:
            solver.add_ridge(1.0)
        self.remembers_written_keys = solver.remembers_written_keys
        self._errors: dict[int, Tensor] = {}
        # Of the present batch: the factor of A and K, in the solver's coordinates.
        self._systems: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bases(self) -> Mapping[int, Tensor]:
        return self.solver.bases

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        self.solver.prepare(second_moments)

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        # The factor is kept from before the solver adds keys to A.
        factor, projected = self.solver.factor(layer), self.solver.project(layer, keys)
        self._systems[layer] = factor, projected
        if layer not in self._errors:
            return self.solver.solve(layer, keys, residual)
        # By linearity: first X = -E A^-1, then what is missing of R next to X K.
        first = -torch.cholesky_solve(self._errors[layer].T, factor).T
        missing = as_double(residual) - first @ projected
        if layer in self.bases:
            first = first @ self.bases[layer].T
        return first + self.solver.solve(layer, keys, missing)

    def carry(self, layer: int, error: Tensor) -> None:
        """Note dW' - dW [d_out, d_in] of the update that was solved last."""
        factor, keys = self._systems.pop(layer)
        error = self.solver.project(layer, error.T).T
        weighed = error @ factor @ factor.T
        if self.solver.remembered is not None:
            weighed += error @ keys @ keys.T
        self._errors[layer] = weighed

    def remember(self, layer: int, keys: Tensor) -> None:
        self.solver.remember(layer, keys)

    def state_dict(self) -> dict[str, Any]:
        return {
            "solver": self.solver.state_dict(),
            "errors": {str(layer): error for layer, error in self._errors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state.get("solver", {}))
        self._errors = {
            int(layer): error.to(self.solver.factor(int(layer)))
            for layer, error in state.get("errors", {}).items()
        }


def compensate(editor: Editor) -> CompensatedLeastSquares:
    """Put compensation round the editor's solver.

    Raises:
        SphereBenchError: the editor has no solver that could carry an error.
    """
    # A subclass solves another system, such as EMMET's.
    if not isinstance(editor, LocateThenEdit) or type(editor.solver) is not LeastSquares:
        raise SphereBenchError(
            f"editor.compensate=true: {type(editor).__name__} does not solve by LeastSquares and "
            "cannot carry an error: take editor=memit, memit-seq or alphaedit, or set "
            "editor.compensate=false"
        )
    solver = CompensatedLeastSquares(editor.solver)
    editor.solver = solver
    return solver
