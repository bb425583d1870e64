"""The editor's protocol, and locate-then-edit: values -> keys -> update -> transforms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.keys import BatchReader, Measurement
from sphere_bench.editing.pipeline import BatchReport, EditingSetup, UpdatePipeline
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.transforms import Transform
from sphere_bench.editing.values import TargetValues, solve_target_values

_PILOTS_AT_A_TIME = 100


class Editor(Protocol):
    """Writes batches of edits into a model, one after another."""

    def edit(self, requests: Sequence[EditRequest]) -> BatchReport:
        """Edit the model as earlier batches left it."""

    def state_dict(self) -> dict[str, Any]:
        """Whatever the editor remembers between batches, the deployed weights apart."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""


class ValueTransform(Protocol):
    """Maps target values to others."""

    def __call__(self, values: Tensor, solve: "SolveValues") -> Tensor:
        """New target values [n, d_model]; ``solve`` finds those of other requests."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SolveValues(Protocol):
    """Target values [n, d_model] of the stream's first ``count`` requests on the present model."""

    def __call__(self, count: int) -> Tensor: ...


class LocateThenEdit:
    """MEMIT and kin: target values once a batch, then layer by layer keys, residual and update.

    A layer's residual is what is missing at the last edited layer, divided by the number of edited
    layers still to come, this one included, and measured again after each layer's write.

    Args:
        setup: the run's model, weights and settings.
        solver: keys and residuals to an update.
        transforms: maps of the proposed update, in order; SPHERE comes last.
        conditioner, continue_from: see :class:`UpdatePipeline`.
        value_transform: maps the target values.
        stop_at_argmax: see :class:`ValueSettings`.
    """

    def __init__(
        self,
        setup: EditingSetup,
        solver: UpdateSolver,
        transforms: Sequence[Transform] = (),
        conditioner: Transform | None = None,
        continue_from: Literal["unconditioned", "deployed"] = "unconditioned",
        value_transform: ValueTransform | None = None,
        stop_at_argmax: bool = False,
    ) -> None:
        self.setup = setup
        self.solver = solver
        self.pipeline = UpdatePipeline(setup, transforms, conditioner, continue_from)
        self.value_transform = value_transform
        self.value_settings = replace(setup.values, stop_at_argmax=stop_at_argmax)
        solver.prepare(setup.second_moments())

    def edit(self, requests: Sequence[EditRequest]) -> BatchReport:
        setup, weights = self.setup, self.setup.weights
        device = setup.loaded.device
        with self.pipeline.batch(self) as report:
            with report.timed("values", device):
                solved = self._solve(requests)
                target_values = self._transformed(solved.values).T
            report.losses = solved.losses
            self.pipeline.check_requests("target value", target_values.T, requests, report)
            before = dict(weights.current)
            reader = self._reader(requests)
            keys: dict[int, Tensor] = {}
            proposed: dict[int, Tensor] = {}
            for index, layer in enumerate(weights.layers):
                with report.timed("keys", device):
                    measured = reader.measure(layer)
                self._check(measured, requests, report)
                keys[layer], hidden = measured
                with report.timed("update", device):
                    missing = target_values - hidden
                    residual = missing / (len(weights.layers) - index)
                    proposed[layer] = self.solver.solve(layer, keys[layer], residual)
                report.layers[layer].residual_norm = missing.norm(dim=0).mean().item()
                report.layers[layer].update_norm = proposed[layer].norm().item()
                if setup.apply == "in_loop":
                    self.pipeline.write(layer, before[layer], proposed[layer], report)
                else:
                    self.pipeline.put(layer, before[layer], proposed[layer], report)
            if setup.apply == "after":
                for layer in weights.layers:
                    self.pipeline.write(layer, before[layer], proposed[layer], report)
                # In the loop every layer was measured behind deployed ones; here none was.
                reader = self._reader(requests)
            if self.solver.remembers_written_keys:
                for layer in weights.layers:
                    if setup.apply == "after":
                        with report.timed("keys", device):
                            measured = reader.measure(layer)
                        self._check(measured, requests, report)
                        keys[layer] = measured.keys
                    with report.timed("update", device):
                        self.solver.remember(layer, keys[layer])
        return report

    def state_dict(self) -> dict[str, Any]:
        state = {"solver": self.solver.state_dict(), "pipeline": self.pipeline.state_dict()}
        if self.value_transform is not None:
            state["value_transform"] = self.value_transform.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state.get("solver", {}))
        self.pipeline.load_state_dict(state.get("pipeline", {}))
        if self.value_transform is not None:
            self.value_transform.load_state_dict(state.get("value_transform", {}))

    def _transformed(self, values: Tensor) -> Tensor:
        """The target values [n, d_model] that the solver shall reach."""
        if self.value_transform is None:
            return values

        def solve(count: int) -> Tensor:
            pilots = self.setup.stream[:count]
            parts = [
                self._solve(pilots[start : start + _PILOTS_AT_A_TIME]).values
                for start in range(0, len(pilots), _PILOTS_AT_A_TIME)
            ]
            return torch.cat(parts)

        return self.value_transform(values, solve)

    def _solve(self, requests: Sequence[EditRequest]) -> TargetValues:
        setup = self.setup
        return solve_target_values(
            setup.loaded,
            requests,
            setup.weights.layers[-1],
            setup.contexts,
            self.value_settings,
            setup.tokens_per_batch,
        )

    def _check(
        self, measured: Measurement, requests: Sequence[EditRequest], report: BatchReport
    ) -> None:
        for what, rows in (("key", measured.keys.T), ("hidden state", measured.hidden.T)):
            self.pipeline.check_requests(what, rows, requests, report)

    def _reader(self, requests: Sequence[EditRequest]) -> BatchReader:
        setup = self.setup
        return BatchReader(
            setup.loaded,
            requests,
            setup.weights.layers[-1],
            setup.contexts,
            setup.tokens_per_batch,
        )
