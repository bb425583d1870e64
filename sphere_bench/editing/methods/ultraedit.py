"""UltraEdit: one closed-form update from hidden states and gradients, no value optimisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.errors import check_above
from sphere_bench.geometry.energy import as_double
from sphere_bench.models.batching import backing_off, pad_right, token_batches
from sphere_bench.models.hooks import capture, probe_outputs, select_positions
from sphere_bench.models.tokens import encode_continuation


class UltraEdit:
    """UltraEdit (arXiv 2505.14679): dW = V^T H (H^T H + I)^-1, V = -lr ||h'||^2 g'.

    H [m, d_in] holds the projection's inputs h at the positions that predict the batch's m target
    tokens; g are the gradients of the loss at the projection's outputs. h' and g' are h and g,
    normalised by their mean and standard deviation over the run so far, with this batch. The
    published code edits several projections of some late layers; here it is the one projection that
    every editor edits.

    Args:
        setup: the run's model, weights and settings.
        learning_rate: lr.

    Raises:
        SphereBenchError: the learning rate is not above 0.
    """

    def __init__(self, setup: EditingSetup, learning_rate: float = 1e-6) -> None:
        self.setup = setup
        check_above("editor.method.learning_rate", learning_rate, 0)
        self.learning_rate = learning_rate
        self._moments = {layer: RunningMoments() for layer in setup.weights.layers}

    def edit(self, batch: Batch) -> None:
        with batch.timed("keys"):
            owners, features = backing_off(
                lambda tokens: self._features(batch.requests, tokens), self.setup.tokens_per_batch
            )
        for layer, (hidden, gradients) in features.items():
            batch.check("key", hidden, owners)
            batch.check("gradient", gradients, owners)
            with batch.timed("update"):
                update = self._update(layer, hidden, gradients)
            batch.write(layer, update)

    def _update(self, layer: int, hidden: Tensor, gradients: Tensor) -> Tensor:
        """dW [d_out, d_in] from H [m, d_in] and the gradients [m, d_out]."""
        both = torch.cat([hidden, gradients], dim=1)
        self._moments[layer].update(both)
        normalized = self._moments[layer].normalize(both)
        width = hidden.shape[1]
        strengths = normalized[:, :width].square().sum(dim=1, keepdim=True)
        values = -self.learning_rate * strengths * normalized[:, width:]
        # (H^T H + I)^-1 H^T = H^T (H H^T + I)^-1; the second system is the smaller one.
        system = hidden @ hidden.T
        system.diagonal().add_(1)
        update: Tensor = torch.linalg.solve(system, values).T @ hidden
        return update

    def _features(
        self, requests: Sequence[EditRequest], tokens_per_batch: int
    ) -> tuple[list[EditRequest], dict[int, tuple[Tensor, Tensor]]]:
        """The features of the m positions that predict a target token.

        Returns:
            The request of each position, [m], and for each layer h [m, d_in] and g [m, d_out].
        """
        loaded = self.setup.loaded
        texts = [
            encode_continuation(loaded.tokenizer, request.prompt, request.target_new)
            for request in requests
        ]
        projections = {
            layer: loaded.layout.projection(layer) for layer in self.setup.weights.layers
        }
        found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in projections}
        owners: list[EditRequest] = []
        for group in token_batches([len(text.ids) - 1 for text in texts], tokens_per_batch):
            places = [
                (row, column, texts[index].ids[column + 1])
                for row, index in enumerate(group)
                for column in texts[index].predicting
            ]
            owners += [requests[group[row]] for row, _, _ in places]
            rows, columns, targets = torch.tensor(places, device=loaded.device).T
            tokens = pad_right([texts[index].ids[:-1] for index in group]).to(loaded.device)
            with (
                capture(projections, "input") as inputs,
                probe_outputs(projections) as probes,
                select_positions(loaded.layout.head, rows, columns),
            ):
                output = loaded.model(input_ids=tokens, use_cache=False)
            # The mean over the tokens of the whole batch, not of this group.
            loss = functional.cross_entropy(output.logits[0].float(), targets, reduction="sum")
            loss = loss / sum(text.target_length for text in texts)
            layers = list(projections)
            gradients = torch.autograd.grad(loss, [probes[layer] for layer in layers])
            for layer, gradient in zip(layers, gradients, strict=True):
                hidden = as_double(inputs[layer].detach()[rows, columns])
                found[layer].append((hidden, as_double(gradient[rows, columns])))
        return owners, {
            layer: (torch.cat([hidden for hidden, _ in pairs]), torch.cat([g for _, g in pairs]))
            for layer, pairs in found.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {str(layer): moments.state_dict() for layer, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for layer, moments in state.items():
            self._moments[int(layer)].load_state_dict(moments)


class RunningMoments:
    """Mean and standard deviation of every column over all rows so far, by Chan's update."""

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add ``rows`` [m, columns]."""
        added, mean = len(rows), rows.mean(dim=0)
        shift = mean - self.mean.to(mean)
        total = self.count.item() + added
        between = shift.square() * (self.count.item() * added / total)
        self.squares = self.squares.to(mean) + (rows - mean).square().sum(dim=0) + between
        self.mean = self.mean.to(mean) + shift * (added / total)
        self.count = torch.tensor(total, dtype=torch.float64)

    def normalize(self, rows: Tensor) -> Tensor:
        """``rows`` minus the mean, divided by the standard deviation."""
        deviation = (self.squares / max(self.count.item() - 1, 1)).sqrt()
        return (rows - self.mean) / (deviation + torch.finfo(rows.dtype).eps)

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
