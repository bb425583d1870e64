"""The packed replay equals the padded one, and says which models it cannot take."""

import pytest
import torch
from torch import Tensor
from transformers import GemmaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sphere_bench.models import batching
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in
from sphere_bench.models.replay.blocks import Places
from sphere_bench.models.replay.packed import PackedBatch, takes_packed_tokens
from sphere_bench.models.replay.prefixes import Stems
from sphere_bench.models.replay.suffix import SuffixBatch
from tests.tiny_models import CONFIGS, ROWS, STARTS, tiny_model

LAYER = 1
STEMS, OWNERS = [[5, 6, 7], []], [0, 1, 1, 1, 0]
PADDED = {"gptj", "gpt_neo", "bloom", "mpt", "falcon", "falcon_alibi", "falcon_40b"}


@pytest.fixture(params=[0, 1000])
def price(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of suffixes of one length, or all suffixes in one padded block."""
    monkeypatch.setattr(batching, "_TOKENS_A_FORWARD_IS_WORTH", request.param)
    return int(request.param)


def packed(loaded: LoadedModel, upper: LoadedModel | None = None, **how: object) -> PackedBatch:
    upper = upper or loaded
    whole = takes_packed_tokens(upper, LAYER)
    return PackedBatch.build(loaded, ROWS, STARTS, LAYER, upper, whole=whole, **how)  # type: ignore[arg-type]


def packed_logits(batch: PackedBatch, delta: Tensor) -> dict[int, Tensor]:
    """Logits after every suffix token, by the row's index; delta [rows, d_model]."""
    firsts = torch.tensor(batch.firsts)
    hidden = batch.hidden.index_add(0, firsts, delta[batch.order].to(batch.hidden.dtype))
    # In an order that is not that of the tokens.
    places = range(len(hidden))[::-1]
    logits = batch.logits(hidden, batch.places(places)).flip(0)
    lengths = [len(ROWS[index]) - STARTS[index] for index in batch.order]
    return dict(zip(batch.order, logits.split(lengths), strict=True))


def padded_logits(loaded: LoadedModel, index: int, delta: Tensor) -> Tensor:
    batch = SuffixBatch.build(loaded, [ROWS[index]], [STARTS[index]], LAYER)
    hidden = torch.cat([batch.hidden[:, :1] + delta, batch.hidden[:, 1:]], dim=1)
    columns = torch.arange(hidden.shape[1])
    return batch.logits(hidden, torch.zeros_like(columns), columns)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_which_models_take_packed_tokens(architecture: str) -> None:
    assert takes_packed_tokens(tiny_model(architecture), LAYER) == (architecture not in PADDED)


@pytest.mark.parametrize("stemmed", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_packed_logits_and_gradients_are_those_of_each_text_alone(
    architecture: str, stemmed: bool, price: int
) -> None:
    loaded = tiny_model(architecture)
    stems = Stems.build(loaded, STEMS, LAYER, loaded) if stemmed else None
    batch = packed(loaded, stems=stems, owners=OWNERS if stemmed else ())
    assert (len(batch.blocks) == 1) == (price > 0)
    delta = torch.randn(len(ROWS), loaded.model.config.hidden_size, requires_grad=True)
    found = packed_logits(batch, delta)
    (gradient,) = torch.autograd.grad(
        torch.stack([each.square().sum() for each in found.values()]).sum(), delta
    )
    for index in range(len(ROWS)):
        single = delta[index].detach().clone().requires_grad_()
        expected = padded_logits(loaded, index, single)
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-4)
        (own,) = torch.autograd.grad(expected.square().sum(), single)
        scale = own.abs().max()
        torch.testing.assert_close(gradient[index] / scale, own / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "gptj"])
def test_fewer_texts_give_the_same_logits(architecture: str, price: int) -> None:
    loaded = tiny_model(architecture)
    batch = packed(loaded)
    delta = torch.randn(len(ROWS), loaded.model.config.hidden_size)
    with torch.no_grad():
        whole = packed_logits(batch, delta)
    for kept in ([0, 2], [1, 3, 4], [2], [0, 1, 2, 3, 4]):
        part = batch.keep(kept)
        assert part.order == [batch.order[text] for text in kept]
        with torch.no_grad():
            fewer = packed_logits(part, delta)
        for index, logits in fewer.items():
            torch.testing.assert_close(logits, whole[index], rtol=1e-4, atol=1e-4)


def test_a_long_prefix_does_not_pad_all_others() -> None:
    loaded = tiny_model("llama")
    rows = [[1, 2, 3]] * 400 + [[1, *[2] * 20, 3]]
    starts = [len(row) - 2 for row in rows]
    batch = PackedBatch.build(loaded, rows, starts, LAYER, loaded, whole=True)
    assert [block.prefix_length for block in batch.blocks] == [1, 20]
    assert sorted(batch.order) == list(range(len(rows)))


def test_upper_layers_in_bfloat16(price: int) -> None:
    loaded = tiny_model("llama")
    upper = with_layers_in(loaded, range(LAYER + 1, 4), torch.bfloat16)
    delta = torch.randn(len(ROWS), 32)
    with torch.no_grad():
        exact = packed_logits(packed(loaded), delta)
        rounded = packed_logits(packed(loaded, upper), delta)
    for index, logits in rounded.items():
        assert logits.dtype == torch.float32
        assert (logits - exact[index]).norm() < 0.05 * exact[index].norm()


def test_no_linear_layer_sees_padding(price: int) -> None:
    loaded = tiny_model("llama")
    batch = packed(loaded)
    seen = []
    handle = loaded.layout.projection(LAYER + 1).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].shape)
    )
    packed_logits(batch, torch.zeros(len(ROWS), 32))
    handle.remove()
    tokens = sum(len(row) - start for row, start in zip(ROWS, STARTS, strict=True))
    assert [shape[:2] for shape in seen] == [(1, tokens)]


def test_transformers_has_its_own_attention_back_after_an_error() -> None:
    loaded = tiny_model("llama")
    before = dict(ALL_ATTENTION_FUNCTIONS)
    batch = packed(loaded)
    with pytest.raises(IndexError):
        batch.logits(batch.hidden, Places([(0, *torch.tensor([[0], [1000]]))]))
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_an_attention_with_an_unknown_option_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("llama")
    assert takes_packed_tokens(loaded, LAYER)
    attention = type(loaded.layout.decoder_layers[0].self_attn)
    forward = attention.forward
    monkeypatch.setattr(
        attention,
        "forward",
        lambda self, *given, **named: forward(self, *given, **named, s_aux=torch.zeros(4)),
    )
    assert not takes_packed_tokens(loaded, LAYER)


def test_a_sliding_window_that_attention_is_not_told_of_is_padded() -> None:
    # Gemma's first attention knows no window; a configuration may have one all the same.
    loaded = tiny_model("gemma")
    assert isinstance(loaded.model.config, GemmaConfig) and takes_packed_tokens(loaded, LAYER)
    loaded.model.config.sliding_window = 6
    assert not takes_packed_tokens(loaded, LAYER)
