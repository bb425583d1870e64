"""A model's fingerprint: it depends on the content, not on the model's folder or name."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sphere_bench.models.loading import LoadedModel

# These settings do not change what a model computes.
_IGNORED_SETTINGS = frozenset({"transformers_version", "architectures"})


def model_fingerprint(loaded: LoadedModel) -> str:
    """SHA-256 over configuration, tokenizer and every parameter's name, shape, type and bytes."""
    settings = {
        key: value
        for key, value in loaded.model.config.to_dict().items()
        if not key.startswith("_") and key not in _IGNORED_SETTINGS
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(loaded.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(tensors_fingerprint(dict(loaded.model.named_parameters())).encode())
    return digest.hexdigest()


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors' names, shapes, types and bytes, in the order of their names."""
    names = sorted(tensors)
    # hashlib releases the interpreter's lock, so that several tensors are hashed at a time.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(_tensor_digest, (tensors[name] for name in names))
        lines = [f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
    contiguous = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(contiguous.view(torch.uint8).numpy().data)
    return digest.hexdigest()
