"""NAS: target values with the norm that target values have on the unedited model."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sphere_bench.errors import SphereBenchError


class NormAnchor:
    """Norm-Anchor Scaling (arXiv 2602.02543): every z is rescaled to one reference norm.

    The reference is the mean norm of the pilots' values on the unedited model, without the largest
    ones. The pilots are the first requests of the dataset, or all of them if it has fewer.

    Args:
        pilots: how many requests the reference norm comes from.
        drop: share of the pilots to leave out of the mean, those with the largest norm.

    Raises:
        SphereBenchError: there would be no pilot.
    """

    def __init__(self, pilots: int = 1000, drop: float = 0.05) -> None:
        if pilots < 1 or not 0 <= drop < 1:
            raise SphereBenchError(
                f"NormAnchor: pilots={pilots} must be at least 1 and drop={drop} within [0, 1)"
            )
        self.pilots = pilots
        self.drop = drop
        self._norm: Tensor | None = None

    def __call__(self, values: Tensor, solve: Callable[[int], Tensor]) -> Tensor:
        if self._norm is None:
            norms = solve(self.pilots).norm(dim=1).sort().values
            self._norm = norms[: len(norms) - int(self.drop * len(norms))].mean()
        scales: Tensor = self._norm.to(values) / values.norm(dim=1, keepdim=True)
        return values * scales

    def state_dict(self) -> dict[str, Any]:
        return {} if self._norm is None else {"norm": self._norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._norm = state.get("norm")
