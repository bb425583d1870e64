"""Where a run's numbers come from: versions, machine, code, model, data and configuration."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from sphere_bench import __version__
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import write_json

logger = logging.getLogger(__name__)

FILE = "provenance.json"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "hydra-core",
    "omegaconf",
)


def collect(
    *,
    config: Mapping[str, Any],
    device: str,
    model_fingerprint: str | None = None,
    dataset_fingerprint: str | None = None,
) -> dict[str, Any]:
    """What is needed to tell later which code, model and data made a run's numbers.

    It never fails and asks no network: what cannot be found out is ``None``.

    Args:
        config: the whole resolved configuration as plain containers.
        device: the torch device that the model is on.
        model_fingerprint: see ``models.fingerprint``; of the unedited model.
        dataset_fingerprint: of the records of the run.
    """
    return {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "device": _device(device),
        "command": sys.argv,
        "config": config,
        "model_fingerprint": model_fingerprint,
        "dataset_fingerprint": dataset_fingerprint,
    }


def is_run(folder: Path) -> bool:
    """Whether a run has begun in the folder."""
    return (folder / FILE).is_file()


def record(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` of a run that begins."""
    write_json(folder / FILE, {**facts, "resumed": []})


def record_resumed(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add the facts of a resumed run to those of its first start, as far as they are others."""
    first = read(folder)
    news = {key: value for key, value in facts.items() if first.get(key) != value}
    for key in ("git", "device"):
        if key in news:
            logger.warning("going on with another %s: %s -> %s", key, first.get(key), news[key])
    write_json(folder / FILE, {**first, "resumed": [*first["resumed"], news]})


def read(folder: Path) -> dict[str, Any]:
    """What ``provenance.json`` says.

    Raises:
        SphereBenchError: it is missing or damaged.
    """
    file = folder / FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if content.keys() >= {"config", "packages", "resumed"}:
            return content
    except (OSError, ValueError, AttributeError):
        pass
    raise SphereBenchError(
        f"{file}, which says what the numbers are from, is missing or damaged: restore it or "
        "choose another run.name"
    )


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def git_state() -> dict[str, Any] | None:
    """Commit and cleanness of the checkout that this package runs from, if it runs from one."""
    checkout = Path(__file__).resolve().parents[1]
    try:
        # An installed package may lie inside somebody else's repository.
        if Path(_git(checkout, "rev-parse", "--show-toplevel")).resolve() != checkout:
            return None
        return {
            "commit": _git(checkout, "rev-parse", "HEAD"),
            "dirty": bool(_git(checkout, "status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
        # `git status` would otherwise write to the index of a checkout that others work in.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return result.stdout.strip()


def versions() -> dict[str, Any]:
    """Of this package, of Python and of the packages below."""
    return {
        "sphere_bench": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _device(device: str) -> dict[str, Any]:
    """The device's name and memory, as torch tells them."""
    facts: dict[str, Any] = {"torch_device": device, "name": None, "memory_bytes": None}
    if device.startswith("cuda"):
        with suppress(Exception):  # a driver in trouble must not keep a run from starting
            import torch

            properties = torch.cuda.get_device_properties(torch.device(device))
            facts.update(name=properties.name, memory_bytes=properties.total_memory)
            facts["cuda"] = torch.version.cuda
    return facts
