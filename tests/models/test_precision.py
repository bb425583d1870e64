import torch

from sphere_bench.models.precision import with_layers_in
from tests.tiny_models import tiny_model


def test_only_the_layers_asked_for_are_copied_in_another_precision() -> None:
    loaded = tiny_model("gpt2")
    layers = range(len(loaded.layout))
    copied = with_layers_in(loaded, [1], torch.bfloat16)
    dtypes = {layer: copied.layout.weight(layer).dtype for layer in layers}
    assert dtypes == {layer: torch.bfloat16 if layer == 1 else torch.float32 for layer in layers}
    for layer in layers:
        shared = copied.layout.weight(layer).data_ptr() == loaded.layout.weight(layer).data_ptr()
        assert shared == (layer != 1)
    assert copied.layout.head.weight.dtype == torch.bfloat16
    assert copied.tokenizer is loaded.tokenizer
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_a_model_that_has_the_precision_is_not_copied() -> None:
    loaded = tiny_model("llama")
    assert with_layers_in(loaded, [0, 1], torch.float32) is loaded
