"""NAS: target values with the norm that target values have on the unedited model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.keys import projection_outputs
from sphere_bench.editing.prompts import BARE
from sphere_bench.editing.values.solver import TargetValues, solve_target_values
from sphere_bench.editing.values.stopping import LossThreshold
from sphere_bench.errors import SphereBenchError, check_at_least

logger = logging.getLogger(__name__)

# How many pilots share a loss, and how many anchors an edit may reach before it is dropped: both
# as in the published code.
_TOGETHER = 16
_LIMIT = 2


class NormAnchor:
    """Norm-Anchor Scaling (arXiv 2602.02543): the MLP's target outputs get one reference norm.

    The target output v* of an edit is the output v0 of the last edited layer's projection, at the
    subject in the bare prompt, plus the delta that the value solver found. It is scaled up or down
    to the anchor, or replaced by v0 where its norm is over twice the anchor: the edit is dropped.
    The target value is what the layer puts out with it, z = (h - v0) + v*.

    The anchor is the mean of ||v*|| over pilots on the unedited model, without the largest. The
    pilots are drawn from the whole dataset with the run's seed, and solved in the bare prompt
    alone; 16 of them share one loss, their mean.

    Args:
        pilots: how many requests the anchor comes from; fewer if the dataset has fewer.
        drop: share of the pilots to leave out of the mean, those with the largest norm; a fraction
            of a pilot is kept.

    Raises:
        SphereBenchError: there would be no pilot.
    """

    def __init__(self, pilots: int = 1000, drop: float = 0.05) -> None:
        check_at_least("editor.method.value_transform.pilots", pilots, 1)
        if not 0 <= drop < 1:
            raise SphereBenchError(
                f"editor.method.value_transform.drop={drop}: must be at least 0 and less than 1"
            )
        self.pilots = pilots
        self.drop = drop
        self._anchor: Tensor | None = None

    def __call__(
        self, requests: Sequence[EditRequest], solved: TargetValues, setup: EditingSetup
    ) -> Tensor:
        if self._anchor is None:
            self._anchor = mean_without_largest(self.pilot_norms(setup), self.drop)
        before = _outputs(requests, setup)
        targets = before + solved.deltas
        anchored = anchored_outputs(targets, before, self._anchor.to(targets))
        if dropped := int((anchored == before).all(dim=1).sum()):
            logger.info("NAS drops %d of the batch's %d edits", dropped, len(requests))
        return solved.values + (anchored - targets)

    def pilot_norms(self, setup: EditingSetup) -> Tensor:
        """||v*|| of every pilot on the present model, in the order in which they are drawn."""
        settings = replace(setup.values, jointly=True, stopping=LossThreshold)
        requests = setup.pool(self.pilots)
        norms = []
        for start in range(0, len(requests), _TOGETHER):
            together = requests[start : start + _TOGETHER]
            solved = solve_target_values(
                setup.loaded,
                together,
                setup.weights.layers[-1],
                [BARE],
                settings,
                setup.tokens_per_batch,
            )
            norms.append((_outputs(together, setup) + solved.deltas).norm(dim=1))
        return torch.cat(norms)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._anchor is None else {"anchor": self._anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._anchor = state.get("anchor")


def mean_without_largest(norms: Tensor, drop: float) -> Tensor:
    """The mean of ``norms`` [n] without the largest floor(``drop`` n)."""
    kept = len(norms) - int(drop * len(norms))
    return norms.sort().values[:kept].mean()


def anchored_outputs(targets: Tensor, before: Tensor, anchor: Tensor) -> Tensor:
    """The target outputs with the anchor's norm, or the outputs of before; all [n, d_model]."""
    norms = targets.norm(dim=1, keepdim=True)
    return torch.where(norms > _LIMIT * anchor, before, targets * (anchor / norms))


def _outputs(requests: Sequence[EditRequest], setup: EditingSetup) -> Tensor:
    """v0 of the requests on the present model, [n, d_model]."""
    return projection_outputs(
        setup.loaded, requests, setup.weights.layers[-1], setup.tokens_per_batch
    )
