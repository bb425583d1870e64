"""Cache on disk for the eigen-decompositions of second moments.

That of a key of width 14,336 takes minutes on a CPU, and on a GPU with slow double precision.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sphere_bench.files import atomic_file
from sphere_bench.models.fingerprint import tensors_fingerprint

logger = logging.getLogger(__name__)

# Below this width it takes no longer than reading a file.
_WORTH_KEEPING = 1024


class Decomposition(NamedTuple):
    """What ``torch.linalg.eigh`` gives: eigenvalues in rising order, eigenvectors as columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class CachedDecompositions:
    """Decomposes symmetric matrices, each one once: a file is known by the matrix's content.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, matrix: Tensor) -> Decomposition:
        """The decomposition of ``matrix`` [d, d], on its device."""
        if len(matrix) < _WORTH_KEEPING:
            return Decomposition(*torch.linalg.eigh(matrix))
        file = self.folder / f"{tensors_fingerprint({'matrix': matrix})[:32]}.eigen"
        found = _read(file)
        if found is None:
            found = Decomposition(*torch.linalg.eigh(matrix))
            _write(file, found)
        return Decomposition(*(tensor.to(matrix.device) for tensor in found))


def _read(file: Path) -> Decomposition | None:
    """What :func:`_write` wrote; ``None`` if there is no such file, or a damaged one."""
    if not file.exists():
        return None
    try:
        tensors = load_file(file)
        digest = tensors.pop("digest")
        if bytes(digest.tolist()).decode() == tensors_fingerprint(tensors):
            logger.info("eigenvectors of key statistics from %s", file)
            return Decomposition(**tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        pass
    logger.warning("%s is damaged: it is made again", file)
    return None


def _write(file: Path, found: Decomposition) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in found._asdict().items()}
    digest = torch.tensor(list(tensors_fingerprint(tensors).encode()), dtype=torch.uint8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            save_file({**tensors, "digest": digest}, temporary)
    except OSError as error:  # the next run needs longer, that is all
        logger.warning("cannot keep eigenvectors in %s: %s", file.parent, error.strerror or error)
