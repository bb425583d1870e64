"""What ``sphere-bench calibrate`` searches, and where it writes what it found."""

from dataclasses import dataclass, replace
from typing import Any

from sphere_bench.config.schema import Config
from sphere_bench.config.schema.checks import check_layers
from sphere_bench.config.schema.editing import EditorConfig, SphereConfig
from sphere_bench.errors import (
    SphereBenchError,
    check_above,
    check_at_least,
    check_between,
    check_choice,
)

_VALUES = ("learning_rate", "weight_decay", "clamp_norm_factor")
_NULL_SPACE = ("rule", "threshold", "ridge")


@dataclass
class CalibrationConfig:
    """The records that a model's numbers are searched on, the aim, and the candidates.

    Attributes:
        records: how many are edited; the first third of them in the trials that choose layers and
            values.
        start: valid records of the dataset before the first of them; null takes the last ones of
            the dataset.
        efficacy: in percent, what a setting has to reach to be chosen.
        layers: lists of edited layers; null takes them at the relative depth of published ones.
        values: settings of the value solver, each with ``learning_rate``, ``weight_decay`` and
            ``clamp_norm_factor``; its other numbers are those of ``model.values``.
        second_moment_weights: lambda, in widths of a key.
        null_spaces: each with ``rule``, ``threshold`` and ``ridge`` (AlphaEdit's L2).
        null_space_editor: the editor that they are tried with.
    """

    records: int
    start: int | None
    efficacy: float
    layers: list[list[int]] | None
    values: list[dict[str, float]]
    second_moment_weights: list[float]
    null_spaces: list[dict[str, Any]]
    null_space_editor: EditorConfig

    def __post_init__(self) -> None:
        check_at_least("calibration.records", self.records, 1)
        if self.start is not None:
            check_at_least("calibration.start", self.start, 0)
        check_between("calibration.efficacy", self.efficacy, 0, 100)
        for layers in self.layers or []:
            check_layers("calibration.layers", layers)
        _check_names("calibration.values", self.values, _VALUES)
        _check_names("calibration.null_spaces", self.null_spaces, _NULL_SPACE)
        for rule in self.null_spaces:
            check_choice("calibration.null_spaces.rule", rule["rule"], ("absolute", "share"))
        for weight in self.second_moment_weights:
            check_above("calibration.second_moment_weights", weight, 0)
        for name in ("layers", "values", "second_moment_weights"):
            if getattr(self, name) == []:
                raise SphereBenchError(f"calibration.{name}=[]: name at least one candidate")


@dataclass(kw_only=True)
class CalibrateConfig(Config):
    """The configuration of a calibration: a run's, and what is searched.

    Attributes:
        out: the model's YAML file, FOLDER/model/NAME.yaml, for ``--config-dir FOLDER`` and
            ``model=NAME``; null is ``calibrated/model/NAME.yaml``, NAME being the last part of
            ``model.path`` and ``-calibrated``.
    """

    calibration: CalibrationConfig
    out: str | None

    def sphere_of(self, editor: EditorConfig) -> SphereConfig:
        """SPHERE with the editor's own alpha, unless another than MEMIT's was asked for."""
        if self.sphere.alpha != self.editor.sphere.alpha:
            return self.sphere
        return replace(self.sphere, alpha=editor.sphere.alpha)


def _check_names(key: str, candidates: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    for candidate in candidates:
        if set(candidate) != set(names):
            raise SphereBenchError(f"{key}: {candidate} must have {', '.join(names)}")
