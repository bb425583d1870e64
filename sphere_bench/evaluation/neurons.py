"""Where a weight's neurons lie: what the report draws of every edited layer."""

from sphere_bench.evaluation.columns import Column, Declared, Table
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.geometry.neurons import describe_neurons, principal_plane

GEOMETRY = Table(
    "geometry",
    "one row for each step and edited layer",
    (
        Column("layer", "whole", "the edited layer"),
        Column(
            "cosine_counts",
            "wholes",
            "pairs of neurons by their cosine, in 2,000 equal bins from -1 to 1",
        ),
        Column("neurons", "wholes", "up to 256 rows of the weight, evenly spaced"),
        Column("plane_x", "reals", "those rows along the unedited weight's first direction"),
        Column("plane_y", "reals", "the same along its second principal direction"),
    ),
)


class Neurons:
    """The spread of cosines between neurons, and the neurons in the principal plane.

    Args:
        setup: the run's weights.
    """

    stage = "energy"
    declares = Declared(tables=(GEOMETRY,))

    def __init__(self, setup: ProbeSetup) -> None:
        self.weights = setup.weights
        self._planes = {
            layer: principal_plane(weight) for layer, weight in setup.weights.pretrained.items()
        }

    def measure(self, moment: Moment) -> Findings:
        rows = [
            {"layer": layer, **describe_neurons(self.weights.current[layer], plane)._asdict()}
            for layer, plane in self._planes.items()
        ]
        return Findings(tables={GEOMETRY.name: rows})
