"""When the optimisation of a request's target value ends, before its last iteration."""

from typing import Protocol

import torch
from torch import Tensor

from sphere_bench.editing.values.loss import Loss


class Stopping(Protocol):
    """Sees every iteration of one solve, before the iteration takes its step."""

    def finished(self, found: Loss) -> Tensor:
        """Which of the n requests are finished, [n], given what an iteration found.

        Requests that finished earlier are still among the n; what is found for them has no meaning.
        """


class LossThreshold:
    """A request is finished once its loss is below a threshold (MEMIT, arXiv 2210.07229)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def finished(self, found: Loss) -> Tensor:
        return found.loss < self.threshold


class ArgmaxHits(LossThreshold):
    """A request is also finished once enough iterations have found its target to be the argmax.

    This is ENCORE's most-probable early stopping (arXiv 2502.01636). The iterations need not follow
    one another: the count is never reset. The bare prompt does not count.

    Args:
        threshold: of the loss.
        needed: how many iterations.
        exactly: an iteration counts when exactly so many target tokens, over all contexts, are the
            argmax. ``None``: when all of them are.
    """

    def __init__(self, threshold: float, needed: int, exactly: int | None = None) -> None:
        super().__init__(threshold)
        self.needed = needed
        self.exactly = exactly
        self._counts = torch.zeros(())

    def finished(self, found: Loss) -> Tensor:
        hit = found.misses == 0 if self.exactly is None else found.hits == self.exactly
        self._counts = self._counts.to(found.loss) + hit
        return super().finished(found) | (self._counts >= self.needed)
