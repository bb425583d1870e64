"""BetaEdit: AlphaEdit that weighs what leaks from its null space, and takes the space anew."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.errors import check_at_least
from sphere_bench.geometry.energy import as_double


class BetaEdit(LeastSquares):
    """BetaEdit (IJCAI 2026): solve (P (K K^T + Kp Kp^T + w C) + ridge I) X = P K R^T, dW = X^T.

    P = V V^T projects onto the null space, of C at first. In the first batch behind every
    ``refresh_every`` edits it is taken of (Kp Kp^T / t + w C) / (w + 1), t the number of edits
    before the batch. Kp are the keys that earlier batches were solved with.

    Args:
        second_moment_weight: w; the published code calls it lambda 1.
        ridge: the published code calls it lambda 2.
        null_space: which directions belong to it.
        refresh_every: edits; the published code calls it tau.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    def __init__(
        self,
        second_moment_weight: float,
        ridge: float,
        null_space: NullSpace,
        refresh_every: int = 1000,
    ) -> None:
        check_at_least("editor.method.solver.refresh_every", refresh_every, 1)
        super().__init__(second_moment_weight, ridge, "solved", null_space)
        self.refresh_every = refresh_every
        self._null_space = null_space
        self._moments: dict[int, Tensor] = {}
        self._past: dict[int, Tensor] = {}  # Kp Kp^T, [d_in, d_in]
        self._edits: dict[int, int] = {}
        self._refreshed: dict[int, int] = {}

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        super().prepare(second_moments)
        for layer, moment in second_moments.items():
            self._moments[layer] = as_double(moment)
            self._past[layer] = torch.zeros_like(self._moments[layer])
            self._edits[layer] = self._refreshed[layer] = 0

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        edits = self._edits[layer]
        if edits - self._refreshed[layer] >= self.refresh_every:
            weight = self.second_moment_weight
            guarded = (self._past[layer] / edits + weight * self._moments[layer]) / (weight + 1)
            # Not the run's own decomposition, which is kept on disk for later runs.
            self._restrict(layer, self._null_space.basis(guarded, layer))
            self._refreshed[layer] = edits
        return super().solve(layer, keys, residual)

    def remember(self, layer: int, keys: Tensor) -> None:
        super().remember(layer, keys)
        keys = as_double(keys)
        self._past[layer] = self._past[layer] + keys @ keys.T
        self._edits[layer] += keys.shape[1]

    def _restrict(self, layer: int, basis: Tensor) -> None:
        """Make ``basis`` [d_in, m] the one that updates are restricted to."""
        self._bases[layer] = basis
        whole = self._past[layer] + self.second_moment_weight * self._moments[layer]
        system = basis.T @ whole @ basis
        system.diagonal().add_(self.ridge)
        self._factor(layer, system)

    def state_dict(self) -> dict[str, Any]:
        return {
            "systems": super().state_dict(),
            "past": {str(layer): past for layer, past in self._past.items()},
            "edits": {
                str(layer): torch.tensor([edits, self._refreshed[layer]])
                for layer, edits in self._edits.items()
            },
            # The first basis follows from C.
            "bases": {
                str(layer): self._bases[layer] for layer, at in self._refreshed.items() if at
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, past in state.get("past", {}).items():
            self._past[int(name)] = past.to(self._past[int(name)])
        for name, counts in state.get("edits", {}).items():
            self._edits[int(name)], self._refreshed[int(name)] = counts.tolist()
        for name, basis in state.get("bases", {}).items():
            self._restrict(int(name), basis.to(self._moments[int(name)]))
        super().load_state_dict(state.get("systems", {}))
