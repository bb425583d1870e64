"""The published implementation's numbers for two tiny models (see golden/README.md)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.contexts import fixed_contexts
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.models.loading import LoadedModel, load_model

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("tiny-llama", "tiny-gpt2")
LAYERS = (0, 1, 2)


class Golden(NamedTuple):
    """One model with what the published code computed on it."""

    name: str
    loaded: LoadedModel
    figures: dict[str, Any]
    arrays: dict[str, Tensor]
    more_figures: dict[str, Any]
    more: dict[str, Tensor]

    @property
    def requests(self) -> list[EditRequest]:
        return [_request(record) for record in self.figures["records"]]

    @property
    def contexts(self) -> list[str]:
        bare, others = self.figures["contexts"]
        return fixed_contexts([*bare, *others])

    @property
    def second_moments(self) -> dict[int, Tensor]:
        device = self.loaded.device
        return {layer: self.arrays[f"C_{layer}"].to(device) for layer in LAYERS}

    @property
    def values(self) -> ValueSettings:
        numbers = self.figures["hparams"]
        return ValueSettings(
            steps=numbers["v_num_grad_steps"],
            learning_rate=numbers["v_lr"],
            weight_decay=numbers["v_weight_decay"],
            clamp_norm_factor=numbers["clamp_norm_factor"],
            kl_factor=numbers["kl_factor"],
        )

    def setup(self, layers: Sequence[int] = LAYERS, **changes: Any) -> EditingSetup:
        """What a run on this model would give to its editor, but for ``changes``."""
        requests = self.requests
        setup = EditingSetup(
            loaded=self.loaded,
            weights=EditedWeights(self.loaded.layout, layers),
            values=self.values,
            contexts=self.contexts,
            second_moments=lambda: self.second_moments,
            seed=0,
            pool=lambda count: requests[:count],
            tokens_per_batch=2048,
        )
        return replace(setup, **changes)


def load_golden(name: str, device: str = "cpu") -> Golden:
    folder = GOLDEN / name
    loaded = load_model(str(folder), device=device)
    return Golden(name, loaded, *_numbers(folder / "published"), *_numbers(folder / "more"))


def _numbers(stem: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The figures and the arrays of one set."""
    tensors = {key: array.clone() for key, array in _arrays(stem.with_suffix(".npz")).items()}
    return json.loads(stem.with_suffix(".json").read_text()), tensors


@cache
def _arrays(file: Path) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def relative_error(result: Tensor, expected: Tensor) -> float:
    """||result - expected|| / ||expected||."""
    return ((result.double() - expected.double()).norm() / expected.double().norm()).item()


def _request(record: dict[str, Any]) -> EditRequest:
    rewrite = record["requested_rewrite"]
    return EditRequest(
        case_id=str(record["case_id"]),
        prompt=rewrite["prompt"].replace("{}", rewrite["subject"]),
        subject=rewrite["subject"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
    )
