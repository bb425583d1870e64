"""Where a run's numbers come from: versions, machine, code, model, data and configuration."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sphere_bench import __version__

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
    "lm_eval",
    "peft",
)

#: So starts what the command line adds to what was typed.
OWN_OVERRIDE = "+hydra.callbacks.sphere_bench="


def collect(*, config: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What is needed to know later which code and machine made a run's numbers.

    It never fails and asks no network: what cannot be found out is ``None``.

    Args:
        config: the whole resolved configuration as plain containers.
        device: the torch device that the model is on.
    """
    return {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **versions(),
        "git": _own_git_state(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "device": _device(device),
        "threads": _threads(),
        "command": [each for each in sys.argv if not each.startswith(OWN_OVERRIDE)],
        "config": config,
    }


def other_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Device and number of threads that are others now, old -> new; ``None`` where they are not.

    Args:
        before, now: as :func:`collect` gives them. What one of them lacks is not compared.
    """
    return (
        " and ".join(
            f"{key} {_on_one_line(before[key])} -> {_on_one_line(now[key])}"
            for key in ("device", "threads")
            if key in before and key in now and before[key] != now[key]
        )
        or None
    )


def _on_one_line(fact: object) -> str:
    """A fact without what is not known of it."""
    if isinstance(fact, Mapping):
        return ", ".join(str(value) for value in fact.values() if value is not None)
    return str(fact)


def git_state() -> dict[str, Any] | None:
    """Commit and cleanness of the checkout that this package runs from, if it runs from one."""
    checkout = Path(__file__).resolve().parents[2]
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


@cache
def _own_git_state() -> dict[str, Any] | None:
    """Asked once: whatever becomes of the checkout, a process runs the code that it began with."""
    return git_state()


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


@cache
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


def _threads() -> int:
    """How many threads torch computes with on the CPU."""
    import torch

    return torch.get_num_threads()


def _device(device: str) -> dict[str, Any]:
    """The device's name and memory, as torch reports them."""
    facts: dict[str, Any] = {"torch_device": device, "name": None, "memory_bytes": None}
    if device.startswith("cuda"):
        with suppress(Exception):  # a driver in trouble must not keep a run from starting
            import torch

            properties = torch.cuda.get_device_properties(torch.device(device))
            facts.update(name=properties.name, memory_bytes=properties.total_memory)
            facts["cuda"] = torch.version.cuda
    return facts
