import pytest
import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import load_model

SHAPE = {
    "model_type": "llama",
    "vocab_size": 3000,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_a_shape_gives_the_same_random_model_every_time_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = load_model("bundled", dtype="bfloat16", device="cpu", shape=SHAPE)
    assert torch.equal(torch.rand(3), expected)
    assert loaded.layout.weight(2).shape == (16, 24)
    assert loaded.dtype == loaded.layout.head.weight.dtype == torch.bfloat16
    assert loaded.tokenizer("The head office")["input_ids"]
    again = load_model("bundled", dtype="bfloat16", device="cpu", shape=SHAPE)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "Unrecognized model identifier: lama"),
        ({"model_type": "vit", "num_key_value_heads": 1}, "vit has no vocab_size"),
        ({"hiden_size": 16}, "llama has no hiden_size"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
    ],
)
def test_a_wrong_shape_is_told_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(SphereBenchError, match=rf"^model\.shape: cannot make it: .*{message}"):
        load_model("bundled", device="cpu", shape={**SHAPE, **change})
