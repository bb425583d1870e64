"""The configuration's dataclasses, with ranges checked.

The YAML files in ``configs/`` hold the defaults; here stand the keys, their types, their meanings
and what is allowed. ``docs/configuration.md`` is made from both.
"""

from dataclasses import dataclass, field
from typing import Any

from sphere_bench.config.schema.checks import check_probe
from sphere_bench.config.schema.editing import (
    ContextsConfig,
    EditorConfig,
    NumericsConfig,
    SphereConfig,
    StatisticsConfig,
)
from sphere_bench.config.schema.model import ModelConfig
from sphere_bench.config.schema.stream import (
    CheckpointConfig,
    CollapseConfig,
    DatasetConfig,
    EditsConfig,
    EnergyConfig,
    EvaluationConfig,
    ObjectiveConfig,
    PerplexityConfig,
    RunFolderConfig,
)
from sphere_bench.errors import SphereBenchError, check_at_least, check_choice

# Each is also the name of the package that it needs and of the extra that brings that package.
TRACKERS = ("tensorboard", "wandb", "mlflow")
DEVICE_TYPES = ("auto", "cpu", "cuda", "sharded", "mps", "xpu", "hpu", "npu")


@dataclass
class Config:
    """The whole configuration of a run.

    Attributes:
        device: ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or
            ``sharded``, which spreads the layers of a model over all GPUs.
        seed: decides the order of shuffled edits, the sample of the scope ``seen``, the generated
            contexts, and what an editor or a probe draws.
        probes: what is measured after a step: a name to a node with ``_target_`` (its class),
            ``every`` (steps between its turns; 0 leaves it out) and keys of its own.
        trackers: where else a run is shown while it goes: ``tensorboard``, ``wandb``, ``mlflow`` or
            a list of them. Each needs the extra of its name.
    """

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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    probes: dict[str, Any] = field(default_factory=dict)
    trackers: Any = None  # afterwards a list

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
        for name, probe in self.probes.items():
            check_probe(f"probes.{name}", probe)
        if self.collapse.perplexity is not None and not self.perplexity.tokens:
            raise SphereBenchError(
                f"collapse.perplexity={self.collapse.perplexity} needs perplexity.tokens above 0"
            )
