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


@dataclass(frozen=True)
class _Rows:
    """One micro-batch of texts and the request that each belongs to ([b])."""

    batch: SuffixBatch
    requests: Tensor

    def edited(self, delta: Tensor) -> Tensor:
        """Layer z's output with each request's delta added at the subject's last token."""
        hidden = self.batch.hidden
        first = hidden[:, :1] + delta[self.requests, None]
        return torch.cat([first.to(hidden.dtype), hidden[:, 1:]], dim=1)

    def per_request(self, losses: Tensor, delta: Tensor) -> Tensor:
        """Losses of the rows [b] summed by request, [n]."""
        return losses.new_zeros(len(delta)).index_add(0, self.requests, losses)


@dataclass(frozen=True)
class _TargetRows(_Rows):
    """Prompts with their new target: ``targets`` [b, s] holds, at each suffix position, the token
    to predict there or -1; ``weight`` is a row's share in its request's loss."""

    targets: Tensor
    weight: float

    def loss(self, delta: Tensor) -> _Loss:
        rows, columns = (self.targets >= 0).nonzero(as_tuple=True)
        logits = self.batch.logits(self.edited(delta), rows, columns)
        asked = self.targets[rows, columns]
        nll = functional.cross_entropy(logits, asked, reduction="none")
        totals = nll.new_zeros(len(self.targets)).index_add(0, rows, nll)
        lengths = (self.targets >= 0).sum(dim=1)
        wrong = (logits.detach().argmax(dim=1) != asked).to(nll.dtype)
        misses = wrong.new_zeros(len(self.targets)).index_add(0, rows, wrong)
        return _Loss(
            self.per_request(self.weight * totals / lengths, delta),
            self.per_request(misses, delta),
        )

    def keep(self, rows: Tensor) -> "_TargetRows":
        batch = self.batch.keep(rows)
        targets = self.targets[rows, : batch.tokens.shape[1]]
        return replace(self, batch=batch, requests=self.requests[rows], targets=targets)


@dataclass(frozen=True)
class _EssenceRows(_Rows):
    """Essence prompts: KL(after || before) at the subject's last token, their only suffix token;
    ``before`` holds the unedited log-probabilities, [b, vocab]."""

    before: Tensor
    factor: float

    def loss(self, delta: Tensor) -> _Loss:
        after = _first_log_probabilities(self.batch, self.edited(delta))
        divergence = (after.exp() * (after - self.before)).sum(dim=1)
        loss = self.per_request(self.factor * divergence, delta)
        return _Loss(loss, torch.zeros_like(loss))

    def keep(self, rows: Tensor) -> "_EssenceRows":
        batch = self.batch.keep(rows)
        return replace(self, batch=batch, requests=self.requests[rows], before=self.before[rows])


def _first_log_probabilities(batch: SuffixBatch, hidden: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return batch.logits(hidden, rows, torch.zeros_like(rows)).log_softmax(dim=1)


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
        self.rows: list[_TargetRows | _EssenceRows] = [
            *self._target_rows(requests, contexts),
            *self._essence_rows(requests),
        ]

    def _target_rows(
        self, requests: Sequence[EditRequest], contexts: Sequence[str]
    ) -> Iterator[_TargetRows]:
        """Micro-batches of every request behind every context; notes h0 of the bare prompts."""
        count = len(contexts)
        texts = [
            prompt_with_target(self.loaded.tokenizer, request, context)
            for request in requests
            for context in contexts
        ]
        # The target's last token predicts nothing that is asked for.
        suffixes = [text.ids[text.subject_last : -1] for text in texts]
        stems = Stems.build(
            self.loaded,
            [shared_beginning(texts[place::count]) for place in range(count)],
            self.layer,
            self.upper,
        )
        for group in token_batches([len(suffix) for suffix in suffixes], self.tokens_per_batch):
            batch = SuffixBatch.build(
                self.loaded,
                [texts[index].ids[:-1] for index in group],
                [texts[index].subject_last for index in group],
                self.layer,
                self.upper,
                stems,
                [index % count for index in group],
            )
            targets = torch.full(batch.tokens.shape, -1, dtype=torch.long)
            for row, index in enumerate(group):
                length = texts[index].target_length
                end = len(suffixes[index])
                targets[row, end - length : end] = torch.as_tensor(texts[index].ids[-length:])
            owners = torch.tensor([index // count for index in group])
            bare = torch.tensor([index % count == 0 for index in group])
            self.initial[owners[bare]] = batch.hidden[bare, 0].to(self.initial.dtype)
            device = self.loaded.device
            yield _TargetRows(batch, owners.to(device), targets.to(device), 1 / count)

    def _essence_rows(self, requests: Sequence[EditRequest]) -> Iterator[_EssenceRows]:
        texts = [essence_prompt(self.loaded.tokenizer, request) for request in requests]
        for group in token_batches([1] * len(texts), self.tokens_per_batch):
            batch = SuffixBatch.build(
                self.loaded,
                [texts[index].ids for index in group],
                [texts[index].subject_last for index in group],
                self.layer,
                self.upper,
            )
            with torch.no_grad():
                before = _first_log_probabilities(batch, batch.hidden)
            owners = torch.tensor(group, device=self.loaded.device)
            yield _EssenceRows(batch, owners, before, self.settings.kl_factor)

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
