"""Fine-tuning of the edited weights, free or within a small ball."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.errors import check_above, check_at_least, check_choice
from sphere_bench.geometry.energy import as_double
from sphere_bench.models.batching import backing_off, pad_right
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.tokens import Continuation, encode_continuation


class FineTuning:
    """FT, and FT-L with a norm constraint: Adam on the edited weights, as in MEMIT's code.

    A step goes through the batch in chunks. A chunk with a loss below the threshold is left out;
    the batch ends when its mean loss is below it.

    Args:
        setup: the run's model, weights and settings.
        steps: passes over the batch.
        learning_rate: Adam's.
        norm_constraint: bound on the change of every entry within a batch (FT-L), or ``None``.
        loss: ``teacher_forced`` predicts every target token from the prompt and the target tokens
            before it; ``last_position`` predicts all of them at the prompt's last token, which is a
            mistake of the published code.
        chunk: requests in one forward.
        loss_threshold: of a chunk and of the batch.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    def __init__(
        self,
        setup: EditingSetup,
        steps: int = 25,
        learning_rate: float = 5e-4,
        norm_constraint: float | None = None,
        loss: Literal["teacher_forced", "last_position"] = "teacher_forced",
        chunk: int = 64,
        loss_threshold: float = 1e-2,
    ) -> None:
        self.setup = setup
        self.steps = steps
        self.learning_rate = learning_rate
        self.norm_constraint = norm_constraint
        check_at_least("editor.method.steps", steps, 1)
        check_above("editor.method.learning_rate", learning_rate, 0)
        check_at_least("editor.method.chunk", chunk, 1)
        if norm_constraint is not None:
            check_above("editor.method.norm_constraint", norm_constraint, 0)
        check_choice("loss", loss, ("teacher_forced", "last_position"))
        self.loss = loss
        self.chunk = chunk
        self.loss_threshold = loss_threshold

    def edit(self, batch: Batch) -> None:
        before = dict(batch.weights.current)
        with batch.timed("update"):
            tuned = self._tune(batch.requests, before)
        for layer, weight in tuned.items():
            batch.write(layer, as_double(weight) - as_double(before[layer]))

    def _tune(
        self, requests: Sequence[EditRequest], before: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """The weights after fine-tuning, layer to [d_out, d_in] in float32."""
        tuned = {layer: weight.clone().requires_grad_() for layer, weight in before.items()}
        optimizer = torch.optim.Adam(tuned.values(), lr=self.learning_rate)
        tokenizer = self.setup.loaded.tokenizer
        texts = [
            encode_continuation(tokenizer, request.prompt, request.target_new)
            for request in requests
        ]
        chunks = [texts[start : start + self.chunk] for start in range(0, len(texts), self.chunk)]
        for _ in range(self.steps):
            total = 0.0
            for chunk in chunks:
                loss = self._find_gradients(chunk, tuned)
                total += loss * len(chunk)
                if loss < self.loss_threshold:
                    continue
                optimizer.step()
                self._constrain(tuned, before)
            if total / len(requests) < self.loss_threshold:
                break
        return {layer: weight.detach() for layer, weight in tuned.items()}

    def _constrain(self, tuned: Mapping[int, Tensor], before: Mapping[int, Tensor]) -> None:
        if self.norm_constraint is None:
            return
        with torch.no_grad():
            for layer, weight in tuned.items():
                bound = self.norm_constraint
                weight.clamp_(min=before[layer] - bound, max=before[layer] + bound)

    def _find_gradients(self, texts: Sequence[Continuation], tuned: Mapping[int, Tensor]) -> float:
        """The loss of the texts, with its gradients in ``tuned``.

        If memory runs out, they are split into smaller pieces.
        """

        def add_up(size: int) -> float:
            for weight in tuned.values():
                weight.grad = None
            total = 0.0
            for start in range(0, len(texts), size):
                piece = texts[start : start + size]
                loss = self._loss(piece, tuned) * (len(piece) / len(texts))
                loss.backward()
                total += loss.item()
            return total

        return backing_off(add_up, len(texts), "requests")

    def _loss(self, texts: Sequence[Continuation], tuned: Mapping[int, Tensor]) -> Tensor:
        """Mean over texts of the mean NLL of the target tokens."""
        loaded = self.setup.loaded
        rows, columns, tokens, weights = [], [], [], []
        for row, text in enumerate(texts):
            for column in text.predicting:
                rows.append(row)
                columns.append(column if self.loss == "teacher_forced" else text.predicting[0])
                tokens.append(text.ids[column + 1])
                weights.append(1 / text.target_length)
        device = loaded.device
        with select_positions(
            loaded.layout.head,
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
        ):
            output = functional_call(
                loaded.model,
                loaded.layout.parameters(tuned),
                kwargs={
                    "input_ids": pad_right([text.ids[:-1] for text in texts]).to(device),
                    "use_cache": False,
                },
            )
        nll = functional.cross_entropy(
            output.logits[0].float(), torch.tensor(tokens, device=device), reduction="none"
        )
        return (nll * torch.tensor(weights, device=device)).sum() / len(texts)
