"""UltraEdit: one closed-form update from hidden states and gradients, no value optimisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.gradients import projection_rows
from sphere_bench.errors import check_above, check_at_least
from sphere_bench.models.batching import backing_off
from sphere_bench.models.tokens import Continuation, encode_continuation


@dataclass(frozen=True)
class Features:
    """What is read at the m positions that predict a target token.

    Attributes:
        owners: the request of each position, m.
        chunks: the chunk of each position, [m].
        layers: each layer's h [m, d_in], the input of its projection, and g [m, d_out], the
            gradient of the loss at the projection's output; in double precision.
    """

    owners: list[EditRequest]
    chunks: Tensor
    layers: Mapping[int, tuple[Tensor, Tensor]]


class UltraEdit:
    """UltraEdit (arXiv 2505.14679): dW = V^T H (H^T H + I)^-1, V = -lr ||h'||^2 g'.

    H [m, d_in] holds the projection's inputs h at the positions that predict the batch's m target
    tokens; g are the gradients of the loss at the projection's outputs. h' and g' are h and g,
    normalised by their mean and standard deviation over the run so far, this batch included. As
    published, layers whose weights have the same shape share one normaliser, and the loss is the
    mean over the target tokens of a chunk of requests. The published code edits several
    projections of some late layers; here it is the one projection that every editor edits.

    Args:
        setup: the run's model, weights and settings.
        learning_rate: lr.
        chunk: how many requests share a loss, those with the longest texts first. How many run in
            one forward is another matter.

    Raises:
        SphereBenchError: the learning rate is not above 0, or the chunk below 1.
    """

    def __init__(self, setup: EditingSetup, learning_rate: float = 1e-6, chunk: int = 10) -> None:
        self.setup = setup
        check_above("editor.method.learning_rate", learning_rate, 0)
        check_at_least("editor.method.chunk", chunk, 1)
        self.learning_rate = learning_rate
        self.chunk = chunk
        self._ridge = 1.0
        self._shapes = {
            layer: "x".join(map(str, weight.shape))
            for layer, weight in setup.weights.pretrained.items()
        }
        self._moments: Mapping[str, RunningMoments] = {
            shape: RunningMoments() for shape in self._shapes.values()
        }

    def edit(self, batch: Batch) -> None:
        self.write(batch, batch.requests)

    def write(self, batch: Batch, requests: Sequence[EditRequest]) -> None:
        """Write the update for ``requests`` as a part of ``batch``."""
        with batch.timed("keys"):
            features = backing_off(
                lambda tokens: self.features(requests, tokens), self.setup.tokens_per_batch
            )
        for hidden, gradients in features.layers.values():
            batch.check("key", hidden, features.owners)
            batch.check("gradient", gradients, features.owners)
        with batch.timed("update"):
            self.note(features)
        for layer, (hidden, gradients) in features.layers.items():
            with batch.timed("update"):
                update = self._update(layer, hidden, gradients)
            batch.write(layer, update)

    def note(self, features: Features) -> None:
        """Take the features of all layers into the normalisers, chunk after chunk."""
        for layer, pair in features.layers.items():
            rows = torch.cat(pair, dim=1)
            for chunk in features.chunks.unique():
                own = (features.chunks == chunk).to(rows.device)
                self._moments[self._shapes[layer]].update(rows[own])

    def _update(self, layer: int, hidden: Tensor, gradients: Tensor) -> Tensor:
        """dW [d_out, d_in] from H [m, d_in] and the gradients [m, d_out]."""
        normalized = self._normalized(layer, torch.cat([hidden, gradients], dim=1))
        width = hidden.shape[1]
        strengths = normalized[:, :width].square().sum(dim=1, keepdim=True)
        values = -self.learning_rate * strengths * normalized[:, width:]
        # (H^T H + I)^-1 H^T = H^T (H H^T + I)^-1; the second system is the smaller one.
        system = hidden @ hidden.T
        system.diagonal().add_(self._ridge)
        update: Tensor = torch.linalg.solve(system, values).T @ hidden
        return update

    def _normalized(self, layer: int, rows: Tensor) -> Tensor:
        """h' and g' of ``rows`` [m, d_in + d_out]."""
        return self._moments[self._shapes[layer]].normalize(rows)

    def features(self, requests: Sequence[EditRequest], tokens_per_batch: int) -> Features:
        """The features of ``requests`` on the present model.

        Args:
            requests: a batch.
            tokens_per_batch: padded tokens in one forward.
        """
        loaded = self.setup.loaded
        texts = [
            encode_continuation(loaded.tokenizer, request.prompt, request.target_new)
            for request in requests
        ]
        chunks, shares = self._chunked(texts)
        # A mean over the chunk, however it is spread over forwards.
        found = projection_rows(loaded, self.setup.weights.layers, texts, shares, tokens_per_batch)
        return Features(
            [requests[index] for index in found.owners],
            chunks[found.owners].to(loaded.device),
            found.layers,
        )

    def _chunked(self, texts: Sequence[Continuation]) -> tuple[Tensor, Tensor]:
        """For each of n texts its chunk, and the share of one of its tokens in the chunk's mean."""
        longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index].ids))
        chunks = torch.empty(len(texts), dtype=torch.long)
        chunks[longest_first] = torch.arange(len(texts)) // self.chunk
        lengths = torch.tensor([text.target_length for text in texts])
        return chunks, 1 / chunks.bincount(weights=lengths)[chunks]

    def state_dict(self) -> dict[str, Any]:
        return {shape: moments.state_dict() for shape, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for shape, moments in state.items():
            self._moments[shape].load_state_dict(moments)


class RunningMoments:
    """Mean and standard deviation of every column over all rows so far, as published.

    The rows of one update count n var to the sum of squares, var with the divisor n - 1, where
    Chan's update has (n - 1) var: the standard deviation is the larger the smaller the updates are.
    For a single row var is 0 / 0; it counts as 0 here, where the published code is NaN for good.

    Args:
        correction: var has the divisor n - ``correction``; 0 is Chan's update.
    """

    def __init__(self, correction: int = 1) -> None:
        self.correction = correction
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add ``rows`` [n, columns], in double precision."""
        before, added = self.count.item(), len(rows)
        total = before + added
        mean = rows.mean(dim=0)
        shift = mean - self.mean.to(mean)
        within = torch.zeros_like(mean)
        if added > 1:
            within = rows.var(dim=0, correction=self.correction) * added
        between = shift.square() * (before * added / total)
        self.squares = self.squares.to(mean) + within + between
        self.mean = self.mean.to(mean) + shift * (added / total)
        self.count = torch.tensor(total, dtype=torch.float64)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of every column."""
        return (self.squares / max(self.count.item() - 1, 1)).sqrt()

    def normalize(self, rows: Tensor) -> Tensor:
        """``rows`` minus the mean, divided by the standard deviation."""
        deviation = self.deviation.to(rows) + torch.finfo(torch.float32).eps
        return (rows - self.mean.to(rows)) / deviation

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
