"""Checkpoints of a run: enough to go on bit for bit, verified when read.

``checkpoints/step-<n>/`` holds `weights.safetensors` (the edited weights), `editor.safetensors`
and `probes.safetensors` (what the editor and the probes remember) and `state.json`, which carries
the checksums of the others and of itself.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sphere_bench import __version__
from sphere_bench.editing.state import flatten_state, unflatten_state
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_folder, remove_folder, remove_partial, write_json

logger = logging.getLogger(__name__)

WEIGHTS, EDITOR, PROBES = "weights.safetensors", "editor.safetensors", "probes.safetensors"
STATE = "state.json"
_FILES = (WEIGHTS, EDITOR, PROBES)


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after a step.

    Attributes:
        step: the last step that was made.
        weights: layer to the edited weight W [d_out, d_in], float32.
        editor: what the editor remembers: tensors, in dicts of dicts if need be.
        probes: the same of the probes.
        run_hash: of what decides the run's numbers, see ``run_folder.identity``.
    """

    step: int
    weights: Mapping[int, Tensor]
    editor: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)
    run_hash: str = ""


class _Damaged(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        folder: usually ``<run>/checkpoints``; made when the first is saved.
        keep: how many of the latest stay; two, so that a damaged one has one before it.
        milestones: steps whose checkpoints stay for good.
    """

    def __init__(self, folder: Path, keep: int = 2, milestones: Collection[int] = ()) -> None:
        if keep < 1:
            raise ValueError("at least the latest checkpoint is kept")
        self.folder = folder
        self.keep = keep
        self.milestones = frozenset(milestones)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, complete or not at all, and remove those no longer wanted.

        The step's rows must be committed by then: a run goes on behind its latest checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        weights = {
            f"layers.{layer}.weight": weight.float() for layer, weight in checkpoint.weights.items()
        }
        with atomic_folder(self._path(checkpoint.step)) as folder:
            save_file(_on_cpu(weights), folder / WEIGHTS)
            save_file(_on_cpu(dict(flatten_state(checkpoint.editor, "editor"))), folder / EDITOR)
            save_file(_on_cpu(dict(flatten_state(checkpoint.probes, "probes"))), folder / PROBES)
            state = {
                "step": checkpoint.step,
                "run_hash": checkpoint.run_hash,
                "version": __version__,
                "kept": checkpoint.step in self.milestones,
                "sha256": {name: _checksum(folder / name) for name in _FILES},
            }
            write_json(folder / STATE, {**state, "sha256_of_state": _digest(state)})
        self._prune()

    def rewind(self, step: int) -> None:
        """Remove the checkpoints behind ``step`` and what a killed process left over.

        They are damaged, or the run is about to make their steps again: they would count as the
        latest otherwise.
        """
        remove_partial(self.folder)
        for later in self.steps():
            if later > step:
                remove_folder(self._path(later))
        self._prune()

    def _prune(self) -> None:
        latest = self.steps()[-self.keep :]
        for step in self.steps():
            if step not in latest and not self._is_kept(step):
                remove_folder(self._path(step))

    def _is_kept(self, step: int) -> bool:
        """Whether it was asked to stay for good, now or when it was saved."""
        if step in self.milestones:
            return True
        with suppress(OSError, ValueError):
            return bool(json.loads((self._path(step) / STATE).read_text("utf-8")).get("kept"))
        return False

    def steps(self) -> list[int]:
        """Steps with a checkpoint, rising."""
        numbers = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def latest(self, until: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning.

        Args:
            until: later steps do not count.

        Returns:
            The checkpoint, its tensors on the CPU, or ``None`` where there is none.
        """
        for step in reversed(self.steps()):
            if until is not None and step > until:
                continue
            try:
                return self._read(step)
            except _Damaged as error:
                logger.warning("passing over a damaged checkpoint: %s", error)
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint after ``step``.

        Raises:
            SphereBenchError: there is none, or it is damaged.
        """
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise SphereBenchError(f"{self.folder}: no checkpoint of step {step}; there is {there}")
        try:
            return self._read(step)
        except _Damaged as error:
            raise SphereBenchError(
                f"the checkpoint is damaged: {error}; use another step"
            ) from error

    def _read(self, step: int) -> Checkpoint:
        folder = self._path(step)
        try:
            state = json.loads((folder / STATE).read_text("utf-8"))
            if state.pop("sha256_of_state") != _digest(state) or state["step"] != step:
                raise _Damaged(f"{folder / STATE} is not what was written")
            for name in _FILES:
                if _checksum(folder / name) != state["sha256"][name]:
                    raise _Damaged(f"{folder / name} is not what was written")
            weights = {
                int(name.split(".")[1]): weight
                for name, weight in load_file(folder / WEIGHTS).items()
            }
            return Checkpoint(
                step=step,
                weights=dict(sorted(weights.items())),
                editor=unflatten_state(load_file(folder / EDITOR)),
                probes=unflatten_state(load_file(folder / PROBES)),
                run_hash=state["run_hash"],
            )
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            SafetensorError,
        ) as error:
            raise _Damaged(f"{folder}: {error}") from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, none sharing memory with another."""
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        # A part of a larger storage counts as shared too.
        whole = own.untyped_storage().nbytes() == own.numel() * own.element_size()
        if own.untyped_storage().data_ptr() in storages or not whole:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        ready[name] = own
    return ready


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
