"""ROME: one fact after another, a rank-one update of one layer."""

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.keys import context_keys, projection_outputs
from sphere_bench.editing.solvers import factor_second_moment
from sphere_bench.editing.values.solver import solve_target_values
from sphere_bench.errors import SphereBenchError
from sphere_bench.geometry.energy import as_double


class Rome:
    """ROME (arXiv 2202.05262): dW = (v* - W k) (C^-1 k')^T / ((C^-1 k')^T k).

    v* - W k is the value solver's delta at the edited layer. Its clamp and weight decay use the
    norm of the MLP's output instead of the hidden state's. k is the key in the bare prompt and k'
    its plain mean over all contexts, each of them as much as the bare prompt, as in the published
    code.

    Args:
        setup: the run's model, weights and settings; one layer is edited.
        whiten: use C; without it C = I, as published for Llama-3 and Qwen2.5.

    Raises:
        SphereBenchError: several layers are to be edited, or C is singular.
    """

    def __init__(self, setup: EditingSetup, whiten: bool = True) -> None:
        if len(setup.weights.layers) != 1:
            raise SphereBenchError(
                f"editor.layers={setup.weights.layers}: ROME edits one layer: name one"
            )
        (self.layer,) = setup.weights.layers
        self.setup = setup
        self._factor: Tensor | None = None
        if whiten:
            moment = setup.second_moments()[self.layer]
            self._factor = factor_second_moment(as_double(moment), self.layer)

    def edit(self, batch: Batch) -> None:
        setup, residual_norms = self.setup, []
        for index, request in enumerate(batch.requests):
            batch.advance(index / len(batch.requests))
            with batch.timed("values"):
                delta = self._delta(request)
            with batch.timed("keys"):
                keys = context_keys(
                    setup.loaded, [request], self.layer, setup.contexts, setup.tokens_per_batch
                )[0]
            for what, found in (("target value", delta), ("key", keys)):
                batch.check(what, found[None], [request])
            with batch.timed("update"):
                update = self._update(delta, keys)
            batch.write(self.layer, update)
            residual_norms.append(delta.norm().item())
        mean = sum(residual_norms) / len(residual_norms)
        batch.report.layers[self.layer].residual_norm = mean

    def _delta(self, request: EditRequest) -> Tensor:
        """v* - W k, [d_out]."""
        setup = self.setup
        outputs = projection_outputs(setup.loaded, [request], self.layer, setup.tokens_per_batch)
        solved = solve_target_values(
            setup.loaded,
            [request],
            self.layer,
            setup.contexts,
            setup.values,
            setup.tokens_per_batch,
            outputs.norm(dim=1),
        )
        return solved.deltas[0]

    def _update(self, delta: Tensor, keys: Tensor) -> Tensor:
        """dW [d_out, d_in] from the keys in all contexts [contexts, d_in], the bare one first."""
        keys = as_double(keys)
        direction = keys.mean(dim=0)
        if self._factor is not None:
            direction = torch.cholesky_solve(direction[:, None], self._factor)[:, 0]
        return torch.outer(as_double(delta), direction) / (direction @ keys[0])
