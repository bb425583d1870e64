"""Files that are complete or absent, whenever the process is killed."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sphere_bench.errors import SphereBenchError

# Hidden, and never with the suffix of the final name: readers that list a folder overlook it.
_PREFIX, _SUFFIX = ".", ".partial"
# A full disk, a full quota, `ulimit -f`.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what the block wrote there replaces ``path``.

    The bytes reach the disk before the name does. An exception leaves ``path`` as it was.

    Raises:
        SphereBenchError: the disk is full.
    """
    temporary = _beside(path)
    with _explaining_a_full_disk(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that their owner alone can read
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; with what the block wrote into it, it replaces ``path``.

    Raises:
        SphereBenchError: the disk is full.
    """
    temporary = _beside(path)
    with _explaining_a_full_disk(path):
        try:
            temporary.mkdir()
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            for path_inside in temporary.rglob("*"):
                if path_inside.is_file():
                    path_inside.chmod(mode)
                _sync(path_inside)
            _sync(temporary)
            if path.exists():
                remove_folder(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder in a way that nobody reads half of it: its name goes before its files."""
    leftover = _beside(path)
    os.replace(path, leftover)
    shutil.rmtree(leftover)


def remove_partial(folder: Path) -> None:
    """Delete the half-written files and folders that killed processes left in ``folder``."""
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{path.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}")


@contextmanager
def _explaining_a_full_disk(path: Path) -> Iterator[None]:
    """Name ``path`` and what to do, whichever library could not write."""
    try:
        yield
    except Exception as error:
        # safetensors puts the operating system's error into the text of its own error.
        code = getattr(error, "errno", None)
        found = [each for each in FULL if each == code or f"(os error {each})" in str(error)]
        if not found:
            raise
        raise SphereBenchError(no_room(path, found[0])) from error


def no_room(path: object, code: int) -> str:
    """The error message for a ``path`` that could not be written because of ``code``.

    Args:
        path: of a file or a folder.
        code: of the operating system's error, one of ``FULL``.
    """
    return (
        f"{path}: cannot write it ({os.strerror(code)}): make room and run the same command "
        "again; what was there before is whole"
    )


def file_stamps(path: str, recursive: bool = True) -> dict[str, list[int]] | None:
    """Size and time of change of a file, or of the files of a folder; ``None`` if it is neither.

    Equal stamps show, without reading a byte, that nothing was changed.

    Args:
        recursive: look into the folders of a folder, too.
    """
    place = Path(path).expanduser()
    if not place.exists():
        return None
    inside = place.rglob("*") if recursive else place.glob("*")
    files = sorted(file for file in inside if file.is_file()) if place.is_dir() else [place]
    stamps = {}
    for file in files:
        facts = file.stat()
        name = str(file.relative_to(place)) if file != place else file.name
        stamps[name] = [facts.st_size, facts.st_mtime_ns]
    return stamps


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
