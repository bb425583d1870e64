"""The texts that an iteration of the value solver runs, in micro-batches, and their loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import essence_prompt, prompt_with_target, shared_beginning
from sphere_bench.models.batching import token_batches
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.replay.prefixes import Stems
from sphere_bench.models.replay.suffix import SuffixBatch


class Loss(NamedTuple):
    """For each request, [n]: a term of its loss, and how many target tokens are not the argmax."""

    loss: Tensor
    misses: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Texts that share one forward and backward, essence prompts first.

    Attributes:
        batch: the texts, b rows.
        requests: index of each row's request, [b].
        targets: at each suffix position the token to predict there, or -1, [b, s].
        before: log-probabilities after the e essence prompts, delta being 0, [e, vocab].
        weight: of a target row in the loss of its request.
        kl_factor: weight of an essence prompt in it.
    """

    batch: SuffixBatch
    requests: Tensor
    targets: Tensor
    before: Tensor
    weight: float
    kl_factor: float

    def loss(self, delta: Tensor) -> Loss:
        rows, columns = (self.targets >= 0).nonzero(as_tuple=True)
        essences = torch.arange(len(self.before), device=rows.device)
        logits = self.batch.logits(
            self._edited(delta),
            torch.cat([essences, rows]),
            torch.cat([torch.zeros_like(essences), columns]),
        )
        after, logits = _split(logits, len(essences))
        after = after.log_softmax(dim=1)
        divergence = (after.exp() * (after - self.before)).sum(dim=1)
        asked = self.targets[rows, columns]
        nll = functional.cross_entropy(logits, asked, reduction="none")
        # The loss of a row is the mean over its target's tokens.
        shares = self.weight / (self.targets >= 0).sum(dim=1)[rows]
        wrong = (logits.detach().argmax(dim=1) != asked).to(nll.dtype)
        loss = nll.new_zeros(len(delta))
        return Loss(
            loss.index_add(0, self.requests[rows], shares * nll).index_add(
                0, self.requests[essences], self.kl_factor * divergence
            ),
            torch.zeros_like(loss).index_add(0, self.requests[rows], wrong),
        )

    def keep(self, rows: Tensor) -> "MicroBatch":
        """The same with only these rows, given in rising order."""
        batch = self.batch.keep(rows)
        return replace(
            self,
            batch=batch,
            requests=self.requests[rows],
            targets=self.targets[rows, : batch.tokens.shape[1]],
            before=self.before[rows[rows < len(self.before)]],
        )

    def _edited(self, delta: Tensor) -> Tensor:
        """The output of layer z, with each request's delta added at the subject's last token."""
        hidden = self.batch.hidden
        first = hidden[:, :1] + delta[self.requests, None]
        return torch.cat([first.to(hidden.dtype), hidden[:, 1:]], dim=1)


def micro_batches(
    loaded: LoadedModel,
    upper: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    tokens_per_batch: int,
    kl_factor: float,
) -> tuple[list[MicroBatch], Tensor]:
    """The texts of the requests, and the output of ``layer`` before optimisation.

    Args:
        loaded: the model, which runs the layers up to ``layer``.
        upper: the model that runs the layers above it.
        requests: n edits.
        layer: z.
        contexts: templates with one ``{}``; the first is the bare prompt.
        tokens_per_batch: padded suffix tokens in a micro-batch.
        kl_factor: weight of the essence prompts.

    Returns:
        The micro-batches, and h0 [n, d_model], the output at the subjects in the bare prompts.
    """
    texts = list(_texts(loaded, requests, contexts))
    stems = Stems.build(
        loaded,
        [
            shared_beginning([text.ids[: text.start] for text in texts if text.kind == kind])
            for kind in range(len(contexts) + 1)
        ],
        layer,
        upper,
    )
    initial = torch.empty(len(requests), loaded.model.config.hidden_size, device=loaded.device)
    batches = []
    lengths = [len(text.ids) - text.start for text in texts]
    for indices in token_batches(lengths, tokens_per_batch):
        # Sorted, so that essence prompts come first.
        group = [texts[index] for index in sorted(indices)]
        batch = SuffixBatch.build(
            loaded,
            [text.ids for text in group],
            [text.start for text in group],
            layer,
            upper,
            stems,
            [text.kind for text in group],
        )
        owners = torch.tensor([text.request for text in group])
        bare = torch.tensor([text.kind == 0 for text in group])
        initial[owners[bare]] = batch.hidden[bare, 0].to(initial.dtype)
        targets = torch.full(batch.tokens.shape, -1, dtype=torch.long)
        for row, text in enumerate(group):
            end = len(text.ids) - text.start
            targets[row, end - len(text.target) : end] = torch.as_tensor(text.target)
        batches.append(
            MicroBatch(
                batch,
                owners.to(loaded.device),
                targets.to(loaded.device),
                _log_probabilities(batch, sum(not text.target for text in group)),
                1 / len(contexts),
                kl_factor,
            )
        )
    return batches, initial


class _Text(NamedTuple):
    """A text to run for a request.

    Attributes:
        ids: tokens, up to the last one after which a prediction is read.
        start: index of the subject's last token.
        request: index of the request.
        kind: index of the context, or the number of contexts for the essence prompt.
        target: tokens to predict, the last one after all of ``ids``; none for the essence prompt.
    """

    ids: list[int]
    start: int
    request: int
    kind: int
    target: list[int]


def _texts(
    loaded: LoadedModel, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> Iterator[_Text]:
    """The essence prompts, then every request in every context."""
    for index, request in enumerate(requests):
        ids, start = essence_prompt(loaded.tokenizer, request)
        yield _Text(ids, start, index, kind=len(contexts), target=[])
    for index, request in enumerate(requests):
        for kind, context in enumerate(contexts):
            ids, start, length = prompt_with_target(loaded.tokenizer, request, context)
            # No prediction is read after the target's last token.
            yield _Text(ids[:-1], start, index, kind, target=ids[-length:])


def _split(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` rows, and the others.

    Without a slice where one of the two is empty: the gradient of a slice is a copy as large as
    the whole.
    """
    if count == 0:
        return logits.detach()[:0], logits
    if count == len(logits):
        return logits, logits.detach()[:0]
    first, others = logits.split([count, len(logits) - count])
    return first, others


@torch.no_grad()
def _log_probabilities(batch: SuffixBatch, count: int) -> Tensor:
    """Log-probabilities after the first token of the first ``count`` rows, [count, vocab]."""
    if not count:
        return torch.empty(0, 1, device=batch.hidden.device)
    rows = torch.arange(count, device=batch.hidden.device)
    batch = batch.keep(rows)
    return batch.logits(batch.hidden, rows, torch.zeros_like(rows)).log_softmax(dim=1)
