"""Whose a run's folder is: below the results, one process's at a time, one run's for good."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from filelock import FileLock, Timeout

from sphere_bench.composition import CONFIG_FILE, flatten, identity
from sphere_bench.errors import SphereBenchError
from sphere_bench.provenance import FILE as PROVENANCE_FILE
from sphere_bench.provenance import config_hash, is_run, read
from sphere_bench.tracking import TRACKERS

LOCK = "run.lock"
# What computes the numbers. The others carry them: a new pandas does not part a run in two.
DECISIVE_PACKAGES = ("torch", "transformers", "tokenizers")
_SHOWN_DIGITS = 12


def check_location(root: str, folder: Path) -> None:
    """Make sure that a run's folder is below the results, whatever links there are.

    Raises:
        SphereBenchError: it is a link that leads out of them.
    """
    results = Path(root).expanduser().resolve()
    if results not in folder.resolve().parents:
        raise SphereBenchError(
            f"{folder} is a link out of {results}, to {folder.resolve()}: choose another run.name"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder.

    The operating system holds the lock for the process and lets go of it however that ends: the
    file that stays behind locks nobody out.

    Raises:
        SphereBenchError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise SphereBenchError(
            f"{folder} is in use by another process: wait until that is done, stop it, or choose "
            "another run.name"
        ) from error
    try:
        yield
    finally:
        # A run that never began leaves nothing; while the lock is held, its file is ours to delete.
        if not is_run(folder):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def is_begun(folder: Path) -> bool:
    """Whether the folder holds rows or checkpoints."""
    return (folder / "progress.json").exists() or any(folder.glob("checkpoints/step-*"))


def differences(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """What makes the run that the folder already holds another one: old -> new.

    Args:
        folder: the run's folder.
        facts: of the run that is to be made, as ``provenance.json`` has them, or a part of them.

    Raises:
        SphereBenchError: what the folder's numbers are from is not known any more.
    """
    if not is_begun(folder):
        return []
    earlier = read(folder)
    before = decisive({key: earlier.get(key) for key in facts})
    now = decisive(facts)
    return [
        f"{key} {_shown(key, before.get(key))} -> {_shown(key, now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def decisive(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``facts`` decides a run's numbers, under dotted keys."""
    found = {
        key: facts[key]
        for key in ("dataset_fingerprint", "model_fingerprint", "sphere_bench", "contexts")
        if key in facts
    }
    if "config" in facts:
        found.update(flatten(identity(facts["config"])))
    if "packages" in facts:
        found.update({name: facts["packages"].get(name) for name in DECISIVE_PACKAGES})
    # As a file gives it back.
    return dict(json.loads(json.dumps(found)))


def run_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides a run's numbers."""
    return config_hash(decisive(facts))


def discard(folder: Path) -> None:
    """Remove the run that the folder holds; what tells that it is another one goes last."""
    from sphere_bench.checkpoints import Checkpoints
    from sphere_bench.recording import Recorder

    Checkpoints(folder / "checkpoints").rewind(-1)
    Recorder(folder).rewind(-1)
    for tracker in TRACKERS:
        rmtree(folder / tracker, ignore_errors=True)
    for name in (PROVENANCE_FILE, CONFIG_FILE):
        (folder / name).unlink(missing_ok=True)


def _shown(key: str, value: object) -> str:
    if value is None:
        return "null"
    return str(value)[:_SHOWN_DIGITS] if key.endswith("_fingerprint") else str(value)
