"""How the cosines between a weight's neurons are spread, and where the neurons lie."""

from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.geometry.energy import as_double, row_pairs
from sphere_bench.geometry.subspace import principal_directions

COSINE_BINS = 2000
PLANE_NEURONS = 256


class NeuronLayout(NamedTuple):
    """A weight after some edits.

    Attributes:
        cosine_counts: pairs i < j of neurons in each of ``COSINE_BINS`` equal bins from -1 to 1.
        neurons: rows that are drawn, at most ``PLANE_NEURONS``, evenly spaced.
        plane_x, plane_y: their coordinates in the unedited weight's principal plane.
    """

    cosine_counts: list[int]
    neurons: list[int]
    plane_x: list[float]
    plane_y: list[float]


def principal_plane(weight: Tensor) -> Tensor:
    """The two strongest principal directions of ``weight`` [n, d_in], as columns [d_in, 2].

    Each is turned so that its largest component is positive; a weight of rank one or zero gets
    zeros for what it lacks.
    """
    directions = principal_directions(weight).directions[:, :2].clone()
    largest = directions.abs().argmax(dim=0, keepdim=True)
    directions *= directions.gather(0, largest).sign()
    return torch.nn.functional.pad(directions, (0, 2 - directions.shape[1]))


def describe_neurons(weight: Tensor, plane: Tensor) -> NeuronLayout:
    """Describe ``weight`` [n, d_in] in a ``plane`` from :func:`principal_plane`.

    Cosines that are not finite are not counted.
    """
    counts = torch.zeros(COSINE_BINS, dtype=torch.float64, device=as_double(weight).device)
    for cosines, _ in row_pairs(weight):
        counts += torch.histc(cosines.clamp(-1, 1), COSINE_BINS, -1, 1)
    neurons = torch.linspace(0, len(weight) - 1, min(len(weight), PLANE_NEURONS)).long()
    x, y = (as_double(weight.detach()[neurons.to(weight.device)]) @ plane).T.tolist()
    return NeuronLayout([int(count) for count in counts.tolist()], neurons.tolist(), x, y)
