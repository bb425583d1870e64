"""Training on the texts of requests: Adam, epoch after epoch, one step for every chunk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.errors import check_above, check_at_least, check_choice
from sphere_bench.geometry.energy import as_double
from sphere_bench.models.batching import Budget, backing_off, pad_right
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import Continuation, encode_continuation, ended

#: Gives the indices of n texts in the order of an epoch.
Order = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Training:
    """How an editor trains on texts; every training has an Adam of its own.

    A chunk with a loss below the threshold is left out; the training ends when an epoch's mean loss
    is below it.

    Attributes:
        loaded: the model.
        steps: epochs, passes over the texts.
        learning_rate: Adam's.
        chunk: texts in one step.
        loss_threshold: of a chunk and of an epoch, nats.
        loss: ``teacher_forced`` predicts every target token from the prompt and the target tokens
            before it; ``last_position`` predicts all of them at the prompt's last token.
        mean_over: a chunk's loss is the mean over its ``texts``, of the mean over each one's target
            tokens, or over the target ``tokens`` of all.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    loaded: LoadedModel
    steps: int
    learning_rate: float
    chunk: int
    loss_threshold: float
    loss: Literal["teacher_forced", "last_position"] = "teacher_forced"
    mean_over: Literal["texts", "tokens"] = "texts"

    def __post_init__(self) -> None:
        check_at_least("editor.method.steps", self.steps, 1)
        check_above("editor.method.learning_rate", self.learning_rate, 0)
        check_at_least("editor.method.chunk", self.chunk, 1)
        check_choice("loss", self.loss, ("teacher_forced", "last_position"))

    def texts(
        self, requests: Sequence[EditRequest], *, end_of_text: bool = False
    ) -> list[Continuation]:
        """Each request's prompt and new target, with EOS behind it if wanted.

        Raises:
            SphereBenchError: the tokenizer has no EOS.
        """
        tokenizer = self.loaded.tokenizer
        texts = [
            encode_continuation(tokenizer, request.prompt, request.target_new)
            for request in requests
        ]
        return [ended(tokenizer, text) for text in texts] if end_of_text else texts

    def tune(
        self,
        batch: Batch,
        texts: Sequence[Continuation],
        *,
        norm_constraint: float | None = None,
        order: Order = range,
        optimizer: Callable[[Mapping[int, Tensor]], torch.optim.Optimizer] | None = None,
        before_step: Callable[[Mapping[int, Tensor]], None] = lambda tuned: None,
    ) -> None:
        """Train the edited weights themselves on ``texts``, and write their changes.

        Args:
            batch: whose weights are trained.
            texts: what they are trained on.
            norm_constraint: bound on the change of every entry, or ``None``.
            order: of the texts in an epoch.
            optimizer: makes one for the weights that are trained, layer to [d_out, d_in]; a new
                Adam by default.
            before_step: is called with these weights before every step.
        """
        before = dict(batch.weights.current)
        tuned = {layer: weight.clone().requires_grad_() for layer, weight in before.items()}

        @torch.no_grad()
        def constrain() -> None:
            if norm_constraint is not None:
                for layer, weight in tuned.items():
                    weight.clamp_(before[layer] - norm_constraint, before[layer] + norm_constraint)

        with batch.timed("update"):
            self.run(
                texts,
                list(tuned.values()),
                lambda: self.loaded.layout.parameters(tuned),
                order=order,
                optimizer=None if optimizer is None else optimizer(tuned),
                before_step=lambda: before_step(tuned),
                after_step=constrain,
            )
        for layer, weight in tuned.items():
            batch.write(layer, as_double(weight.detach()) - as_double(before[layer]))

    def run(
        self,
        texts: Sequence[Continuation],
        trained: Sequence[Tensor],
        parameters: Callable[[], Mapping[str, Tensor]] = dict,
        *,
        order: Order = range,
        optimizer: torch.optim.Optimizer | None = None,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train tensors on ``texts``, in place.

        Args:
            texts: what they are trained on.
            trained: the tensors, which require gradients.
            parameters: returns the model's parameters that are made of them, by name. Without, the
                model itself has them.
            order: of the texts in an epoch.
            optimizer: of the tensors; a new Adam by default.
            before_step, after_step: are called around every step.
        """
        optimizer = optimizer or self.adam(trained)
        for _ in range(self.steps):
            total = 0.0
            places = order(len(texts))
            for start in range(0, len(texts), self.chunk):
                chunk = [texts[place] for place in places[start : start + self.chunk]]
                loss = self._find_gradients(chunk, trained, parameters)
                total += loss * len(chunk)
                if loss < self.loss_threshold:
                    continue
                before_step()
                optimizer.step()
                after_step()
            if total / len(texts) < self.loss_threshold:
                break

    def adam(self, trained: Iterable[Tensor]) -> torch.optim.Adam:
        """A new one."""
        return torch.optim.Adam(trained, lr=self.learning_rate)

    def _find_gradients(
        self,
        texts: Sequence[Continuation],
        trained: Sequence[Tensor],
        parameters: Callable[[], Mapping[str, Tensor]],
    ) -> float:
        """The loss of the texts, with its gradients in ``trained``.

        If memory runs out, they are split into smaller pieces.
        """

        def add_up(size: int) -> float:
            for tensor in trained:
                tensor.grad = None
            total = 0.0
            whole = sum(map(self._share, texts))
            for start in range(0, len(texts), size):
                piece = texts[start : start + size]
                share = sum(map(self._share, piece)) / whole
                loss = self._loss(piece, parameters()) * share
                loss.backward()
                total += loss.item()
            return total

        # Not of this chunk, which may be a short one, but of what memory allows in a forward.
        size = min(self._together.size, len(texts))
        budget = Budget(size)
        total = backing_off(add_up, budget, "requests")
        if budget.size < size:
            self._together.size = budget.size
        return total

    @cached_property
    def _together(self) -> Budget:
        """Texts in one forward."""
        return Budget(self.chunk)

    def _share(self, text: Continuation) -> int:
        """A text's weight in the mean."""
        return text.target_length if self.mean_over == "tokens" else 1

    def _loss(self, texts: Sequence[Continuation], parameters: Mapping[str, Tensor]) -> Tensor:
        """Mean NLL of the target tokens, see ``mean_over``."""
        loaded = self.loaded
        rows, columns, tokens, weights = [], [], [], []
        for row, text in enumerate(texts):
            for column in text.predicting:
                rows.append(row)
                columns.append(column if self.loss == "teacher_forced" else text.predicting[0])
                tokens.append(text.ids[column + 1])
                weights.append(self._share(text) / text.target_length)
        device = loaded.device
        with select_positions(
            loaded.layout.head,
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
        ):
            output = functional_call(
                loaded.model,
                dict(parameters),
                kwargs={
                    "input_ids": pad_right([text.ids[:-1] for text in texts]).to(device),
                    "use_cache": False,
                },
            )
        nll = functional.cross_entropy(
            output.logits.squeeze(0).float(), torch.tensor(tokens, device=device), reduction="none"
        )
        return (nll * torch.tensor(weights, device=device)).sum() / sum(map(self._share, texts))
