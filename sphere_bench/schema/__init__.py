"""The configuration's dataclasses, with ranges checked.

The YAML files in ``configs/`` hold the defaults; here stand the keys, their types and what is
allowed.
"""

from dataclasses import dataclass
from typing import Any

from sphere_bench.errors import SphereBenchError, check_at_least, check_choice
from sphere_bench.schema.editing import (
    ContextsConfig,
    EditorConfig,
    NumericsConfig,
    SphereConfig,
    StatisticsConfig,
)
from sphere_bench.schema.model import ModelConfig
from sphere_bench.schema.stream import (
    CheckpointConfig,
    CollapseConfig,
    DatasetConfig,
    EditsConfig,
    EnergyConfig,
    EvaluationConfig,
    PerplexityConfig,
    RunFolderConfig,
)
from sphere_bench.tracking import TRACKERS

DEVICE_TYPES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu")


@dataclass
class Config:
    """The whole configuration of a run."""

    model: ModelConfig
    editor: EditorConfig
    dataset: DatasetConfig
    edits: EditsConfig
    values: ContextsConfig
    statistics: StatisticsConfig
    sphere: SphereConfig
    energy: EnergyConfig
    evaluation: EvaluationConfig
    numerics: NumericsConfig
    perplexity: PerplexityConfig
    collapse: CollapseConfig
    run: RunFolderConfig
    checkpoint: CheckpointConfig
    device: str
    seed: int
    trackers: Any = None  # a name or a list of names; afterwards the list

    def __post_init__(self) -> None:
        named = [self.trackers] if isinstance(self.trackers, str) else self.trackers
        self.trackers = list(named or [])
        for name in self.trackers:
            check_choice("trackers", name, TRACKERS)
        kind, _, index = self.device.partition(":")
        if kind not in DEVICE_TYPES or (":" in self.device and not index.isdecimal()):
            raise SphereBenchError(
                f"device={self.device}: must be one of {', '.join(DEVICE_TYPES)}, "
                "with an index where there are several (cuda:1)"
            )
        check_at_least("seed", self.seed, 0)
        if self.collapse.perplexity is not None and not self.perplexity.tokens:
            raise SphereBenchError(
                f"collapse.perplexity={self.collapse.perplexity} needs perplexity.tokens above 0"
            )
