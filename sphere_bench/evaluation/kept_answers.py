"""The unedited model's answers on disk: every run of a sweep would ask it the same."""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file
from sphere_bench.models.fingerprint import model_fingerprint
from sphere_bench.models.loading import LoadedModel


def answers_file(cache: Path, loaded: LoadedModel, *asked: object) -> Path:
    """The file of what an unedited model answers.

    What is asked the file knows itself. Its name stands for the model and for what the last bits of
    an answer depend on.

    Args:
        asked: how a forward is put together.
    """
    versions = [f"{name} {version(name)}" for name in ("lm_eval", "torch", "transformers")]
    where = (str(loaded.device), torch.get_num_threads())
    key = repr((model_fingerprint(loaded), versions, where, asked))
    return cache / "abilities" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"


@contextmanager
def remembering(model: Any, file: Path | None) -> Iterator[Any]:
    """lm-eval's ``model``, or one that takes answers from ``file`` and adds those that it lacks.

    Raises:
        SphereBenchError: the file cannot be written.
    """
    if file is None:
        yield model
        return
    from lm_eval.api.model import CachingLM

    _check_writable(file.parent)
    # A copy: runs side by side do not wait for each other, and nothing is there by halves.
    with atomic_file(file) as temporary:
        if _is_sound(file):
            shutil.copyfile(file, temporary)
        caching = CachingLM(model, str(temporary))
        try:
            yield caching
        finally:
            caching.dbdict.close()


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("Permission denied")
    except OSError as error:
        raise SphereBenchError(
            f"statistics.cache={folder.parent}: cannot write to {folder} "
            f"({error.strerror or error}): give a folder that can be written"
        ) from error


def _is_sound(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(file)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.DatabaseError:
        return False
