"""Masked prefixes and packed tokens, on every implementation of attention that a GPU has."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sphere_bench.models.loading import LoadedModel, load_model
from sphere_bench.models.replay.packed import PackedBatch
from sphere_bench.models.replay.suffix import SuffixBatch
from tests.gpu.conftest import Hold
from tests.tiny_models import ROWS, STARTS, TOKENIZER, VOCABULARY

pytestmark = pytest.mark.gpu

# Wide enough for the kernels: they want heads of 8 dimensions and more.
SHAPE = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LAYER = 1
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
NOT_HERE = ("No available kernel", "No viable backend")
TOLERANCES = {"float32": 2e-5, "bfloat16": 5e-2}


def model(dtype: str, device: torch.device) -> LoadedModel:
    return load_model(str(TOKENIZER), dtype=dtype, device=str(device), shape=SHAPE)


def logits(loaded: LoadedModel, *, whole: bool) -> Tensor:
    """After every suffix token, in the order of the rows."""
    batch = PackedBatch.build(loaded, ROWS, STARTS, LAYER, loaded, whole=whole)
    found = batch.logits(batch.hidden, batch.places(range(len(batch.hidden))))
    lengths = [len(ROWS[index]) - STARTS[index] for index in batch.order]
    of_row = dict(zip(batch.order, found.split(lengths), strict=True))
    return torch.cat([of_row[row] for row in range(len(ROWS))])


def alone(loaded: LoadedModel) -> Tensor:
    """The same of the plain model, one row after another."""
    with torch.no_grad():
        found = [
            loaded.model(input_ids=torch.tensor([row], device=loaded.device)).logits[0, start:]
            for row, start in zip(ROWS, STARTS, strict=True)
        ]
    return torch.cat(found).float()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_prefixes_are_finite(
    backend: str, dtype: str, device: torch.device, hold: Hold
) -> None:
    loaded = model(dtype, device)
    expected = alone(loaded)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with sdpa_kernel(BACKENDS[backend]):
            batch = SuffixBatch.build(loaded, ROWS, STARTS, LAYER)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in NOT_HERE):
            raise
        pytest.skip(f"no {backend} attention for {dtype} with a mask here")
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)
    for row, length in enumerate(batch.suffixes):
        assert torch.isfinite(batch.hidden[row, :length]).all()
    for keys, values in batch.prefix:
        assert torch.isfinite(keys).all() and torch.isfinite(values).all()
    rows = [row for row, length in enumerate(batch.suffixes) for _ in range(length)]
    columns = [column for length in batch.suffixes for column in range(length)]
    places = (torch.tensor(each, device=loaded.device) for each in (rows, columns))
    found = batch.logits(batch.hidden, *places)
    error = ((found - expected).norm() / expected.norm()).item()
    hold(f"logits behind masked prefixes, {backend}, {dtype}", error, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_packed_equals_padded(dtype: str, device: torch.device, hold: Hold) -> None:
    loaded = model(dtype, device)
    packed, padded = (logits(loaded, whole=whole) for whole in (True, False))
    error = ((packed - padded).norm() / padded.norm()).item()
    hold(f"packed and padded logits, {dtype}", error, TOLERANCES[dtype])
    error = ((packed - alone(loaded)).norm() / padded.norm()).item()
    hold(f"packed and plain logits, {dtype}", error, TOLERANCES[dtype])
