"""A target value as published (arXiv 2210.07229, section 4.3.1): one request at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import essence_prompt, prompt_with_target
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.models.batching import pad_right
from sphere_bench.models.hooks import capture, hidden_states
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode

# Llama and most others; GPT-2, BLOOM and kin; Phi; GPT-NeoX and OPT; MPT.
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")


class TargetValue(NamedTuple):
    """z [d_model], and the loss at every iteration."""

    value: Tensor
    losses: list[float]


def target_value(
    loaded: LoadedModel,
    request: EditRequest,
    layer: int,
    contexts: Sequence[str],
    settings: ValueSettings,
) -> TargetValue:
    """Optimise delta, added to ``layer``'s output at the subject's last token.

    Every iteration runs all layers over whole prompts, those of the contexts and the essence prompt
    in one padded batch. As published, the model's own logits serve the divergence, and the NLL is
    read off the last layer's hidden states, through the final norm and the head once more.
    """
    device, layers = loaded.device, loaded.layout.decoder_layers
    texts = [prompt_with_target(loaded.tokenizer, request, context) for context in contexts]
    rows = [text.ids[:-1] for text in texts]
    places = [text.subject_last for text in texts]
    rows.append(encode(loaded.tokenizer, f"{request.subject} is a").ids)
    places.append(essence_prompt(loaded.tokenizer, request).subject_last)
    tokens = pad_right(rows).to(device)
    targets = torch.full((len(texts), tokens.shape[1]), -1)
    for row, (ids, _, length) in enumerate(texts):
        targets[row, len(ids) - 1 - length : len(ids) - 1] = torch.tensor(ids[-length:])
    targets = targets.to(device)

    delta = torch.zeros(loaded.model.config.hidden_size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    initial: Tensor | None = None
    before: Tensor | None = None

    def add_delta(
        _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> object:
        nonlocal initial
        if initial is None:
            initial = hidden_states(output)[0, places[0]].float()
        hidden = hidden_states(output).clone()
        for row, place in enumerate(places):
            hidden[row, place] += delta.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    losses = []
    handle = layers[layer].register_forward_hook(add_delta)
    try:
        for iteration in range(settings.steps):
            optimizer.zero_grad()
            with capture({"last": layers[-1]}, "output") as captured:
                logits = loaded.model(input_ids=tokens, use_cache=False).logits
            assert initial is not None
            after = logits[-1, places[-1]].float().log_softmax(dim=0)
            before = after.detach() if before is None else before
            divergence = (after.exp() * (after - before)).sum()
            nll = _mean_nll(loaded, captured["last"][: len(texts)], targets)
            decay = delta.norm() / initial.norm() ** 2
            loss = nll + settings.kl_factor * divergence + settings.weight_decay * decay
            losses.append(loss.item())
            if losses[-1] < settings.loss_threshold or iteration == settings.steps - 1:
                break
            loss.backward()
            optimizer.step()
            longest = settings.clamp_norm_factor * initial.norm()
            if delta.norm() > longest:
                with torch.no_grad():
                    delta.mul_(longest / delta.norm())
    finally:
        handle.remove()
    return TargetValue(initial + delta.detach(), losses)


def _mean_nll(loaded: LoadedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the mean NLL of the row's ``targets`` ([b, s], -1 where none is asked)."""
    base = loaded.model.base_model
    base = getattr(base, "decoder", base)
    norm = next(getattr(base, name) for name in FINAL_NORMS if hasattr(base, name))
    logits = loaded.layout.head(norm(hidden)).float()
    nll = functional.nll_loss(
        logits.log_softmax(dim=2).transpose(1, 2), targets, ignore_index=-1, reduction="none"
    )
    return (nll.sum(dim=1) / (targets >= 0).sum(dim=1)).mean()
