"""What happens to the edited weights: hyperspherical energy, angles between neurons, norms."""

import math

from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.geometry.energy import RowGeometry, row_geometry


class Weights:
    """Geometry of every edited layer's neurons, beside the unedited weight's.

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
            Column("drift", "real", "||W - W0|| / ||W0||, W0 the unedited weight"),
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

    def measure(self, moment: Moment) -> Findings:
        now = {layer: self._geometry(layer, moment.step) for layer in self.weights.layers}
        mean = sum(geometry.energy_normalized for geometry in now.values()) / len(now)
        unedited = sum(geometry.energy_normalized for geometry in self._unedited.values())
        return Findings(
            step={"he": mean, "he_ratio": _ratio(mean * len(now), unedited)},
            layers={
                layer: {
                    "he": geometry.energy,
                    "he_normalized": geometry.energy_normalized,
                    "he_ratio": _ratio(geometry.energy, self._unedited[layer].energy),
                    "weight_norm": self.weights.current[layer].norm().item(),
                    "drift": self.weights.drift(layer),
                    "cos_mean": geometry.cos_mean,
                    "cos_std": geometry.cos_std,
                    "cos_p01": geometry.cos_p01,
                    "cos_p99": geometry.cos_p99,
                }
                for layer, geometry in now.items()
            },
        )

    def _geometry(self, layer: int, step: int) -> RowGeometry:
        if not step:
            return self._unedited[layer]
        return row_geometry(self.weights.current[layer], self.exponent, self.eps)


def _ratio(energy: float, unedited: float) -> float:
    """NaN where an exponent too large makes every energy 0."""
    return energy / unedited if unedited else math.nan
