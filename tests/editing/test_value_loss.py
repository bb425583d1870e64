"""The value solver's loss and gradient, against PyTorch's own functions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.editing.values.loss import terms

VOCABULARY = 7


def drawn(essences: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(essences + targets, VOCABULARY, dtype=torch.float64, requires_grad=True)
    before = torch.randn(essences, VOCABULARY, dtype=torch.float64).log_softmax(dim=1)
    if not essences:
        before = before[:, :1]  # as the solver has it
    return logits, before, torch.randint(VOCABULARY, (targets,))


@pytest.mark.parametrize(("essences", "targets"), [(3, 5), (0, 4), (2, 0)])
def test_terms_and_their_gradient(essences: int, targets: int) -> None:
    logits, before, asked = drawn(essences, targets)
    found = terms(logits, before, asked)
    after = logits[:essences].log_softmax(dim=1)
    divergence = functional.kl_div(
        before.expand_as(after), after, reduction="none", log_target=True
    ).sum(dim=1)
    nll = functional.cross_entropy(logits[essences:], asked, reduction="none")
    torch.testing.assert_close(found, (divergence, nll), rtol=1e-12, atol=1e-12)
    weights = torch.rand(essences + targets, dtype=torch.float64)
    losses = (torch.cat([*pair]) @ weights for pair in (found, (divergence, nll)))
    own, plain = (torch.autograd.grad(loss, logits) for loss in losses)
    assert own[0].abs().max() > 0
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
