"""The unedited model's answers on disk: every run of a sweep would ask it the same."""

import hashlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sphere_bench.files import atomic_file
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)


def answers_file(cache: Path, loaded: LoadedModel, fingerprint: str, *asked: object) -> Path:
    """The file of what an unedited model answers.

    What is asked the file knows itself. Its name stands for the model and for what the last bits of
    an answer depend on.

    Args:
        fingerprint: the model's.
        asked: how a forward is put together.
    """
    versions = [f"{name} {version(name)}" for name in ("lm_eval", "torch", "transformers")]
    device = loaded.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    where = (str(device), card, torch.get_num_threads(), torch.get_float32_matmul_precision())
    key = repr((fingerprint, versions, where, asked))
    return cache / "abilities" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"


@contextmanager
def remembering(model: Any, file: Path | None) -> Iterator[Any]:
    """lm-eval's ``model``, or one that takes answers from ``file`` and adds those that it lacks.

    A file that is damaged is made again; where none can be written, nothing is kept.

    Raises:
        SphereBenchError: the disk is full.
    """
    if file is None:
        yield model
        return
    from lm_eval.api.model import CachingLM

    # A copy: runs side by side do not wait for each other, and nothing is there by halves.
    with TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        if _is_sound(file):
            shutil.copyfile(file, copy)
        caching = CachingLM(model, str(copy))
        known = len(caching.dbdict)
        try:
            yield caching
            has_more = len(caching.dbdict) > known
        finally:
            caching.dbdict.close()
        if has_more:
            _keep(copy, file)


def _keep(copy: Path, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            shutil.copyfile(copy, temporary)
    except OSError as error:  # the next run asks again, that is all
        logger.warning("cannot keep answers in %s: %s", file.parent, error.strerror or error)


def _is_sound(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(file)) as connection:
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return True
    except sqlite3.DatabaseError:
        pass
    logger.warning("%s is damaged: it is made again", file)
    return False
