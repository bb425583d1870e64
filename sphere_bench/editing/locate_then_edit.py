"""Locate-then-edit: target values, then for each layer keys, residual and update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Advance, Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.keys import BatchReader, Measurement
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.state import restore_state, state_of
from sphere_bench.editing.values.solver import TargetValues, solve_target_values

# How many requests of the pool are solved at a time.
_POOL_CHUNK = 100


class ValueTransform(Protocol):
    """Maps target values to others; may have a state, like an editor."""

    def __call__(self, values: Tensor, solve: Callable[[int], Tensor]) -> Tensor:
        """New target values [n, d_model].

        Args:
            values: of the batch, [n, d_model].
            solve: finds those of the dataset's first requests, as many as it is asked for, on the
                present model.
        """


class LocateThenEdit:
    """MEMIT and its relatives: one set of target values, then one update for each layer.

    A layer's residual is what is missing at the last edited layer, divided by the number of edited
    layers from this one on. It is measured again after each layer's write.

    Args:
        setup: the run's model, weights and settings.
        solver: turns keys and residuals into an update.
        value_transform: maps the target values.
        stop_at_argmax: a request is also finished once its target is the argmax in every context.
    """

    def __init__(
        self,
        setup: EditingSetup,
        solver: UpdateSolver,
        value_transform: ValueTransform | None = None,
        stop_at_argmax: bool = False,
    ) -> None:
        self.setup = setup
        self.solver = solver
        self.value_transform = value_transform
        self.value_settings = replace(setup.values, stop_at_argmax=stop_at_argmax)
        solver.prepare(setup.second_moments())

    def edit(self, batch: Batch) -> None:
        layers = batch.weights.layers
        with batch.timed("values"):
            solved = self._solve(batch.requests, batch.advance)
            target_values = self._transformed(solved.values).T
        batch.report.losses = solved.losses
        batch.check("target value", target_values.T)
        reader = self._reader(batch.requests)
        keys: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            keys[layer], hidden = _measure(reader, layer, batch)
            with batch.timed("update"):
                missing = target_values - hidden
                residual = missing / (len(layers) - index)
                update = self.solver.solve(layer, keys[layer], residual)
            batch.report.layers[layer].residual_norm = missing.norm(dim=0).mean().item()
            batch.write(layer, update)
        if not self.solver.remembers_written_keys:
            return
        # In the loop, each layer was measured with the earlier ones as they are deployed.
        if changed := batch.settle():
            reader = self._reader(batch.requests)
        for layer in layers:
            if changed:
                keys[layer] = _measure(reader, layer, batch).keys
            with batch.timed("update"):
                self.solver.remember(layer, keys[layer])

    def state_dict(self) -> dict[str, Any]:
        return {
            "solver": self.solver.state_dict(),
            "value_transform": state_of(self.value_transform),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state.get("solver", {}))
        restore_state(self.value_transform, state.get("value_transform", {}))

    def _transformed(self, values: Tensor) -> Tensor:
        """The target values [n, d_model] that the solver shall reach."""
        if self.value_transform is None:
            return values

        def solve(count: int) -> Tensor:
            requests = self.setup.pool(count)
            chunks = [
                self._solve(requests[start : start + _POOL_CHUNK]).values
                for start in range(0, len(requests), _POOL_CHUNK)
            ]
            return torch.cat(chunks)

        return self.value_transform(values, solve)

    def _solve(
        self, requests: Sequence[EditRequest], advance: Advance | None = None
    ) -> TargetValues:
        setup = self.setup
        return solve_target_values(
            setup.loaded,
            requests,
            setup.weights.layers[-1],
            setup.contexts,
            self.value_settings,
            setup.tokens_per_batch,
            advance=advance,
        )

    def _reader(self, requests: Sequence[EditRequest]) -> BatchReader:
        setup = self.setup
        return BatchReader(
            setup.loaded,
            requests,
            setup.weights.layers[-1],
            setup.contexts,
            setup.tokens_per_batch,
        )


def _measure(reader: BatchReader, layer: int, batch: Batch) -> Measurement:
    """Keys at ``layer`` and hidden states, checked."""
    with batch.timed("keys"):
        measured = reader.measure(layer)
    batch.check("key", measured.keys.T)
    batch.check("hidden state", measured.hidden.T)
    return measured
