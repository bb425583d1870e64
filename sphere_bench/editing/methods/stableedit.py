"""StableEdit: UltraEdit with warm-up batches and whitened gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.methods.ultraedit import RunningMoments, UltraEdit
from sphere_bench.errors import SphereBenchError, check_above, check_at_least

# Of eigenvalues of the gradients' covariance, as published.
_SMALLEST = 1e-6


class StableEdit(UltraEdit):
    """StableEdit (arXiv 2605.11836): dW = V^T H (H^T H + ridge I)^-1, V = -lr ||h'||^2 g^.

    H, h' and the gradients g are UltraEdit's. g^ = (g - mu) S^-1/2, where mu and S [d_out, d_out]
    are the mean and the covariance of the gradients over the run so far. As published, S has the
    divisor n - d_out - 1, n the number of rows so far, and while that is not above 0, g^ is
    UltraEdit's g'.

    Before its first batch the editor edits warm-up batches of requests that the run does not edit,
    with g' for g^. As published, these edits stay in the model.

    Args:
        setup: the run's model, weights and settings.
        learning_rate: lr.
        ridge: the published code calls it alpha.
        chunk: see :class:`UltraEdit`.
        warmup_batches: how many batches come before the first one.
        batch_size: requests in a warm-up batch.

    Raises:
        SphereBenchError: a number is out of its range, or the dataset holds too few requests that
            the run does not edit.
    """

    def __init__(
        self,
        setup: EditingSetup,
        learning_rate: float = 1e-6,
        ridge: float = 10,
        chunk: int = 10,
        warmup_batches: int = 20,
        batch_size: int = 100,
    ) -> None:
        super().__init__(setup, learning_rate, chunk)
        check_above("editor.method.ridge", ridge, 0)
        check_at_least("editor.method.warmup_batches", warmup_batches, 0)
        check_at_least("editor.method.batch_size", batch_size, 1)
        self._ridge = ridge
        self._batch_size = batch_size
        needed = warmup_batches * batch_size
        self._warmup = setup.spare(needed)
        if len(self._warmup) < needed:
            raise SphereBenchError(
                f"editor.method.warmup_batches={warmup_batches}: they take {needed} records behind "
                f"those that are edited, and the dataset has {len(self._warmup)}: lower "
                "edits.total or editor.method.warmup_batches"
            )
        self._moments: Mapping[str, GradientMoments] = {
            self._shapes[layer]: GradientMoments(len(weight))
            for layer, weight in setup.weights.pretrained.items()
        }
        self._is_warm = False

    def edit(self, batch: Batch) -> None:
        if not self._is_warm:
            for start in range(0, len(self._warmup), self._batch_size):
                self.write(batch, self._warmup[start : start + self._batch_size])
            self._is_warm = True
        super().edit(batch)

    def _normalized(self, layer: int, rows: Tensor) -> Tensor:
        normalized = super()._normalized(layer, rows)
        moments = self._moments[self._shapes[layer]]
        if self._is_warm and moments.has_full_rank:
            width = rows.shape[1] - moments.outputs
            normalized[:, width:] = moments.whiten(rows)
        return normalized

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._is_warm = any(moments.count > 0 for moments in self._moments.values())


class GradientMoments(RunningMoments):
    """Mean and deviation of rows [h, g] over all so far, and the covariance of the gradients g.

    Args:
        outputs: d_out, the width of g.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(correction=0)
        self.outputs = outputs
        self.scatter = torch.zeros(outputs, outputs, dtype=torch.float64)
        self._inverse_root: Tensor | None = None

    @property
    def has_full_rank(self) -> bool:
        """Whether there are enough rows to whiten."""
        return self.count.item() > self.outputs + 1

    def update(self, rows: Tensor) -> None:
        before, added = self.count.item(), len(rows)
        earlier = self.mean.expand(rows.shape[1])[-self.outputs :].to(rows)
        super().update(rows)
        gradients = rows[:, -self.outputs :]
        mean = gradients.mean(dim=0)
        centred = gradients - mean
        between = torch.outer(mean - earlier, mean - earlier) * (before * added / (before + added))
        self.scatter = self.scatter.to(rows) + centred.T @ centred + between
        self._inverse_root = None

    def whiten(self, rows: Tensor) -> Tensor:
        """(g - mu) S^-1/2 of ``rows`` [m, d_in + d_out], [m, d_out]."""
        if self._inverse_root is None:
            covariance = self.scatter.to(rows) / (self.count.item() - self.outputs - 1)
            values, vectors = torch.linalg.eigh(covariance)
            self._inverse_root = (vectors * values.clamp(min=_SMALLEST).rsqrt()) @ vectors.T
        gradients = rows[:, -self.outputs :] - self.mean[-self.outputs :].to(rows)
        return gradients @ self._inverse_root.to(rows)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "scatter": self.scatter}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.scatter, self._inverse_root = state["scatter"], None
