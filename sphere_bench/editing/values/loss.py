"""The loss of the value solver, and its gradient, from the logits of a forward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Loss(NamedTuple):
    """A term of the loss, and what the argmax is, for each of n requests.

    Attributes:
        loss: [n].
        hits: how many target tokens are the argmax in the contexts besides the bare prompt, [n].
        misses: how many are not, [n].
    """

    loss: Tensor
    hits: Tensor
    misses: Tensor


def terms(logits: Tensor, before: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """What a forward of e essence prompts and m target tokens adds to the loss.

    Args:
        logits: those of the essence prompts, then those of the target tokens, [e + m, vocab];
            gradients flow to them.
        before: log-probabilities after the essence prompts, delta being 0, [e, vocab].
        asked: the target tokens, [m].

    Returns:
        KL(after || before) of each essence prompt, [e], and the NLL of each target token, [m].
    """
    found: tuple[Tensor, Tensor] = _Terms.apply(logits, before, asked)  # type: ignore[no-untyped-call]
    return found


class _Terms(torch.autograd.Function):
    """The gradient is one tensor as large as the logits, which are an iteration's largest by far.

    PyTorch's own would be several: one for each function, and a joined one of both kinds of text.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, before: Tensor, asked: Tensor) -> tuple[Tensor, ...]:
        log = logits.log_softmax(dim=1)
        after = log[: len(before)]
        divergence = (after.exp() * (after - before)).sum(dim=1)
        nll = -log[len(before) :].gather(1, asked[:, None]).squeeze(1)
        context.save_for_backward(log, before, asked, divergence)
        return divergence, nll

    @staticmethod
    @once_differentiable
    def backward(context: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        log, before, asked, divergence = context.saved_tensors
        of_divergence, of_nll = (each[:, None] for each in upstream)
        gradient = log.exp()
        essences, targets = gradient[: len(before)], gradient[len(before) :]
        essences *= (log[: len(before)] - before - divergence[:, None]) * of_divergence
        targets *= of_nll
        targets.scatter_add_(1, asked[:, None], -of_nll)
        return gradient, None, None
