"""The edited weights: as pretrained, and as edited so far, in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sphere_bench.models.layout import Layout


class EditedWeights:
    """Float32 copies of the weights under edit, [out, in]; the model holds them rounded.

    In bfloat16 most updates of a batch are smaller than the last digit of the weight: added to the
    model's own copy they would be lost.

    Attributes:
        layers: the edited layers, in rising order.
        pretrained: layer to the weight before all edits, W0.
        current: layer to the weight now, W.
    """

    def __init__(self, layout: Layout, layers: Sequence[int]) -> None:
        layout.check_layers(layers)
        self.layers = list(layers)
        self._layout = layout
        self.pretrained = {
            # Contiguous, as in a checkpoint: sums over a transposed view are rounded differently.
            layer: layout.weight(layer)
            .detach()
            .float()
            .clone(memory_format=torch.contiguous_format)
            for layer in layers
        }
        self.current = {layer: weight.clone() for layer, weight in self.pretrained.items()}

    @property
    def device(self) -> torch.device:
        """Where the weight of the first edited layer is."""
        return self.pretrained[self.layers[0]].device

    def write(self, layer: int, weight: Tensor) -> None:
        """Make ``weight`` [out, in] the current one, here and in the model."""
        device = self.pretrained[layer].device
        self.current[layer] = weight.to(torch.float32).to(device).contiguous()
        self._layout.write(layer, self.current[layer])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Put the pretrained weights into the model for the length of the block."""
        try:
            for layer in self.layers:
                self._layout.write(layer, self.pretrained[layer])
            yield
        finally:
            for layer in self.layers:
                self._layout.write(layer, self.current[layer])

    def drift(self, layer: int) -> float:
        """||W - W0|| / ||W0||."""
        pretrained = self.pretrained[layer]
        drift: float = ((self.current[layer] - pretrained).norm() / pretrained.norm()).item()
        return drift
