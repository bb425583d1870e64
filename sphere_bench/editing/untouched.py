"""Parameters that no editor may change: all but the edited weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel

_NAMED = 3
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class UntouchedParameters:
    """Remembers all parameters but the edited weights, by a cheap sum of their bits.

    An exported model has the edited weights alone: what else an editor changed would be lost, and
    the recorded scores would be of another model.

    Args:
        loaded: the unedited model.
        layers: the edited layers.
    """

    def __init__(self, loaded: LoadedModel, layers: Sequence[int]) -> None:
        edited = {loaded.layout.projection(layer).weight for layer in layers}
        self._parameters = {
            name: parameter
            for name, parameter in loaded.model.named_parameters()
            if not any(parameter is each for each in edited)
        }
        self._sums = self._now()

    def check(self) -> None:
        """Make sure that all of them are as they were.

        Raises:
            SphereBenchError: some are not.
        """
        now = self._now()
        changed = [name for name, value in self._sums.items() if now[name] != value]
        if changed:
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise SphereBenchError(
                "the editor changed parameters that it does not edit "
                f"({', '.join(changed[:_NAMED])}{more}): name their layers in editor.layers, or "
                "leave them alone"
            )

    def _now(self) -> dict[str, int]:
        sums = {name: _sum_of_bits(parameter) for name, parameter in self._parameters.items()}
        if not sums:
            return {}
        # Fetched together: one wait for the device, not one for each parameter.
        place = next(iter(sums.values())).device
        values = torch.stack([value.to(place) for value in sums.values()]).tolist()
        return dict(zip(sums, values, strict=True))


@torch.no_grad()
def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum of the elements' bits, read as whole numbers: exact, whatever the order."""
    return tensor.detach().view(_WORDS[tensor.element_size()]).sum(dtype=torch.int64)
