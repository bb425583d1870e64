"""Locate-then-edit: target values, then for each layer keys, residual and update."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.keys import BatchReader, Measurement
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.state import restore_state, state_of
from sphere_bench.editing.statistics.null_space import compare_energies, energy_shares
from sphere_bench.editing.values.solver import TargetValues, solve_target_values


class ValueTransform(Protocol):
    """Maps target values to others; may have a state, like an editor."""

    def __call__(
        self, requests: Sequence[EditRequest], solved: TargetValues, setup: EditingSetup
    ) -> Tensor:
        """New target values [n, d_model], in float32.

        Args:
            requests: the n edits of the batch.
            solved: their target values z and deltas; z - delta is the hidden state h before.
            setup: the run's. Its model is as earlier batches left it, and unedited in the first
                one; what it puts out can be measured, and requests of ``setup.pool`` solved.
        """


class LocateThenEdit:
    """MEMIT and its relatives: one set of target values, then one update for each layer.

    A layer's residual is what is missing at the last edited layer, divided by the number of edited
    layers from this one on. It is measured again after each layer's write.

    Args:
        setup: the run's model, weights and settings.
        solver: turns keys and residuals into an update.
        value_transform: maps the target values.
    """

    def __init__(
        self,
        setup: EditingSetup,
        solver: UpdateSolver,
        value_transform: ValueTransform | None = None,
    ) -> None:
        self.setup = setup
        self.solver = solver
        self.value_transform = value_transform
        self._facts = _prepare(solver, setup)

    def edit(self, batch: Batch) -> None:
        layers = batch.weights.layers
        with batch.timed("values"):
            solved = self._solve(batch)
            target_values = self._transformed(batch.requests, solved).T
        batch.report.losses = solved.losses
        batch.check("target value", target_values.T)
        reader = self._reader(batch.requests)
        keys: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            keys[layer], hidden = _measure(reader, layer, batch)
            with batch.timed("update"):
                missing = (target_values - hidden).to(keys[layer].device)
                residual = self._residual(layer, keys[layer], missing, len(layers) - index)
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

    def facts(self) -> dict[str, Any]:
        return self._facts

    def state_dict(self) -> dict[str, Any]:
        return {
            "solver": self.solver.state_dict(),
            "value_transform": state_of(self.value_transform),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state.get("solver", {}))
        restore_state(self.value_transform, state.get("value_transform", {}))

    def _residual(self, layer: int, keys: Tensor, missing: Tensor, remaining: int) -> Tensor:
        """R [d_out, n]: what the update of ``layer`` shall add to its output for its keys.

        Args:
            layer: the next to be written.
            keys: K [d_in, n].
            missing: at the last edited layer, [d_out, n].
            remaining: edited layers from this one on.
        """
        return missing / remaining

    def _transformed(self, requests: Sequence[EditRequest], solved: TargetValues) -> Tensor:
        """The target values [n, d_model] that the solver shall reach."""
        if self.value_transform is None:
            return solved.values
        return self.value_transform(requests, solved, self.setup)

    def _solve(self, batch: Batch) -> TargetValues:
        setup = self.setup
        return solve_target_values(
            setup.loaded,
            batch.requests,
            setup.weights.layers[-1],
            setup.contexts,
            setup.values,
            setup.tokens_per_batch,
            advance=batch.advance,
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


def _prepare(solver: UpdateSolver, setup: EditingSetup) -> dict[str, Any]:
    """Prepare the solver, and measure its null space if it has one."""
    moments = dict(setup.second_moments())
    solver.decompose = setup.decompose
    own: dict[int, float] = {}
    for layer in list(moments):  # each C is let go once it has been used: all need much memory
        moment = {layer: moments.pop(layer)}
        solver.prepare(moment)
        own |= energy_shares(solver.bases, moment)
    if not own:
        return {}
    held_out = energy_shares(solver.bases, setup.held_out_moments())
    return {"null_space": compare_energies(solver.bases, own, held_out)}


def _measure(reader: BatchReader, layer: int, batch: Batch) -> Measurement:
    """Keys at ``layer`` and hidden states, checked."""
    with batch.timed("keys"):
        measured = reader.measure(layer)
    batch.check("key", measured.keys.T)
    batch.check("hidden state", measured.hidden.T)
    return measured
