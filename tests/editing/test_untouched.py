import pytest
import torch

from sphere_bench.editing.untouched import UntouchedParameters
from sphere_bench.errors import SphereBenchError
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_that_is_not_edited_must_not_change(
    architecture: str, dtype: torch.dtype
) -> None:
    loaded = tiny_model(architecture)
    loaded.model.to(dtype)
    untouched = UntouchedParameters(loaded, [1, 2])
    for layer in (1, 2):
        loaded.layout.weight(layer).mul_(2)
    untouched.check()
    other = loaded.layout.weight(3)
    value = other[0, 0].clone()
    other[0, 0] = value * 1.01
    with pytest.raises(SphereBenchError, match=r"changed parameters .*3\.mlp\..*editor\.layers"):
        untouched.check()
    other[0, 0] = value
    untouched.check()
    norms = [name for name, _ in loaded.model.named_parameters() if "norm" in name or "ln_" in name]
    loaded.model.get_parameter(norms[0]).data.add_(1)
    with pytest.raises(SphereBenchError, match=norms[0]):
        untouched.check()
