from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
PROJECTIONS = {
    "tiny-llama": "model.layers.{}.mlp.down_proj.weight",
    "tiny-gpt2": "transformer.h.{}.mlp.c_proj.weight",
}


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_weight() -> Callable[[str, int], torch.Tensor]:
    """(model, layer) to the edited projection as [out, in]; GPT-2's Conv1D stores [in, out]."""

    def read(name: str, layer: int) -> torch.Tensor:
        weight = load_file(GOLDEN / name / "model.safetensors")[PROJECTIONS[name].format(layer)]
        return weight.T if name == "tiny-gpt2" else weight

    return read
