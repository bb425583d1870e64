import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.hooks import capture
from sphere_bench.models.layout import Layout
from sphere_bench.models.loading import wrap_model
from tests.tiny_models import CONFIGS, LAYERS, TOKENIZER, tiny_model


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


SMALL = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 4}
GATED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**GATED, num_local_experts=2),
        Qwen2MoeConfig(**GATED, num_experts=4, moe_intermediate_size=16),
        DeepseekV3Config(
            **GATED, n_routed_experts=8, moe_intermediate_size=16, first_k_dense_replace=1
        ),
        JambaConfig(**GATED, num_experts=4),
    ],
    ids=lambda config: config.model_type,
)
def test_a_mixture_of_experts_is_refused_in_one_line(config: PreTrainedConfig) -> None:
    refused(config, "is a mixture of experts, which cannot be edited")


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(**SMALL),
        Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=1),
        RwkvConfig(**SMALL, attention_hidden_size=32),
        RecurrentGemmaConfig(**GATED),
        JambaConfig(**GATED, num_experts=1),
        Lfm2Config(**GATED, layer_types=["conv", "conv", "full_attention", "conv"]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_keeps_a_state_is_refused_in_one_line(config: PreTrainedConfig) -> None:
    refused(config, "keep a state instead of keys and values")


def refused(config: PreTrainedConfig, problem: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(SphereBenchError, match=f"^{type(model).__name__} .*{problem}") as caught:
        wrap_model(model, AutoTokenizer.from_pretrained(TOKENIZER))
    assert "\n" not in str(caught.value)


def test_every_layer_must_have_the_projection() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**GATED))
    model.model.layers[2].mlp.down_proj = nn.Identity()
    with pytest.raises(SphereBenchError, match=r"no linear module mlp\.down_proj.* layer 2"):
        Layout(model)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_captured_has_a_token_axis_and_stays_as_it_was(architecture: str) -> None:
    loaded = tiny_model(architecture)
    modules = {
        "projection": loaded.layout.projection(1),
        "layer": loaded.layout.decoder_layers[1],
    }
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        with capture({0: modules["projection"]}, "input") as inputs:
            loaded.model(input_ids=tokens)
        assert inputs[0].shape[:2] == (2, 3)
        for module in modules.values():
            with capture({0: module}, "output") as outputs:
                loaded.model(input_ids=tokens)
            with capture({0: module}, "output", stop=True) as at_once:
                loaded.model(input_ids=tokens)
            assert torch.equal(outputs[0], at_once[0])
            assert outputs[0].shape == (2, 3, 32)
