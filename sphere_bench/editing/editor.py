"""The editor's protocol, and locate-then-edit: values -> keys -> update -> transforms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.keys import Measurement, measure
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.transforms import EditedWeight, Sphere, Transform
from sphere_bench.editing.values import ValueSettings, solve_target_values
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel

Stage = Literal["values", "keys", "update", "transform"]


@dataclass(frozen=True)
class EditingSetup:
    """What a run gives to whichever editor it has.

    Attributes:
        loaded: the model.
        weights: the weights under edit.
        values: numbers of the value solver.
        contexts: templates with one ``{}``, the bare prompt first.
        second_moments: gives each edited layer's C [d_in, d_in]; computed or read when called.
        sphere: the projection that ends the list of transforms, or ``None``.
        apply: ``in_loop`` writes a layer's transformed update before the next layer is measured;
            ``after`` transforms all layers' updates once the last is found.
        tokens_per_batch: padded tokens in one forward.
    """

    loaded: LoadedModel
    weights: EditedWeights
    values: ValueSettings
    contexts: Sequence[str]
    second_moments: Callable[[], Mapping[int, Tensor]]
    sphere: Sphere | None
    apply: Literal["in_loop", "after"]
    tokens_per_batch: int


@dataclass
class LayerReport:
    """What happened to one layer in a batch.

    Attributes:
        residual_norm: mean over requests of ||z - hidden state|| before this layer's write.
        update_norm: ||dW|| as proposed.
        applied_norm: ||dW|| after the transforms.
        rank: number r of principal directions that SPHERE suppressed, ``None`` without it.
    """

    residual_norm: float = float("nan")
    update_norm: float = float("nan")
    applied_norm: float = float("nan")
    rank: int | None = None


@dataclass
class BatchReport:
    """Per layer what happened, and how long each stage took, in seconds."""

    layers: dict[int, LayerReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"values": 0.0, "keys": 0.0, "update": 0.0, "transform": 0.0}
    )

    @contextmanager
    def timed(self, stage: Stage, device: torch.device) -> Iterator[None]:
        """Add the block's time to ``stage``, waiting for the device to finish it."""
        start = perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[stage] += perf_counter() - start


class Editor(Protocol):
    """Writes batches of edits into a model, one after another."""

    def edit(self, requests: Sequence[EditRequest]) -> BatchReport:
        """Edit the model as earlier batches left it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Whatever the editor remembers between batches, the weights apart."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""


class LocateThenEdit:
    """MEMIT and kin: target values once a batch, then layer by layer keys, residual and update.

    A layer's residual is what is missing at the last edited layer, divided by the number of edited
    layers still to come, this one included, and measured again after each layer's write.

    Args:
        setup: the run's model, weights and settings.
        solver: keys and residuals to an update.
        transforms: maps of the proposed update, in order; SPHERE comes last.
    """

    def __init__(
        self, setup: EditingSetup, solver: UpdateSolver, transforms: Sequence[Transform] = ()
    ) -> None:
        self.setup = setup
        self.solver = solver
        self.transforms = [*transforms, *([setup.sphere] if setup.sphere else [])]
        solver.prepare(setup.second_moments())

    def edit(self, requests: Sequence[EditRequest]) -> BatchReport:
        setup, weights = self.setup, self.setup.weights
        report = BatchReport()
        device = setup.loaded.device
        value_layer = weights.layers[-1]
        with report.timed("values", device):
            target_values = solve_target_values(
                setup.loaded,
                requests,
                value_layer,
                setup.contexts,
                setup.values,
                setup.tokens_per_batch,
            ).values.T
        before = dict(weights.current)
        proposed: dict[int, Tensor] = {}
        for index, layer in enumerate(weights.layers):
            with report.timed("keys", device):
                keys, hidden = self._measure(requests, layer)
            with report.timed("update", device):
                missing = target_values - hidden
                residual = missing / (len(weights.layers) - index)
                proposed[layer] = _finite(self.solver.solve(layer, keys, residual), layer)
            report.layers[layer] = LayerReport(
                residual_norm=missing.norm(dim=0).mean().item(),
                update_norm=proposed[layer].norm().item(),
            )
            if setup.apply == "in_loop":
                self._write_transformed(layer, before[layer], proposed[layer], report)
            else:
                weights.write(layer, before[layer] + proposed[layer])
        if setup.apply == "after":
            for layer in weights.layers:
                self._write_transformed(layer, before[layer], proposed[layer], report)
        if self.solver.remembers_keys:
            for layer in weights.layers:
                with report.timed("keys", device):
                    keys, _ = self._measure(requests, layer)
                with report.timed("update", device):
                    self.solver.remember(layer, keys)
        return report

    def _measure(self, requests: Sequence[EditRequest], layer: int) -> Measurement:
        setup = self.setup
        return measure(
            setup.loaded,
            requests,
            layer,
            setup.weights.layers[-1],
            setup.contexts,
            setup.tokens_per_batch,
        )

    def _write_transformed(
        self, layer: int, before: Tensor, update: Tensor, report: BatchReport
    ) -> None:
        weights = self.setup.weights
        weight = EditedWeight(layer, weights.pretrained[layer], before)
        with report.timed("transform", self.setup.loaded.device):
            for transform in self.transforms:
                update = transform(update, weight)
        report.layers[layer].applied_norm = update.norm().item()
        if self.setup.sphere:
            report.layers[layer].rank = self.setup.sphere.ranks[layer]
        weights.write(layer, before + _finite(update, layer))

    def state_dict(self) -> dict[str, Tensor]:
        return self.solver.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.solver.load_state_dict(state)


def _finite(update: Tensor, layer: int) -> Tensor:
    if not torch.isfinite(update).all():
        raise SphereBenchError(
            f"the update of layer {layer} is not finite and was not written: lower "
            "model.values.learning_rate or raise model.second_moment_weight"
        )
    return update
