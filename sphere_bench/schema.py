"""The configuration's dataclasses, with ranges checked.

The YAML files in ``configs/`` hold the defaults; here stand the keys, their types and what is
allowed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sphere_bench.errors import SphereBenchError, check_choice
from sphere_bench.errors import check_above as _above
from sphere_bench.errors import check_at_least as _at_least
from sphere_bench.errors import check_between as _between
from sphere_bench.tracking import TRACKERS

DTYPES = ("float32", "bfloat16", "float16")
DEVICE_TYPES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


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
        _at_least("model.values.steps", self.steps, 1)
        _above("model.values.learning_rate", self.learning_rate, 0)
        _at_least("model.values.weight_decay", self.weight_decay, 0)
        _above("model.values.clamp_norm_factor", self.clamp_norm_factor, 0)
        _at_least("model.values.kl_factor", self.kl_factor, 0)
        _at_least("model.values.loss_threshold", self.loss_threshold, 0)


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
        _above("model.fine_tuning.norm_constraint", self.norm_constraint, 0)


@dataclass
class UltraEditConfig:
    """UltraEdit's layers in this model, later ones than the others', and its learning rate."""

    layers: list[int]
    learning_rate: float

    def __post_init__(self) -> None:
        _layers("model.ultraedit.layers", self.layers)
        _above("model.ultraedit.learning_rate", self.learning_rate, 0)


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
        _name("model.name", self.name)
        check_choice("model.dtype", self.dtype, DTYPES)
        _layers("model.layers", self.layers)
        _above("model.second_moment_weight", self.second_moment_weight, 0)


@dataclass
class ContextsConfig:
    """Prefixes for target values and keys, and how the forwards behind them are run.

    ``precision`` is that of the layers above the value's; null is the model's own.
    """

    contexts: list[str] | None
    context_tokens: int
    tokens_per_batch: int
    precision: str | None

    def __post_init__(self) -> None:
        check_choice("values.precision", self.precision, (*DTYPES, None))
        for context in self.contexts or []:
            if context.count("{}") != 1:
                raise SphereBenchError(
                    f"values.contexts: {context!r} must hold exactly one {{}} for the prompt"
                )
        _at_least("values.context_tokens", self.context_tokens, 1)
        _at_least("values.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class EditorSphereConfig:
    """What SPHERE's paper and its published code use with this editor."""

    alpha: float
    apply: str
    published_apply: str

    def __post_init__(self) -> None:
        _between("editor.sphere.alpha", self.alpha, 0, 1)
        check_choice("editor.sphere.apply", self.apply, ("in_loop", "after"))
        check_choice("editor.sphere.published_apply", self.published_apply, ("in_loop", "after"))


@dataclass
class EditorConfig:
    """An editor: ``method`` is instantiated by its ``_target_`` and takes the run's setup."""

    name: str
    layers: list[int]
    sphere: EditorSphereConfig
    method: dict[str, Any]

    def __post_init__(self) -> None:
        _name("editor.name", self.name)
        _layers("editor.layers", self.layers)
        if "_target_" not in self.method:
            raise SphereBenchError("editor.method._target_ is missing: name the editor's class")
        check_choice("editor.method._partial_", self.method.get("_partial_"), (True,))


@dataclass
class DatasetConfig:
    """Arguments of the loader that ``_target_`` names."""

    _target_: str
    name: str
    path: str | None = None
    format: str = "auto"
    url: str | None = None
    split: str | None = None
    target: str = "answers"
    headline: str | None = None
    on_invalid: str = "error"

    def __post_init__(self) -> None:
        _name("dataset.name", self.name)
        check_choice("dataset.target", self.target, ("answers", "alt"))
        check_choice("dataset.headline", self.headline, ("success", "accuracy", None))
        check_choice("dataset.on_invalid", self.on_invalid, ("error", "skip"))


@dataclass
class EditsConfig:
    """The stream of edits."""

    total: int | None
    batch_size: int
    start: int
    shuffle: bool

    def __post_init__(self) -> None:
        _at_least("edits.batch_size", self.batch_size, 1)
        _at_least("edits.start", self.start, 0)
        if self.total is None:
            return
        _at_least("edits.total", self.total, 1)
        if self.batch_size > self.total:
            raise SphereBenchError(
                f"edits.batch_size={self.batch_size} is larger than edits.total={self.total}: "
                "lower the one or raise the other"
            )


@dataclass
class StatisticsConfig:
    """Text for key statistics; ``tokens`` null is ten times the width of the keys."""

    corpus: str
    tokens: int | None
    max_length: int
    tokens_per_batch: int
    cache: str | None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            _at_least("statistics.tokens", self.tokens, 1)
        _at_least("statistics.max_length", self.max_length, 1)
        _at_least("statistics.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class SphereConfig:
    """SPHERE's projection of the updates."""

    name: str
    enabled: bool
    alpha: float
    eta: float
    basis: str
    normalize_rows: bool
    rank_rule: str
    apply: str

    def __post_init__(self) -> None:
        _name("sphere.name", self.name)
        _between("sphere.alpha", self.alpha, 0, 1)
        _above("sphere.eta", self.eta, 0)
        _between("sphere.eta", self.eta, 0, 1)
        check_choice("sphere.basis", self.basis, ("pretrained", "current"))
        check_choice("sphere.rank_rule", self.rank_rule, ("paper", "published-code"))
        check_choice("sphere.apply", self.apply, ("in_loop", "after"))


@dataclass
class EnergyConfig:
    """Hyperspherical energy."""

    exponent: float
    eps: float

    def __post_init__(self) -> None:
        _above("energy.exponent", self.exponent, 0)
        _above("energy.eps", self.eps, 0)


@dataclass
class EvaluationConfig:
    """Who is evaluated, and after which steps."""

    every: int
    seen: int
    first: int
    milestones: list[int]
    tokens_per_batch: int

    def __post_init__(self) -> None:
        _at_least("evaluation.every", self.every, 1)
        _at_least("evaluation.seen", self.seen, 0)
        _at_least("evaluation.first", self.first, 0)
        for milestone in self.milestones:
            _at_least("evaluation.milestones", milestone, 0)
        _at_least("evaluation.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class NumericsConfig:
    """What becomes of a batch whose numbers are not finite, or whose update is too large."""

    on_nonfinite: str
    largest_update: float | None

    def __post_init__(self) -> None:
        check_choice("numerics.on_nonfinite", self.on_nonfinite, ("stop", "skip", "record"))
        if self.largest_update is not None:
            _above("numerics.largest_update", self.largest_update, 0)


@dataclass
class PerplexityConfig:
    """A fixed text whose perplexity is taken after every evaluated step; no tokens, no probe."""

    tokens: int
    corpus: str

    def __post_init__(self) -> None:
        _at_least("perplexity.tokens", self.tokens, 0)


@dataclass
class CollapseConfig:
    """Thresholds that end a run early; null is none."""

    efficacy: float | None
    perplexity: float | None

    def __post_init__(self) -> None:
        if self.efficacy is not None:
            _between("collapse.efficacy", self.efficacy, 0, 100)
        if self.perplexity is not None:
            _above("collapse.perplexity", self.perplexity, 0)


@dataclass
class RunFolderConfig:
    """Where the run's folder is, and what happens where it holds another run.

    A name of null is derived from the rest.
    """

    root: str
    name: str | None
    on_mismatch: str

    def __post_init__(self) -> None:
        check_choice("run.on_mismatch", self.on_mismatch, ("error", "restart"))
        if not self.root.strip():
            raise SphereBenchError("run.root is empty: name a folder, or . for this one")
        if self.name is not None:
            _name("run.name", self.name)

    @property
    def folder(self) -> Path:
        """``root/name`` of a validated configuration."""
        return Path(self.root).expanduser() / cast(str, self.name)


@dataclass
class CheckpointConfig:
    """Steps between checkpoints; how many of the latest stay; steps whose stay for good."""

    every: int
    keep: int
    steps: list[int]

    def __post_init__(self) -> None:
        _at_least("checkpoint.every", self.every, 1)
        _at_least("checkpoint.keep", self.keep, 1)
        for step in self.steps:
            _at_least("checkpoint.steps", step, 1)


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
        _at_least("seed", self.seed, 0)
        if self.collapse.perplexity is not None and not self.perplexity.tokens:
            raise SphereBenchError(
                f"collapse.perplexity={self.collapse.perplexity} needs perplexity.tokens above 0"
            )


def _name(key: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise SphereBenchError(
            f"{key}={value}: must be one folder's name of letters, digits and . _ + -"
        )


def _layers(key: str, value: list[int]) -> None:
    if not value or value != sorted(set(value)) or value[0] < 0:
        raise SphereBenchError(f"{key}={value}: must be a rising list of layer numbers from 0 on")
