"""The stream of edits: its records, what is measured on the way, and where it is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sphere_bench.errors import (
    SphereBenchError,
    check_above,
    check_at_least,
    check_between,
    check_choice,
)
from sphere_bench.schema.checks import check_name


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
        check_name("dataset.name", self.name)
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
        check_at_least("edits.batch_size", self.batch_size, 1)
        check_at_least("edits.start", self.start, 0)
        if self.total is None:
            return
        check_at_least("edits.total", self.total, 1)
        if self.batch_size > self.total:
            raise SphereBenchError(
                f"edits.batch_size={self.batch_size} is larger than edits.total={self.total}: "
                "lower the one or raise the other"
            )


@dataclass
class EvaluationConfig:
    """Who is evaluated, and after which steps."""

    every: int
    seen: int
    first: int
    milestones: list[int]
    tokens_per_batch: int

    def __post_init__(self) -> None:
        check_at_least("evaluation.every", self.every, 1)
        check_at_least("evaluation.seen", self.seen, 0)
        check_at_least("evaluation.first", self.first, 0)
        for milestone in self.milestones:
            check_at_least("evaluation.milestones", milestone, 0)
        check_at_least("evaluation.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class EnergyConfig:
    """Hyperspherical energy."""

    exponent: float
    eps: float

    def __post_init__(self) -> None:
        check_above("energy.exponent", self.exponent, 0)
        check_above("energy.eps", self.eps, 0)


@dataclass
class PerplexityConfig:
    """A fixed text whose perplexity is taken after every evaluated step; no tokens, no probe."""

    tokens: int
    corpus: str

    def __post_init__(self) -> None:
        check_at_least("perplexity.tokens", self.tokens, 0)


@dataclass
class CollapseConfig:
    """Thresholds that end a run early; null is none."""

    efficacy: float | None
    perplexity: float | None

    def __post_init__(self) -> None:
        if self.efficacy is not None:
            check_between("collapse.efficacy", self.efficacy, 0, 100)
        if self.perplexity is not None:
            check_above("collapse.perplexity", self.perplexity, 0)


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
            check_name("run.name", self.name)

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
        check_at_least("checkpoint.every", self.every, 1)
        check_at_least("checkpoint.keep", self.keep, 1)
        for step in self.steps:
            check_at_least("checkpoint.steps", step, 1)
