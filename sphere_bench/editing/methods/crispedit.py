"""CrispEdit: fine-tuning along directions in which the loss on other text hardly curves."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.gradients import ProjectionRows, projection_rows
from sphere_bench.editing.statistics.kronecker import FlatDirections, KroneckerFactors
from sphere_bench.editing.statistics.second_moments import TOKENS_PER_BATCH
from sphere_bench.editing.training import Training
from sphere_bench.errors import SphereBenchError, check_above, check_between
from sphere_bench.models.batching import backing_off, launch_price, token_batches
from sphere_bench.models.tokens import Continuation


class CrispEdit:
    """CrispEdit (arXiv 2602.15823): Adam with gradients projected onto flat directions.

    K-FAC gives each weight's curvature on ordinary text of the unedited model, and behind each
    batch that of the batch's own texts on the edited one is added, every token with the same
    weight. A gradient becomes U_b ((U_b^T G U_a) o M) U_a^T, see :class:`FlatDirections`. As
    published, Adam goes on from batch to batch, its momentum projected onto the new directions, and
    a chunk's loss is the mean over its target tokens.

    Args:
        setup: the run's model, weights and settings.
        steps, learning_rate, chunk, loss_threshold: see :class:`Training`.
        energy: share of the curvature in the directions that are left out; gamma in the paper.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    def __init__(
        self,
        setup: EditingSetup,
        steps: int = 25,
        learning_rate: float = 5e-4,
        energy: float = 0.8,
        chunk: int = 32,
        loss_threshold: float = 1e-2,
    ) -> None:
        self.setup = setup
        self.training = Training(
            setup.loaded, steps, learning_rate, chunk, loss_threshold, mean_over="tokens"
        )
        check_above("editor.method.energy", energy, 0)
        check_between("editor.method.energy", energy, 0, 1)
        setup.ordinary_windows()  # nothing is read yet, but that there is no such text is reported
        self.energy = energy
        self._factors = {layer: KroneckerFactors() for layer in setup.weights.layers}
        self._flat: dict[int, FlatDirections] = {}
        self._adam: dict[int, dict[str, Tensor]] = {}

    def edit(self, batch: Batch) -> None:
        with batch.timed("keys"):
            if not all(factors.tokens for factors in self._factors.values()):
                self._add_ordinary_text()
            self._flat = {
                layer: factors.flat_directions(self.energy)
                for layer, factors in self._factors.items()
            }
        texts = self.training.texts(batch.requests)
        self.training.tune(batch, texts, optimizer=self._adam_of, before_step=self._project)
        with batch.timed("keys"):
            self._add(texts)

    def _add_ordinary_text(self) -> None:
        texts = [
            Continuation(window, [], len(window) - 1)
            for window in self.setup.ordinary_windows()
            if len(window) > 1
        ]
        if not texts:
            raise SphereBenchError("no text for K-FAC: name another statistics.corpus")
        with self.setup.weights.unedited():
            self._add(texts)

    def _add(self, texts: Sequence[Continuation]) -> None:
        """Add the curvature of ``texts`` on the present model."""
        budget, price = self.setup.tokens_per_batch, launch_price(self.setup.loaded.device)
        for group in token_batches([len(text.ids) for text in texts], TOKENS_PER_BATCH, price):
            read = partial(self._read, [texts[index] for index in group])
            for layer, rows in backing_off(read, budget).layers.items():
                self._factors[layer].add(*rows)

    def _read(self, texts: Sequence[Continuation], tokens_per_batch: int) -> ProjectionRows:
        """h and g of each text's own loss, the sum of its tokens' NLLs."""
        loaded, layers = self.setup.loaded, self.setup.weights.layers
        return projection_rows(loaded, layers, texts, torch.ones(len(texts)), tokens_per_batch)

    def _project(self, tuned: Mapping[int, Tensor]) -> None:
        for layer, weight in tuned.items():
            assert weight.grad is not None
            weight.grad = self._flat[layer].project(weight.grad)

    def _adam_of(self, tuned: Mapping[int, Tensor]) -> torch.optim.Adam:
        """The Adam of earlier batches, for these weights."""
        optimizer = self.training.adam(tuned.values())
        for layer, weight in tuned.items():
            memory = self._adam.get(layer)
            if memory:
                optimizer.state[weight] = {
                    "step": memory["step"].clone(),
                    "exp_avg": self._flat[layer].project(memory["exp_avg"].to(weight)),
                    "exp_avg_sq": memory["exp_avg_sq"].to(weight, copy=True),
                }
            # Adam fills this in.
            self._adam[layer] = optimizer.state[weight]
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        return {
            "factors": {str(layer): each.state_dict() for layer, each in self._factors.items()},
            "adam": {str(layer): dict(memory) for layer, memory in self._adam.items() if memory},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, factors in state["factors"].items():
            self._factors[int(name)].load_state_dict(factors)
        self._adam = {int(name): dict(memory) for name, memory in state.get("adam", {}).items()}
