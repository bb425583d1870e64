"""The model: where it is, what is edited in it, and the editors' numbers that belong to it."""

from dataclasses import dataclass, field
from typing import Any

from sphere_bench.errors import check_above, check_at_least, check_choice
from sphere_bench.schema.checks import check_layers, check_name

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ModulesConfig:
    """Names of the modules under edit; null where they are found automatically."""

    layers: str | None = None
    projection: str | None = None


@dataclass
class ValueSolverConfig:
    """Numbers of the value solver; they belong to a model."""

    steps: int
    learning_rate: float
    weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    loss_threshold: float

    def __post_init__(self) -> None:
        check_at_least("model.values.steps", self.steps, 1)
        check_above("model.values.learning_rate", self.learning_rate, 0)
        check_at_least("model.values.weight_decay", self.weight_decay, 0)
        check_above("model.values.clamp_norm_factor", self.clamp_norm_factor, 0)
        check_at_least("model.values.kl_factor", self.kl_factor, 0)
        check_at_least("model.values.loss_threshold", self.loss_threshold, 0)


@dataclass
class RomeConfig:
    """ROME's layer in this model; without ``whiten`` C = I."""

    layer: int
    whiten: bool


@dataclass
class FineTuningConfig:
    """FT's layer in this model, and the bound of FT-L on every entry's change."""

    layer: int
    norm_constraint: float

    def __post_init__(self) -> None:
        check_above("model.fine_tuning.norm_constraint", self.norm_constraint, 0)


@dataclass
class UltraEditConfig:
    """UltraEdit's layers in this model, later ones than the others', and its learning rate."""

    layers: list[int]
    learning_rate: float

    def __post_init__(self) -> None:
        check_layers("model.ultraedit.layers", self.layers)
        check_above("model.ultraedit.learning_rate", self.learning_rate, 0)


@dataclass
class ModelConfig:
    """Where the model is, which layers are edited and with which numbers.

    With a ``shape`` (a configuration of transformers) its weights are random: for timing.
    """

    name: str
    path: str
    layers: list[int]
    values: ValueSolverConfig
    second_moment_weight: float
    rome: RomeConfig
    fine_tuning: FineTuningConfig
    ultraedit: UltraEditConfig
    revision: str | None = None
    shape: dict[str, Any] | None = None
    dtype: str = "float32"
    modules: ModulesConfig = field(default_factory=ModulesConfig)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        check_choice("model.dtype", self.dtype, DTYPES)
        check_layers("model.layers", self.layers)
        check_above("model.second_moment_weight", self.second_moment_weight, 0)
