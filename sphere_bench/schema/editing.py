"""How a batch is edited: the editor, what it measures, SPHERE, and numbers that are not sound."""

from dataclasses import dataclass
from typing import Any

from sphere_bench.errors import (
    SphereBenchError,
    check_above,
    check_at_least,
    check_between,
    check_choice,
)
from sphere_bench.schema.checks import check_layers, check_name
from sphere_bench.schema.model import DTYPES


@dataclass
class EditorSphereConfig:
    """What SPHERE's paper and its published code use with this editor."""

    alpha: float
    apply: str
    published_apply: str

    def __post_init__(self) -> None:
        check_between("editor.sphere.alpha", self.alpha, 0, 1)
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
        check_name("editor.name", self.name)
        check_layers("editor.layers", self.layers)
        if "_target_" not in self.method:
            raise SphereBenchError("editor.method._target_ is missing: name the editor's class")
        check_choice("editor.method._partial_", self.method.get("_partial_"), (True,))


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
        check_at_least("values.context_tokens", self.context_tokens, 1)
        check_at_least("values.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class StatisticsConfig:
    """Text for key statistics, and how the forwards over it are run.

    ``tokens`` null is ten times the width of the keys, ``precision`` null the model's own.
    """

    corpus: str
    tokens: int | None
    max_length: int
    tokens_per_batch: int
    cache: str | None
    precision: str | None = None  # runs recorded before there was this key can be read

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_at_least("statistics.tokens", self.tokens, 1)
        check_at_least("statistics.max_length", self.max_length, 1)
        check_at_least("statistics.tokens_per_batch", self.tokens_per_batch, 1)
        check_choice("statistics.precision", self.precision, (*DTYPES, None))


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
        check_name("sphere.name", self.name)
        check_between("sphere.alpha", self.alpha, 0, 1)
        check_above("sphere.eta", self.eta, 0)
        check_between("sphere.eta", self.eta, 0, 1)
        check_choice("sphere.basis", self.basis, ("pretrained", "current"))
        check_choice("sphere.rank_rule", self.rank_rule, ("paper", "published-code"))
        check_choice("sphere.apply", self.apply, ("in_loop", "after"))


@dataclass
class NumericsConfig:
    """What becomes of a batch whose numbers are not finite, or whose update is too large."""

    on_nonfinite: str
    largest_update: float | None

    def __post_init__(self) -> None:
        check_choice("numerics.on_nonfinite", self.on_nonfinite, ("stop", "skip", "record"))
        if self.largest_update is not None:
            check_above("numerics.largest_update", self.largest_update, 0)
