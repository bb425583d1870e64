import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.hooks import capture
from sphere_bench.models.layout import Layout
from tests.tiny_models import CONFIGS, LAYERS, tiny_model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_projection_maps_its_input_by_the_out_in_weight(architecture: str) -> None:
    loaded = tiny_model(architecture)
    assert len(loaded.layout) == LAYERS
    projection = loaded.layout.projection(2)
    with (
        torch.no_grad(),
        capture({0: projection}, "input") as inputs,
        capture({0: projection}, "output") as outputs,
    ):
        loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
    bias = getattr(projection, "bias", None)
    expected = inputs[0] @ loaded.layout.weight(2).T + (0 if bias is None else bias)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_write_puts_the_weight_where_weight_reads_it(architecture: str) -> None:
    layout = tiny_model(architecture).layout
    new = torch.randn_like(layout.weight(1))
    untouched = layout.weight(0).clone()
    layout.write(1, new)
    assert torch.equal(layout.weight(1), new)
    assert torch.equal(layout.weight(0), untouched)


def test_unknown_projection_is_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=2, n_head=2))
    for block in model.transformer.h:
        block.mlp = nn.Identity()
    with pytest.raises(SphereBenchError, match=r"set model\.modules\.projection"):
        Layout(model)
    with pytest.raises(SphereBenchError, match=r"'transformer\.layers' is not a list"):
        Layout(model, layers_module="transformer.layers")


@pytest.mark.parametrize("layers", [[4], [-1], [0, 9]])
def test_layers_that_the_model_does_not_have_are_refused(layers: list[int]) -> None:
    with pytest.raises(SphereBenchError, match=r"editor\.layers=.*0 to 3"):
        tiny_model("gpt2").layout.check_layers(layers)
