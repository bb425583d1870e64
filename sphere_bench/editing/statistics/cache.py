"""Cache on disk for second moments of keys: computed once for a model and a corpus."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sphere_bench.data.corpus import corpus_fingerprint
from sphere_bench.editing.statistics.second_moments import (
    GENERATED,
    MAX_LENGTH,
    TOKENS_PER_BATCH,
    double_device,
    ordinary_texts,
    second_moments,
    token_count,
)
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file
from sphere_bench.models.fingerprint import model_fingerprint, tensors_fingerprint
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)


def load_or_compute(
    loaded: LoadedModel,
    layers: Sequence[int],
    corpus: str,
    tokens: int | None = None,
    cache_dir: str | Path | None = None,
    *,
    max_length: int = MAX_LENGTH,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    precision: torch.dtype | None = None,
) -> dict[int, Tensor]:
    """C of ``layers``, from the cache or computed and put there.

    What the result depends on is the key in the cache: the model's configuration, tokenizer and
    weights, the layers and their projections, the precision of the forwards, the corpus, the number
    of tokens and the window. The name and place of the model's folder do not matter.

    Args:
        corpus: see :func:`sphere_bench.data.corpus.corpus_texts`, or ``generated`` for text that
            the model writes itself.
        cache_dir: ``None`` is :func:`default_cache_dir`.
        loaded, layers, tokens, max_length, tokens_per_batch, precision: see
            :func:`second_moments`.

    Returns:
        Layer to C [d_in, d_in], float64, on the model's device.

    Raises:
        SphereBenchError: the cached file is damaged, the cache cannot be written, or the corpus
            cannot be read.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    content = {
        "model": model_fingerprint(loaded),
        "dtype": str(precision or loaded.dtype),
        "layers": {layer: _module_name(loaded, layer) for layer in layers},
        "corpus": GENERATED if corpus == GENERATED else corpus_fingerprint(corpus),
        "tokens": token_count(loaded, layers, tokens),
        "max_length": max_length,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file = folder / f"{key[:32]}.safetensors"
    if file.exists():
        logger.info("key statistics from %s", file)
        moments = _read(file, layers)
        return {layer: moment.to(double_device(loaded)) for layer, moment in moments.items()}
    moments, seen = second_moments(
        loaded,
        layers,
        ordinary_texts(loaded, corpus),
        tokens,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        precision=precision,
    )
    _write(file, moments, {**content, "tokens_seen": seen})
    return moments


def default_cache_dir() -> Path:
    """``statistics`` in $SPHERE_BENCH_CACHE, or in ~/.cache/sphere-bench if that is not set."""
    root = os.environ.get("SPHERE_BENCH_CACHE") or "~/.cache/sphere-bench"
    return Path(root).expanduser() / "statistics"


def _module_name(loaded: LoadedModel, layer: int) -> str:
    projection = loaded.layout.projection(layer)
    names: dict[object, str] = {module: name for name, module in loaded.model.named_modules()}
    return names[projection]


def _write(file: Path, moments: dict[int, Tensor], content: dict[str, object]) -> None:
    tensors = {f"layer.{layer}": moment.cpu() for layer, moment in moments.items()}
    metadata = {"content": json.dumps(content), "checksum": tensors_fingerprint(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata)
    except OSError as error:
        raise SphereBenchError(
            f"statistics.cache={file.parent}: cannot write there ({error.strerror or error}): "
            "give a folder that can be written"
        ) from error


def _read(file: Path, layers: Sequence[int]) -> dict[int, Tensor]:
    try:
        with safe_open(file, framework="pt") as stored:
            checksum = (stored.metadata() or {}).get("checksum")
            tensors = {f"layer.{layer}": stored.get_tensor(f"layer.{layer}") for layer in layers}
    except (SafetensorError, OSError) as error:
        raise _damaged(file) from error
    if tensors_fingerprint(tensors) != checksum:
        raise _damaged(file)
    return {layer: tensors[f"layer.{layer}"] for layer in layers}


def _damaged(file: Path) -> SphereBenchError:
    return SphereBenchError(f"cached key statistics are damaged: delete {file} and run again")
