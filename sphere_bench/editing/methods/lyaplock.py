"""LyapLock: edits weighed against ordinary outputs by a queue of how far these have moved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit, ValueTransform
from sphere_bench.editing.solvers import UpdateSolver, factor_second_moment
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import check_above
from sphere_bench.geometry.energy import as_double


class LyapLock(LocateThenEdit):
    """LyapLock (arXiv 2505.15702): long-term preservation as a virtual queue, batch by batch.

    A batch with the keys K and the residuals R solves
    dW (K K^T + Kp Kp^T + q w C) = R K^T + (Vp - W Kp) Kp^T + q w (W0 - W) C,
    where Kp are the keys of earlier batches and Vp what the weights put out for them behind their
    batch. So an earlier edit is held to what it was, and ordinary outputs to those of W0. With
    q = 1 the first batch is MEMIT's.

    D = tr((W - W0) C (W - W0)^T) is how far ordinary outputs have moved. With D1 behind the first
    batch and b = ``alpha`` D1, the queue Z starts from sqrt(b), and behind every batch becomes
    max(Z + (D - b) / sqrt(b), sqrt(b)). q is Z / sqrt(b), each layer's own.

    Args:
        setup: the run's model, weights and settings.
        second_moment_weight: w.
        alpha: how much further than in the first batch ordinary outputs may move.
        value_transform: maps the target values.

    Raises:
        SphereBenchError: a number is out of its range, or C is singular.
    """

    def __init__(
        self,
        setup: EditingSetup,
        second_moment_weight: float,
        alpha: float = 60.0,
        value_transform: ValueTransform | None = None,
    ) -> None:
        check_above("editor.method.second_moment_weight", second_moment_weight, 0)
        check_above("editor.method.alpha", alpha, 0)
        queue = LyapunovQueue(setup.weights, second_moment_weight, alpha)
        super().__init__(setup, queue, value_transform)


class LyapunovQueue(UpdateSolver):
    """LyapLock's updates and what it remembers, for each layer.

    Args:
        weights: the weights under edit, which the update depends on.
        second_moment_weight: w.
        alpha: bound on D, in D of the first batch.
    """

    #: D and the outputs of K are those of the weights that are deployed.
    remembers_written_keys = True

    def __init__(self, weights: EditedWeights, second_moment_weight: float, alpha: float) -> None:
        self.weights = weights
        self.second_moment_weight = second_moment_weight
        self.alpha = alpha
        self._moments: dict[int, Tensor] = {}
        self._grams: dict[int, Tensor] = {}  # Kp Kp^T, [d_in, d_in]
        self._products: dict[int, Tensor] = {}  # Vp Kp^T, [d_out, d_in]
        # D of the first batch and q; no batch so far: 0 and 1.
        self._queues: dict[int, Tensor] = {}

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        for layer, moment in second_moments.items():
            self._moments[layer] = as_double(moment)
            self._grams[layer] = torch.zeros_like(self._moments[layer])
            pretrained = as_double(self.weights.pretrained[layer])
            self._products[layer] = torch.zeros_like(pretrained)
            self._queues[layer] = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        keys, residual = as_double(keys), as_double(residual)
        weight, pretrained = self._weight(layer)
        ordinary = self.queue(layer) * self.second_moment_weight * self._moments[layer]
        wanted = (
            residual @ keys.T
            + (self._products[layer] - weight @ self._grams[layer])
            + (pretrained - weight) @ ordinary
        )
        system = keys @ keys.T + self._grams[layer] + ordinary
        update: Tensor = torch.cholesky_solve(wanted.T, factor_second_moment(system, layer)).T
        return update

    def remember(self, layer: int, keys: Tensor) -> None:
        keys = as_double(keys)
        weight, pretrained = self._weight(layer)
        gram = keys @ keys.T
        self._grams[layer] = self._grams[layer] + gram
        self._products[layer] = self._products[layer] + weight @ gram
        moved = weight - pretrained
        distance = ((moved @ self._moments[layer]) * moved).sum().item()
        first, queue = self._queues[layer].tolist()
        first = first or distance
        bound = self.alpha * first
        # Z / sqrt(b) <- max(Z / sqrt(b) + (D - b) / b, 1)
        queue = max(queue + (distance - bound) / bound, 1.0) if bound else queue
        self._queues[layer] = torch.tensor([first, queue], dtype=torch.float64)

    def queue(self, layer: int) -> float:
        """q, how much more than in the first batch ordinary outputs weigh."""
        return self._queues[layer][1].item()

    def _weight(self, layer: int) -> tuple[Tensor, Tensor]:
        """W and W0, [d_out, d_in], in double precision."""
        weights = self.weights
        return as_double(weights.current[layer]), as_double(weights.pretrained[layer])

    def state_dict(self) -> dict[str, Any]:
        parts = {"grams": self._grams, "products": self._products, "queues": self._queues}
        return {
            name: {str(layer): tensor for layer, tensor in part.items()}
            for name, part in parts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for layer, gram in state.get("grams", {}).items():
            self._grams[int(layer)] = gram.to(self._grams[int(layer)])
        for layer, product in state.get("products", {}).items():
            self._products[int(layer)] = product.to(self._products[int(layer)])
        for layer, queue in state.get("queues", {}).items():
            self._queues[int(layer)] = queue.cpu()
