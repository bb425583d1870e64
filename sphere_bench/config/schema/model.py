"""The model: where it is, what is edited in it, and the numbers that belong to it."""

from dataclasses import dataclass, field
from typing import Any

from sphere_bench.config.schema.checks import check_layers, check_name
from sphere_bench.errors import check_above, check_at_least, check_choice

DTYPES = ("float32", "bfloat16", "float16")
# torch's names.
MATMUL_PRECISIONS = ("highest", "high", "medium")


@dataclass
class ModulesConfig:
    """Names of the modules under edit, where they are not found by themselves.

    Attributes:
        layers: dotted name of the list of decoder layers; null searches for it.
        projection: dotted name of the MLP's down projection inside a layer; null searches for it.
    """

    layers: str | None = None
    projection: str | None = None


@dataclass
class ValueSolverConfig:
    """Settings of the value solver: an editor's own for the model, or else the model's.

    Attributes:
        steps: iterations; the last one computes the loss and takes no step.
        learning_rate: Adam's.
        weight_decay: factor of ||delta|| / ||h0||^2 in the loss, h0 the hidden state before.
        clamp_norm_factor: ||delta|| is kept at or below this times ||h0||.
        kl_factor: factor of the KL divergence at the subject's last token of "{subject} is a".
        loss_threshold: a request is finished once its loss is below it.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    loss_threshold: float

    def check(self, key: str) -> None:
        """Raise unless all are in their ranges.

        Args:
            key: dotted name of the node.
        """
        check_at_least(f"{key}.steps", self.steps, 1)
        check_above(f"{key}.learning_rate", self.learning_rate, 0)
        check_at_least(f"{key}.weight_decay", self.weight_decay, 0)
        check_above(f"{key}.clamp_norm_factor", self.clamp_norm_factor, 0)
        check_at_least(f"{key}.kl_factor", self.kl_factor, 0)
        check_at_least(f"{key}.loss_threshold", self.loss_threshold, 0)


@dataclass
class ModelConfig:
    """Where the model is, which layers are edited, and with which numbers.

    Attributes:
        name: in the run's name and in the tables.
        path: name on the Hugging Face hub, local folder, GGUF file, or ``bundled`` (the tiny
            GPT-2).
        layers: the decoder layers that editors edit, those with layers of their own apart.
        second_moment_weight: lambda, the weight of ordinary keys in MEMIT and its relatives.
        editors: numbers of an editor that belong to this model, by the editor's name. Every editor
            has ``layers`` and ``values`` (what of ``model.values`` is otherwise with it); the
            editor's file may refer to more, such as ``rome.whiten``.
        revision: of the model on the hub.
        shape: a configuration of transformers with ``model_type``: the weights are then random, for
            timing, and only the tokenizer comes from ``path``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        ability_tasks: what ``probes.ability`` asks unless it says otherwise.
        matmul_precision: of products of float32 matrices: ``highest``, ``high`` (TF32 on a GPU) or
            ``medium`` (bfloat16 where the device can), see ``torch.set_float32_matmul_precision``.
        trust_remote_code: run code that comes with the model.
    """

    name: str
    path: str
    layers: list[int]
    values: ValueSolverConfig
    second_moment_weight: float
    editors: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    shape: dict[str, Any] | None = None
    dtype: str = "float32"
    matmul_precision: str = "highest"
    modules: ModulesConfig = field(default_factory=ModulesConfig)
    ability_tasks: list[str] = field(default_factory=list)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)
        check_layers("model.layers", self.layers)
        self.values.check("model.values")
        check_above("model.second_moment_weight", self.second_moment_weight, 0)
