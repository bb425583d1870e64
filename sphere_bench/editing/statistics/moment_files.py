"""Files of second moments: our own, and those that ROME, MEMIT and AlphaEdit publish."""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sphere_bench.editing.statistics.second_moments import SecondMoments
from sphere_bench.files import atomic_file
from sphere_bench.models.fingerprint import tensors_fingerprint

# What numpy raises at a file that is damaged, no archive, or of objects instead of numbers.
_UNREADABLE = (OSError, EOFError, BadZipFile, zlib.error, TypeError, ValueError, AttributeError)

OWN, PUBLISHED = ".safetensors", ".npz"
_LAYER = "layer."


def write_own(file: Path, found: SecondMoments, content: Mapping[str, Any]) -> None:
    """Write second moments, and what they are of, with a checksum.

    Args:
        content: plain values; ``layers`` has the name of every layer's module.
    """
    tensors = {f"{_LAYER}{layer}": moment.cpu() for layer, moment in found.moments.items()}
    described = json.dumps({**content, "tokens_seen": found.tokens})
    metadata = {"content": described, "checksum": tensors_fingerprint(tensors)}
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata)


def read_own(file: Path) -> SecondMoments:
    """What :func:`write_own` wrote, on the CPU.

    Raises:
        ValueError: the file is damaged or another one.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
        tensors = load_file(file)
        if tensors_fingerprint(tensors) != metadata["checksum"]:
            raise ValueError("its checksum does not fit")
        moments = {int(name.removeprefix(_LAYER)): tensor for name, tensor in tensors.items()}
        return SecondMoments(moments, int(json.loads(metadata["content"])["tokens_seen"]))
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError("it is none of our files of second moments") from error


def own_modules(file: Path) -> dict[str, int]:
    """Modules to layers of a file that :func:`write_own` wrote; empty for any other file.

    Second moments over held-out text are left out: they only check others.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            content = json.loads((stored.metadata() or {})["content"])
        if "held_out" in content:
            return {}
        return {str(name): int(layer) for layer, name in content["layers"].items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def read_published(file: Path) -> tuple[Tensor, int]:
    """C of one layer and the number of its tokens, C = ``mom2.mom2`` / ``mom2.count``.

    ``util/runningstats.py`` of github.com/kmeng01/rome writes such files.

    Raises:
        ValueError: the file is damaged or another one.
    """
    try:
        with np.load(file) as stored:
            total, count = stored["mom2.mom2"], float(stored["mom2.count"])
    except KeyError as error:
        raise ValueError("it lacks mom2.mom2 or mom2.count") from error
    except _UNREADABLE as error:
        raise ValueError("it is no npz file of numbers") from error
    if not (math.isfinite(count) and count >= 1):
        raise ValueError(f"mom2.count is {count:g}")
    if not np.issubdtype(total.dtype, np.floating):
        raise ValueError(f"mom2.mom2 is of type {total.dtype}")
    return torch.from_numpy(total).double() / count, int(count)
