"""The suffix-only forward equals the full one: logits and the gradient of an added delta."""

import pytest
import torch
from torch import Tensor

from sphere_bench.models.hooks import hidden_states
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in
from sphere_bench.models.replay.prefixes import Stems
from sphere_bench.models.replay.suffix import SuffixBatch
from tests.tiny_models import CONFIGS, tiny_model

LAYER = 1
ROWS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33], [44]]
STARTS = [7, 1, 0, 0]


def above_in(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
    return with_layers_in(loaded, range(LAYER + 1, len(loaded.layout)), dtype)


def full_logits(loaded: LoadedModel, row: list[int], start: int, delta: Tensor) -> Tensor:
    """Logits of one unpadded row, delta added to LAYER's output at ``start``: [tokens, vocab]."""

    def add(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        hidden = hidden_states(output).clone()
        hidden[0, start] = hidden[0, start] + delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = loaded.layout.decoder_layers[LAYER].register_forward_hook(add)
    try:
        return loaded.model(input_ids=torch.tensor([row])).logits[0]
    finally:
        handle.remove()


def suffix_logits(batch: SuffixBatch, delta: Tensor) -> list[Tensor]:
    """Logits of every real suffix token, row by row."""
    hidden = torch.cat([batch.hidden[:, :1] + delta[:, None], batch.hidden[:, 1:]], dim=1)
    rows, columns = batch.mask[:, batch.prefix_length :].nonzero(as_tuple=True)
    logits = batch.logits(hidden, rows, columns)
    return [logits[rows == row] for row in range(len(hidden))]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_suffix_forward_equals_full_forward(architecture: str) -> None:
    loaded = tiny_model(architecture)
    batch = SuffixBatch.build(loaded, ROWS, STARTS, LAYER)
    delta = torch.randn(len(ROWS), loaded.model.config.hidden_size, requires_grad=True)
    replayed = suffix_logits(batch, delta)
    sum(logits.square().sum() for logits in replayed).backward()
    assert delta.grad is not None
    gradient = delta.grad.clone()

    for index, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        single = delta[index].detach().clone().requires_grad_()
        full = full_logits(loaded, row, start, single)[start:]
        full.square().sum().backward()
        assert single.grad is not None
        torch.testing.assert_close(replayed[index], full, rtol=1e-4, atol=1e-4)
        scale = single.grad.abs().max()
        torch.testing.assert_close(
            gradient[index] / scale, single.grad / scale, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_batch_that_lost_rows_gives_the_same_logits(architecture: str) -> None:
    loaded = tiny_model(architecture)
    batch = SuffixBatch.build(loaded, ROWS, STARTS, LAYER)
    delta = torch.randn(len(ROWS), loaded.model.config.hidden_size)
    with torch.no_grad():
        whole = suffix_logits(batch, delta)
        for kept in ([0, 2], [1, 3], [2, 3], [3]):
            part = suffix_logits(batch.keep(kept), delta[kept])
            for row, logits in zip(kept, part, strict=True):
                torch.testing.assert_close(logits, whole[row], rtol=1e-4, atol=1e-4)


STEMS = [[5, 6, 7], [], [30]]
STEMMED_ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12, 13, 14], [40, 41, 42], [30, 31, 32]]
STEMMED_STARTS = [3, 5, 1, 2]
OWNERS = [0, 0, 1, 2]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_shared_beginnings_give_the_same_logits(architecture: str, precision: torch.dtype) -> None:
    loaded = tiny_model(architecture)
    upper = above_in(loaded, precision)
    stems = Stems.build(loaded, STEMS, LAYER, upper)
    inputs = (loaded, STEMMED_ROWS, STEMMED_STARTS, LAYER, upper)
    plain, shared = SuffixBatch.build(*inputs), SuffixBatch.build(*inputs, stems, OWNERS)
    delta = torch.randn(len(STEMMED_ROWS), loaded.model.config.hidden_size)
    tolerance = 1e-4 if precision == torch.float32 else 5e-2
    own = [(plain, shared, delta)]
    own += [(plain.keep(kept), shared.keep(kept), delta[kept]) for kept in ([0, 2], [2], [3])]
    for without, with_stems, deltas in own:
        with torch.no_grad():
            pairs = zip(
                suffix_logits(with_stems, deltas), suffix_logits(without, deltas), strict=True
            )
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert torch.equal(with_stems.mask, without.mask)


def test_shared_beginnings_are_not_run_again() -> None:
    loaded = tiny_model("llama")
    stems = Stems.build(loaded, STEMS, LAYER, loaded)
    seen = []
    handle = loaded.layout.decoder_layers[0].register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].shape[1])
    )
    SuffixBatch.build(loaded, STEMMED_ROWS, STEMMED_STARTS, LAYER)
    SuffixBatch.build(loaded, STEMMED_ROWS, STEMMED_STARTS, LAYER, stems=stems, owners=OWNERS)
    handle.remove()
    # Up to z and above it; prefixes of 5 tokens at most, of which 2 are a row's own; suffixes of 3.
    assert seen == [5 + 3, 5, 2 + 3, 2]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("stemmed", [False, True])
@pytest.mark.parametrize("last_layer", [False, True])
def test_prefixes_of_unequal_length_are_run_apart_and_joined(
    architecture: str, stemmed: bool, last_layer: bool
) -> None:
    loaded = tiny_model(architecture)
    layer = len(loaded.layout) - 1 if last_layer else LAYER
    # By turns none, four and twenty tokens before the subject's last; suffixes of one to three.
    starts = [(0, 4, 20)[index % 3] for index in range(36)]
    rows = [
        [5, 6, 7][: min(3, start)]
        + [10 + (index * 7 + place) % 80 for place in range(3, start)]
        + [20 + index] * (1 + index // 3 % 3)
        for index, start in enumerate(starts)
    ]
    stems, owners = None, []
    if stemmed:
        stems = Stems.build(loaded, [[5, 6, 7], []], layer, loaded)
        owners = [0 if start >= 3 else 1 for start in starts]
    run = 0

    def count(_module: object, inputs: tuple[Tensor, ...]) -> None:
        nonlocal run
        run += inputs[0].shape[:-1].numel()

    handle = loaded.layout.decoder_layers[0].register_forward_pre_hook(count)
    batch = SuffixBatch.build(loaded, rows, starts, layer, None, stems, owners)
    handle.remove()
    # All in one forward would run 23 tokens a row up to z, and 20 above it.
    assert run < 0.5 * len(rows) * (23 + 20)
    delta = torch.randn(len(rows), loaded.model.config.hidden_size)
    kept = [index for index in range(len(rows)) if index % 5]
    with torch.no_grad():
        joined = suffix_logits(batch, delta)
        fewer = suffix_logits(batch.keep(kept), delta[kept])
        for index, logits in [*enumerate(joined), *zip(kept, fewer, strict=True)]:
            alone = SuffixBatch.build(loaded, [rows[index]], [starts[index]], layer)
            (expected,) = suffix_logits(alone, delta[[index]])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_replaying_leaves_the_model_as_it_was() -> None:
    loaded = tiny_model("llama")
    tokens = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = loaded.model(input_ids=tokens).logits
        batch = SuffixBatch.build(loaded, ROWS, STARTS, LAYER)
        suffix_logits(batch, torch.randn(len(ROWS), 32))
        after = loaded.model(input_ids=tokens).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_upper_layers_in_bfloat16_say_nearly_the_same(architecture: str) -> None:
    loaded = tiny_model(architecture)
    upper = above_in(loaded, torch.bfloat16)
    plain = SuffixBatch.build(loaded, ROWS, STARTS, LAYER)
    rounded = SuffixBatch.build(loaded, ROWS, STARTS, LAYER, upper)
    assert torch.equal(rounded.hidden, plain.hidden)
    delta = torch.randn(len(ROWS), loaded.model.config.hidden_size)
    with torch.no_grad():
        expected, found = suffix_logits(plain, delta), suffix_logits(rounded, delta)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
