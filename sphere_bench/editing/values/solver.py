"""Target values: what the last edited layer should put out at the subject's last token.

This is MEMIT's optimisation (arXiv 2210.07229, section 4.3.1), for all requests of a batch at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.values.micro_batches import Loss, MicroBatch, micro_batches
from sphere_bench.models.batching import backing_off
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in


@dataclass(frozen=True)
class ValueSettings:
    """Settings of the value solver; all but the last two belong to a model.

    Attributes:
        steps: iterations; the last one computes the loss and takes no step.
        learning_rate: Adam's.
        weight_decay: factor of ||delta|| / ||h0||^2 in the loss.
        clamp_norm_factor: ||delta|| is kept at or below this times ||h0||.
        kl_factor: factor of the KL divergence at the subject's last token of "{subject} is a".
        loss_threshold: a request is finished once its loss is below it.
        stop_at_argmax: a request is also finished once its target is the argmax in every context
            (ENCORE, arXiv 2502.01636).
        precision: dtype of the layers above z; ``None`` is the model's own. The layers up to z,
            delta, its Adam state and the losses keep their dtype.
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
    tokens_per_batch: int = 2048,
    reference_norms: Tensor | None = None,
    advance: Callable[[float], None] | None = None,
) -> TargetValues:
    """Optimise one delta per request, added to ``layer``'s output at the subject's last token.

    The loss of a request has three terms: the NLL of the new target, as a mean over its tokens and
    then over the contexts; kl_factor * KL(after || before) on the essence prompt; the weight decay.
    Requests share forwards and nothing else: each has its own delta, Adam state, clamp and stopping
    point, and leaves the batch once it is finished.

    Args:
        loaded: the model as earlier batches left it.
        requests: n edits.
        layer: z, the last edited layer.
        contexts: templates with one ``{}``; the first is the bare prompt, where h0 is read.
        settings: of the solver.
        tokens_per_batch: padded suffix tokens in one forward and backward; halved when memory
            runs out.
        reference_norms: [n], used instead of ||h0|| in the clamp and the weight decay.
        advance: is given the share of the iterations that are done.
    """
    above = range(layer + 1, len(loaded.layout))
    upper = with_layers_in(loaded, above, settings.precision or loaded.dtype)

    def solve(tokens: int) -> TargetValues:
        batches, initial = micro_batches(
            loaded, upper, requests, layer, contexts, tokens, settings.kl_factor
        )
        norms = initial.norm(dim=1) if reference_norms is None else reference_norms
        return _Solver(batches, initial, norms, settings, advance).solve()

    return backing_off(solve, tokens_per_batch)


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
    advance: Callable[[float], None] | None = None

    def solve(self) -> TargetValues:
        settings, initial = self.settings, self.initial
        delta = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
        active = torch.ones(len(initial), dtype=torch.bool, device=initial.device)
        losses: list[list[float]] = [[] for _ in range(len(initial))]
        for iteration in range(settings.steps):
            last = iteration == settings.steps - 1
            if self.advance is not None:
                self.advance(iteration / settings.steps)
            optimizer.zero_grad()
            loss, misses = self._loss(delta, backward=not last)
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
                scale = (settings.clamp_norm_factor * self.norms / delta.norm(dim=1)).clamp(max=1)
                # Adam's momentum would move the finished ones, too.
                delta.copy_(torch.where(active[:, None], delta * scale[:, None], before))
        return TargetValues(initial + delta.detach(), delta.detach(), losses)

    def _loss(self, delta: Tensor, *, backward: bool) -> Loss:
        """Loss and misses of every request; the gradient is added to ``delta.grad``."""
        total = torch.zeros(len(delta), device=delta.device)
        misses = torch.zeros_like(total)
        with torch.set_grad_enabled(backward):
            decay = self.settings.weight_decay * delta.norm(dim=1) / self.norms**2
            own = Loss(decay, misses.clone())
            for term in chain([own], (batch.loss(delta) for batch in self.batches)):
                total += term.loss.detach()
                misses += term.misses
                if backward:
                    term.loss.sum().backward()
        return Loss(total, misses)

    def _drop_finished(self, active: Tensor) -> None:
        kept = []
        for batch in self.batches:
            wanted = active[batch.requests].nonzero()[:, 0]
            if len(wanted) == len(batch.requests):
                kept.append(batch)
            elif len(wanted):
                kept.append(batch.keep(wanted))
        # In place: the list that the caller still holds would keep the dropped ones in memory.
        self.batches[:] = kept
