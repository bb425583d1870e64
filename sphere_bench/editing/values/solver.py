"""Target values: what the last edited layer should put out at the subject's last token.

This is MEMIT's optimisation (arXiv 2210.07229, section 4.3.1), for all requests of a batch at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.values.loss import Loss
from sphere_bench.editing.values.micro_batches import MicroBatch, micro_batches
from sphere_bench.editing.values.stopping import LossThreshold, Stopping
from sphere_bench.models.batching import Budget, backing_off
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in
from sphere_bench.models.replay.packed import takes_packed_tokens

# What is solved together on a CPU. Fewer requests take more kernels; more are no faster and take
# more memory, since the prefixes of a piece's texts are kept. Several processes share the pieces.
_REQUESTS_A_PIECE, _TEXTS_A_PIECE = 50, 350
# On a device as many as there are for a process, as far as their prefixes leave room for a forward.
_REQUESTS_ON_A_DEVICE = 256


@dataclass(frozen=True)
class ValueSettings:
    """Settings of the value solver; all but the last three belong to a model.

    Attributes:
        steps: iterations; the last one computes the loss and takes no step.
        learning_rate: Adam's.
        weight_decay: factor of ||delta|| / ||h0||^2 in the loss.
        clamp_norm_factor: ||delta|| is kept at or below this times ||h0||.
        kl_factor: factor of the KL divergence at the subject's last token of "{subject} is a".
        loss_threshold: a request is finished once its loss is below it.
        stopping: makes, from ``loss_threshold``, what decides when a request is finished.
        jointly: the requests share one loss, the mean over them, and so they finish together.
        precision: dtype of the layers above z; ``None`` is the model's own. The layers up to z,
            delta, its Adam state and the losses keep their dtype.
    """

    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    loss_threshold: float = 5e-2
    stopping: Callable[[float], Stopping] = LossThreshold
    jointly: bool = False
    precision: torch.dtype | None = None


@dataclass(frozen=True)
class TargetValues:
    """Result of the value solver for n requests.

    Attributes:
        values: the target values, h0 + delta, [n, d_model] in float32.
        deltas: [n, d_model].
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
    tokens_per_batch: int | Budget = 2048,
    norms: Tensor | None = None,
    advance: Callable[[float], None] | None = None,
) -> TargetValues:
    """Optimise one delta per request, added to ``layer``'s output at the subject's last token.

    The loss of a request has three terms: the NLL of the new target, as a mean over its tokens and
    then over the contexts; kl_factor * KL(after || before) on the essence prompt; the weight decay.
    Requests share forwards and, unless ``settings.jointly`` is set, nothing else: each has its own
    delta, Adam state, clamp and stopping point, and leaves the batch once it is finished.

    Args:
        loaded: the model as earlier batches left it.
        requests: n edits.
        layer: z, the last edited layer.
        contexts: templates with one ``{}``; the first is the bare prompt, where h0 is read.
        settings: of the solver.
        tokens_per_batch: suffix tokens in one forward and backward; halved when memory runs out.
        norms: [n], used instead of ||h0|| in the clamp and the weight decay.
        advance: is given the share of the iterations that are done.
    """
    size = len(requests)
    if not settings.jointly:
        size = _piece_size(loaded, size, len(contexts))
    pieces = [
        (requests[first : first + size], None if norms is None else norms[first : first + size])
        for first in range(0, len(requests), size)
    ]
    solved = loaded.team.map(
        loaded,
        _solve_pieces,
        pieces,
        layer,
        contexts,
        settings,
        tokens_per_batch,
        advance=advance,
    )
    device = loaded.device_of(layer)
    return TargetValues(
        torch.cat([part.values.to(device) for part in solved]),
        torch.cat([part.deltas.to(device) for part in solved]),
        [losses for part in solved for losses in part.losses],
    )


def _piece_size(loaded: LoadedModel, count: int, contexts: int) -> int:
    """How many of ``count`` requests are solved together.

    On a CPU whatever the number of processes: the last bits depend on what shares a forward.
    """
    if loaded.device.type != "cpu":
        return min(math.ceil(count / loaded.team.size), _REQUESTS_ON_A_DEVICE)
    # A request has a text in each context and the essence prompt.
    most = min(_REQUESTS_A_PIECE, max(1, _TEXTS_A_PIECE // (contexts + 1)))
    return math.ceil(count / math.ceil(count / most))


def _solve_pieces(
    loaded: LoadedModel,
    pieces: Sequence[tuple[Sequence[EditRequest], Tensor | None]],
    layer: int,
    contexts: Sequence[str],
    settings: ValueSettings,
    tokens_per_batch: int | Budget,
    advance: Callable[[float], None] | None = None,
) -> list[TargetValues]:
    """The target values of each piece: requests, and what to use instead of their ||h0||."""
    above = range(layer + 1, len(loaded.layout))
    upper = with_layers_in(loaded, above, settings.precision or loaded.dtype)
    whole = takes_packed_tokens(upper, layer)

    def solve(
        requests: Sequence[EditRequest],
        reference_norms: Tensor | None,
        advance: Callable[[float], None],
        tokens: int,
    ) -> TargetValues:
        batches, initial = micro_batches(
            loaded, upper, requests, layer, contexts, tokens, settings.kl_factor, whole
        )
        norms = initial.norm(dim=1) if reference_norms is None else reference_norms.to(initial)
        return _Solver(batches, initial, norms, settings, advance).solve()

    def part_done(index: int, share: float) -> None:
        if advance is not None:
            advance((index + share) / len(pieces))

    return [
        backing_off(partial(solve, *piece, partial(part_done, index)), tokens_per_batch)
        for index, piece in enumerate(pieces)
    ]


@dataclass
class _Solver:
    """The optimisation for n requests.

    Attributes:
        batches: the texts of those that are not finished.
        initial: h0, [n, d_model].
        norms: ||h0||, or the reference norms, [n].
        settings: of the solver.
        advance: is given the share of the iterations that are done.
    """

    batches: list[MicroBatch]
    initial: Tensor
    norms: Tensor
    settings: ValueSettings
    advance: Callable[[float], None]

    def solve(self) -> TargetValues:
        settings, initial = self.settings, self.initial
        delta = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
        active = torch.ones(len(initial), dtype=torch.bool, device=initial.device)
        running = [True] * len(initial)  # the same on the host
        losses: list[list[float]] = [[] for _ in range(len(initial))]
        stopping = settings.stopping(settings.loss_threshold)
        for iteration in range(settings.steps):
            last = iteration == settings.steps - 1
            self.advance(iteration / settings.steps)
            optimizer.zero_grad()
            found = self._loss(delta, backward=not last)
            finished = stopping.finished(found)
            # Here alone, once an iteration, the host waits for the device.
            values, ends = torch.stack([found.loss, finished.to(found.loss)]).tolist()
            for index, value in enumerate(values):
                if running[index]:
                    losses[index].append(value)
            earlier = running
            running = [ran and not end for ran, end in zip(earlier, ends, strict=True)]
            if last or not any(running):
                break
            if running != earlier:
                active = active & ~finished
                self._drop_finished(running)
            before = delta.detach().clone()
            optimizer.step()
            with torch.no_grad():
                scale = (settings.clamp_norm_factor * self.norms / delta.norm(dim=1)).clamp(max=1)
                # Adam's momentum would move the finished ones, too.
                delta.copy_(torch.where(active[:, None], delta * scale[:, None], before))
        return TargetValues(initial + delta.detach(), delta.detach(), losses)

    def _loss(self, delta: Tensor, *, backward: bool) -> Loss:
        """What an iteration finds for every request; the gradient is added to ``delta.grad``."""
        jointly = self.settings.jointly
        total = Loss(*delta.new_zeros(3, len(delta)))
        with torch.set_grad_enabled(backward):
            decay = self.settings.weight_decay * delta.norm(dim=1) / self.norms**2
            own = Loss(decay, torch.zeros_like(decay), torch.zeros_like(decay))
            for term in chain([own], (batch.loss(delta) for batch in self.batches)):
                for summed, part in zip(total, term, strict=True):
                    summed += part.detach().to(summed.device)
                if backward:
                    (term.loss.mean() if jointly else term.loss.sum()).backward()
        return total._replace(loss=total.loss.mean().expand(len(delta))) if jointly else total

    def _drop_finished(self, running: Sequence[bool]) -> None:
        # One by one and in place, since the caller holds the list: at most one is in memory twice.
        for index in reversed(range(len(self.batches))):
            kept = self.batches[index].keep(running)
            self.batches[index : index + 1] = [] if kept is None else [kept]
