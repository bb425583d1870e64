"""Nothing that comes with a model is executed unless that is asked for by name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from sphere_bench.assets import tiny_gpt2_path
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import load_model


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_gpt2_path(), tmp_path / "model"))


def test_a_pickle_among_the_weights_is_not_executed(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save(_Touches(tmp_path / "executed"), model / "pytorch_model.bin")
    with pytest.raises(SphereBenchError, match=r"pickled weights hold more than tensors"):
        load_model(str(model), device="cpu")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_is_executed_only_if_it_is_trusted(
    trusted: bool, model: Path, tmp_path: Path
) -> None:
    executed = tmp_path / "executed"
    (model / "own.py").write_text(f"import os\nos.mkdir({str(executed)!r})\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises((SphereBenchError, AttributeError)):
        load_model(str(model), device="cpu", trust_remote_code=trusted)
    assert executed.exists() == trusted
