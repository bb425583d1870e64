"""What happens to the edited weights: hyperspherical energy, angles between neurons, norms."""

import math
from collections.abc import Mapping

from torch import Tensor

from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.geometry.energy import RowGeometry, row_geometry
from sphere_bench.geometry.subspace import leading_directions, share_within

#: Share of the eigenvalues' sum that the principal directions make up, as SPHERE's by default.
ETA = 0.5


class Weights:
    """Geometry of every edited layer's neurons, beside the unedited weight's.

    It keeps the weights of its last turn, to see in which directions they have moved since. A
    checkpoint has them only where they are others than its own.

    Args:
        setup: the run's weights.
        exponent, eps: of the hyperspherical energy.
    """

    stage = "energy"
    declares = Declared(
        step=(
            Column("he", "real", "normalised hyperspherical energy, mean over edited layers"),
            Column("he_ratio", "real", "the same over the unedited model's", shown=True),
        ),
        layer=(
            Column("he", "real", "hyperspherical energy, the sum over ordered pairs of neurons"),
            Column("he_normalized", "real", "the same over n(n-1), n neurons"),
            Column("he_ratio", "real", "the energy over the unedited weight's"),
            Column("weight_norm", "real", "Frobenius norm of the weight"),
            Column("norm_growth", "real", "the same over the unedited weight's"),
            Column("drift", "real", "||W - W0|| / ||W0||, W0 the unedited weight"),
            Column(
                "subspace_overlap",
                "real",
                "share of the change since the last turn, squared, in the unedited weight's "
                "principal directions",
            ),
            Column("cos_mean", "real", "mean cosine between two neurons, over all pairs"),
            Column("cos_std", "real", "their standard deviation"),
            Column("cos_p01", "real", "their first percentile"),
            Column("cos_p99", "real", "their 99th percentile"),
        ),
    )

    def __init__(self, setup: ProbeSetup, exponent: float = 1.0, eps: float = 1e-6) -> None:
        self.weights = setup.weights
        self.exponent = exponent
        self.eps = eps
        self._unedited = {
            layer: row_geometry(weight, exponent, eps)
            for layer, weight in setup.weights.pretrained.items()
        }
        self._principal = {
            layer: leading_directions(weight, ETA)
            for layer, weight in setup.weights.pretrained.items()
        }
        # References: a write replaces a weight and changes none.
        self._last = dict(setup.weights.current)

    def measure(self, moment: Moment) -> Findings:
        now = {layer: self._geometry(layer, moment.step) for layer in self.weights.layers}
        mean = sum(geometry.energy_normalized for geometry in now.values()) / len(now)
        unedited = sum(geometry.energy_normalized for geometry in self._unedited.values())
        norms = {layer: self.weights.current[layer].norm().item() for layer in now}
        overlaps = {layer: self._overlap(layer) for layer in now}
        self._last = dict(self.weights.current)
        return Findings(
            step={"he": mean, "he_ratio": _ratio(mean * len(now), unedited)},
            layers={
                layer: {
                    "he": geometry.energy,
                    "he_normalized": geometry.energy_normalized,
                    "he_ratio": _ratio(geometry.energy, self._unedited[layer].energy),
                    "weight_norm": norms[layer],
                    "norm_growth": norms[layer] / self.weights.pretrained[layer].norm().item(),
                    "drift": self.weights.drift(layer),
                    "subspace_overlap": overlaps[layer],
                    "cos_mean": geometry.cos_mean,
                    "cos_std": geometry.cos_std,
                    "cos_p01": geometry.cos_p01,
                    "cos_p99": geometry.cos_p99,
                }
                for layer, geometry in now.items()
            },
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {
            str(layer): weight
            for layer, weight in self._last.items()
            if weight is not self.weights.current[layer]
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The weights have been put back already."""
        self._last = {
            layer: state[str(layer)].to(weight.device) if str(layer) in state else weight
            for layer, weight in self.weights.current.items()
        }

    def _overlap(self, layer: int) -> float:
        """NaN where the weight is as it was."""
        change = self.weights.current[layer] - self._last[layer]
        return share_within(change, self._principal[layer])

    def _geometry(self, layer: int, step: int) -> RowGeometry:
        if not step:
            return self._unedited[layer]
        return row_geometry(self.weights.current[layer], self.exponent, self.eps)


def _ratio(energy: float, unedited: float) -> float:
    """NaN where an exponent too large makes every energy 0."""
    return energy / unedited if unedited else math.nan
