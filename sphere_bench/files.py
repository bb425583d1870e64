"""Files that are complete or absent, whenever the process is killed."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Hidden, and never with the final name's suffix: readers that list a folder pass it by.
_PREFIX, _SUFFIX = ".", ".partial"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what the block wrote there replaces ``path``.

    The bytes are on the disk before the name is. An exception leaves ``path`` as it was.
    """
    temporary = _beside(path)
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that their owner alone can read
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder; with what the block wrote into it, it replaces ``path``."""
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.iterdir():
            file.chmod(mode)
            _sync(file)
        _sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def remove_partial(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder``, files and folders."""
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{path.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}")


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: object) -> None:
    """Replace ``path`` by ``content`` as JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
