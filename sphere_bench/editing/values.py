"""Target values: what the last edited layer should say at the subject's last token.

MEMIT's optimisation (arXiv 2210.07229, section 4.3.1) for all requests of a batch at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import essence_prompt, prompt_with_target, shared_beginning
from sphere_bench.models.batching import backing_off, token_batches
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in
from sphere_bench.models.suffix import Stems, SuffixBatch


@dataclass(frozen=True)
class ValueSettings:
    """Numbers of the value solver; all but the last two belong to a model.

    Attributes:
        steps: iterations; the last evaluates the loss and takes no step.
        learning_rate: Adam's.
        weight_decay: factor of ||delta|| / ||h0||^2 in the loss.
        clamp_norm_factor: ||delta|| is kept at or below this times ||h0||.
        kl_factor: factor of the KL divergence at the subject's last token of "{subject} is a".
        loss_threshold: a request whose loss falls below it is finished.
        stop_at_argmax: finish a request as soon as its target is the argmax in every context
            (ENCORE, arXiv 2502.01636), whatever its loss.
        precision: dtype of the layers above z; the model's own when ``None``. Layers up to z,
            delta, its Adam state and the losses keep theirs.
    """

    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    loss_threshold: float = 5e-2
    stop_at_argmax: bool = False
    precision: torch.dtype | None = None


@dataclass(frozen=True)
class TargetValues:
    """Result of the value solver for n requests.

    Attributes:
        values: z, [n, d_model] in float32.
        deltas: z - h0, [n, d_model].
        losses: each request's loss at every iteration that it took part in.
    """

    values: Tensor
    deltas: Tensor
    losses: list[list[float]]


def solve_target_values(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    settings: ValueSettings,
    tokens_per_batch: int = 2048,
    reference_norms: Tensor | None = None,
) -> TargetValues:
    """Optimise one delta per request, added to ``layer``'s output at the subject's last token.

    A request's loss is the mean over its contexts of the new target's NLL (mean over its tokens),
    plus kl_factor * KL(after || before) on its essence prompt, plus the weight decay. Requests
    share forwards but nothing else: each has its own delta, Adam state, clamp and stopping point,
    and leaves the batch once finished.

    Args:
        loaded: the model as earlier batches left it.
        requests: n edits.
        layer: z, the last edited layer.
        contexts: templates with one ``{}``; the first is the bare prompt, where h0 is read.
        settings: the solver's numbers.
        tokens_per_batch: padded suffix tokens in one forward and backward; halved when memory
            runs out.
        reference_norms: [n] to stand in for ||h0|| in the clamp and the weight decay.
    """

    above = range(layer + 1, len(loaded.layout))
    upper = with_layers_in(loaded, above, settings.precision or loaded.dtype)

    def solve(tokens: int) -> TargetValues:
        solver = _Solver(loaded, upper, requests, layer, contexts, settings, tokens)
        return solver.solve(
            solver.initial.norm(dim=1) if reference_norms is None else reference_norms
        )

    return backing_off(solve, tokens_per_batch)


class _Loss(NamedTuple):
    """Per request, [n]: a part of its loss, and how many of its target tokens are no argmax."""

    loss: Tensor
    misses: Tensor


class _Text(NamedTuple):
    """What a forward runs for a request.

    Attributes:
        ids: tokens, without those that nothing is asked behind.
        start: index of the subject's last token.
        request: the request's index.
        kind: index of the context, or the number of contexts for the essence prompt.
        target: tokens to predict, the last one behind all of ``ids``; none for the essence prompt.
    """

    ids: list[int]
    start: int
    request: int
    kind: int
    target: list[int]


@dataclass(frozen=True)
class _Rows:
    """One micro-batch of texts, essence prompts first.

    Attributes:
        batch: b rows.
        requests: the request of each, [b].
        targets: at each suffix position the token to predict there or -1, [b, s].
        before: log-probabilities of the unedited model behind the e essence prompts, [e, vocab].
        weight: a target row's share in its request's loss.
        kl_factor: an essence prompt's.
    """

    batch: SuffixBatch
    requests: Tensor
    targets: Tensor
    before: Tensor
    weight: float
    kl_factor: float

    def loss(self, delta: Tensor) -> _Loss:
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
        # A target's tokens count for its mean.
        shares = self.weight / (self.targets >= 0).sum(dim=1)[rows]
        wrong = (logits.detach().argmax(dim=1) != asked).to(nll.dtype)
        loss = nll.new_zeros(len(delta))
        return _Loss(
            loss.index_add(0, self.requests[rows], shares * nll).index_add(
                0, self.requests[essences], self.kl_factor * divergence
            ),
            torch.zeros_like(loss).index_add(0, self.requests[rows], wrong),
        )

    def keep(self, rows: Tensor) -> "_Rows":
        """The same with these rows only, given in rising order."""
        batch = self.batch.keep(rows)
        return replace(
            self,
            batch=batch,
            requests=self.requests[rows],
            targets=self.targets[rows, : batch.tokens.shape[1]],
            before=self.before[rows[rows < len(self.before)]],
        )

    def _edited(self, delta: Tensor) -> Tensor:
        """Layer z's output with each request's delta added at the subject's last token."""
        hidden = self.batch.hidden
        first = hidden[:, :1] + delta[self.requests, None]
        return torch.cat([first.to(hidden.dtype), hidden[:, 1:]], dim=1)


def _split(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` rows and the others.

    Nothing is copied where there is one kind only: the gradient of a slice is as large as what it
    is cut from.
    """
    if count == 0:
        return logits.detach()[:0], logits
    if count == len(logits):
        return logits, logits.detach()[:0]
    first, others = logits.split([count, len(logits) - count])
    return first, others


def _texts(
    loaded: LoadedModel, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> Iterator[_Text]:
    """The essence prompts, then every request behind every context."""
    for index, request in enumerate(requests):
        ids, start = essence_prompt(loaded.tokenizer, request)
        yield _Text(ids, start, index, kind=len(contexts), target=[])
    for index, request in enumerate(requests):
        for kind, context in enumerate(contexts):
            ids, start, length = prompt_with_target(loaded.tokenizer, request, context)
            # The target's last token predicts nothing that is asked for.
            yield _Text(ids[:-1], start, index, kind, target=ids[-length:])


@torch.no_grad()
def _log_probabilities(batch: SuffixBatch, count: int) -> Tensor:
    """The unedited model's behind the first ``count`` rows' first tokens, [count, vocab]."""
    if not count:
        return torch.empty(0, 1, device=batch.hidden.device)
    rows = torch.arange(count, device=batch.hidden.device)
    batch = batch.keep(rows)
    return batch.logits(batch.hidden, rows, torch.zeros_like(rows)).log_softmax(dim=1)


class _Solver:
    """The optimisation for one batch of requests and one size of micro-batch."""

    def __init__(
        self,
        loaded: LoadedModel,
        upper: LoadedModel,
        requests: Sequence[EditRequest],
        layer: int,
        contexts: Sequence[str],
        settings: ValueSettings,
        tokens_per_batch: int,
    ) -> None:
        self.loaded, self.upper, self.layer, self.settings = loaded, upper, layer, settings
        self.tokens_per_batch = tokens_per_batch
        self.initial = torch.empty(
            len(requests), loaded.model.config.hidden_size, device=loaded.device
        )
        self.rows = list(self._build_rows(requests, contexts))

    def _build_rows(
        self, requests: Sequence[EditRequest], contexts: Sequence[str]
    ) -> Iterator[_Rows]:
        """Micro-batches of all that is run for the requests; notes h0 of the bare prompts."""
        texts = list(_texts(self.loaded, requests, contexts))
        stems = Stems.build(
            self.loaded,
            [
                shared_beginning([text.ids[: text.start] for text in texts if text.kind == kind])
                for kind in range(len(contexts) + 1)
            ],
            self.layer,
            self.upper,
        )
        lengths = [len(text.ids) - text.start for text in texts]
        for indices in token_batches(lengths, self.tokens_per_batch):
            # In the order of the texts, so essence prompts first.
            group = [texts[index] for index in sorted(indices)]
            batch = SuffixBatch.build(
                self.loaded,
                [text.ids for text in group],
                [text.start for text in group],
                self.layer,
                self.upper,
                stems,
                [text.kind for text in group],
            )
            owners = torch.tensor([text.request for text in group])
            bare = torch.tensor([text.kind == 0 for text in group])
            self.initial[owners[bare]] = batch.hidden[bare, 0].to(self.initial.dtype)
            targets = torch.full(batch.tokens.shape, -1, dtype=torch.long)
            for row, text in enumerate(group):
                end = len(text.ids) - text.start
                targets[row, end - len(text.target) : end] = torch.as_tensor(text.target)
            yield _Rows(
                batch,
                owners.to(self.loaded.device),
                targets.to(self.loaded.device),
                _log_probabilities(batch, sum(not text.target for text in group)),
                1 / len(contexts),
                self.settings.kl_factor,
            )

    def solve(self, norms: Tensor) -> TargetValues:
        settings, initial = self.settings, self.initial
        delta = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
        active = torch.ones(len(initial), dtype=torch.bool, device=initial.device)
        losses: list[list[float]] = [[] for _ in range(len(initial))]
        for iteration in range(settings.steps):
            last = iteration == settings.steps - 1
            optimizer.zero_grad()
            loss, misses = self._loss(delta, norms, backward=not last)
            for index, value in zip(
                active.nonzero()[:, 0].tolist(), loss[active].tolist(), strict=True
            ):
                losses[index].append(value)
            finished = active & (loss < settings.loss_threshold)
            if settings.stop_at_argmax:
                finished |= active & (misses == 0)
            active = active & ~finished
            if last or not active.any():
                break
            if finished.any():
                self._drop_finished(active)
            before = delta.detach().clone()
            optimizer.step()
            with torch.no_grad():
                scale = (settings.clamp_norm_factor * norms / delta.norm(dim=1)).clamp(max=1)
                # Adam's momentum would go on moving the finished ones.
                delta.copy_(torch.where(active[:, None], delta * scale[:, None], before))
        return TargetValues(initial + delta.detach(), delta.detach(), losses)

    def _loss(self, delta: Tensor, norms: Tensor, *, backward: bool) -> "_Loss":
        """Every request's loss and misses; the gradient is added to ``delta.grad``."""
        total = torch.zeros(len(delta), device=delta.device)
        misses = torch.zeros_like(total)
        with torch.set_grad_enabled(backward):
            decay = self.settings.weight_decay * delta.norm(dim=1) / norms**2
            own = _Loss(decay, misses.clone())
            for part in chain([own], (rows.loss(delta) for rows in self.rows)):
                total += part.loss.detach()
                misses += part.misses
                if backward:
                    part.loss.sum().backward()
        return _Loss(total, misses)

    def _drop_finished(self, active: Tensor) -> None:
        kept = []
        for rows in self.rows:
            wanted = active[rows.requests].nonzero()[:, 0]
            if len(wanted) == len(rows.requests):
                kept.append(rows)
            elif len(wanted):
                kept.append(rows.keep(wanted))
        self.rows = kept
