"""The stream of edits: its records, what is measured on the way, and where it is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sphere_bench.config.schema.checks import check_name
from sphere_bench.errors import (
    SphereBenchError,
    check_above,
    check_at_least,
    check_between,
    check_choice,
)


@dataclass
class DatasetConfig:
    """What the records of a run are.

    Attributes:
        name: in the run's name and in the tables.
        loader: the loader's class or function (``_target_``) with keys of its own. The package's
            refers to ``path``, ``format``, ``url``, ``split`` and ``target``.
        path: a JSON, JSONL, parquet, CSV or TSV file, a URL of one, a dataset on the hub or
            ``bundled``; null downloads ``url``.
        format: ``counterfact``, ``easyedit``, ``qaedit`` or ``zsre``; ``auto`` decides by the
            fields.
        url: the official download.
        split: of a dataset on the hub that has several.
        target: ZsRE's field with the edit's target, ``answers`` or ``alt``.
        headline: the measure that is reported under a metric's name, ``success`` or ``accuracy``;
            null is the format's own, but accuracy if no record has a true answer.
        on_invalid: ``error`` stops at a record that is wrong, ``skip`` leaves it out with a
            warning.
    """

    name: str
    loader: dict[str, Any]
    path: str | None = None
    format: str = "auto"
    url: str | None = None
    split: str | None = None
    target: str = "answers"
    headline: str | None = None
    on_invalid: str = "error"

    def __post_init__(self) -> None:
        check_name("dataset.name", self.name)
        if "_target_" not in self.loader:
            raise SphereBenchError(
                "dataset.loader._target_ is missing: name the loader's class or function"
            )
        check_choice("dataset.target", self.target, ("answers", "alt"))
        check_choice("dataset.headline", self.headline, ("success", "accuracy", None))
        check_choice("dataset.on_invalid", self.on_invalid, ("error", "skip"))


@dataclass
class EditsConfig:
    """The stream of edits.

    Attributes:
        total: how many edits; null is all there are from ``start`` on. A larger total goes on with
            the same run.
        batch_size: edits in a step.
        start: valid records to leave out first.
        shuffle: edit in an order drawn from ``seed`` instead of the file's.
    """

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
    """Who is evaluated, and after which steps.

    Attributes:
        every: steps between evaluations. Step 0, the last step and milestones are always evaluated.
        seen: records in the sample of all edits so far; 0 leaves the scope out.
        first: records of the first batch, for retention; 0 leaves the scope out.
        milestones: numbers of edits at which all edits so far are evaluated; 0 evaluates all
            records on the unedited model.
        tokens_per_batch: padded tokens in one forward; halved when memory runs out.
        superseded: what becomes of a record whose fact a later edit gives another target, from
            that step on: ``leave_out`` of all scores, or ``score`` as published code does.
    """

    every: int
    seen: int
    first: int
    milestones: list[int]
    tokens_per_batch: int
    superseded: str = "leave_out"

    def __post_init__(self) -> None:
        check_at_least("evaluation.every", self.every, 1)
        check_at_least("evaluation.seen", self.seen, 0)
        check_at_least("evaluation.first", self.first, 0)
        for milestone in self.milestones:
            check_at_least("evaluation.milestones", milestone, 0)
        check_at_least("evaluation.tokens_per_batch", self.tokens_per_batch, 1)
        check_choice("evaluation.superseded", self.superseded, ("leave_out", "score"))


@dataclass
class EnergyConfig:
    """Hyperspherical energy, the sum over pairs of neurons of (distance^2 + eps)^-exponent.

    Attributes:
        exponent: of the energy.
        eps: keeps the energy of two equal neurons finite.
    """

    exponent: float
    eps: float

    def __post_init__(self) -> None:
        check_above("energy.exponent", self.exponent, 0)
        check_above("energy.eps", self.eps, 0)


@dataclass
class PerplexityConfig:
    """A fixed text whose perplexity is taken after every evaluated step.

    Attributes:
        tokens: of the text's beginning; 0 leaves it out.
        corpus: the text, named as in ``statistics.corpus``.
    """

    tokens: int
    corpus: str

    def __post_init__(self) -> None:
        check_at_least("perplexity.tokens", self.tokens, 0)


@dataclass
class CollapseConfig:
    """Thresholds that end a run early, once all that are set have been passed.

    Attributes:
        efficacy: in percent, of the batch just edited; passed when it falls below. null is none.
        perplexity: passed when it is more than this times the unedited model's. null is none.
    """

    efficacy: float | None
    perplexity: float | None

    def __post_init__(self) -> None:
        if self.efficacy is not None:
            check_between("collapse.efficacy", self.efficacy, 0, 100)
        if self.perplexity is not None:
            check_above("collapse.perplexity", self.perplexity, 0)


@dataclass
class RunFolderConfig:
    """Where the run's folder is, and what to do if it holds another run or is in use.

    Attributes:
        root: the folder of the runs' folders.
        name: of the run's folder; null derives it from the choices, the overrides, the seed and a
            hash of what decides results.
        on_mismatch: what happens to another run in that folder: ``error`` shows the difference,
            ``restart`` discards it.
        on_locked: what happens if another process is making the run: ``error``, or ``skip`` leaves
            it alone.
        overrides: filled in: what the command line set.
    """

    root: str
    name: str | None
    on_mismatch: str
    on_locked: str = "error"
    overrides: list[str] | None = None

    def __post_init__(self) -> None:
        check_choice("run.on_mismatch", self.on_mismatch, ("error", "restart"))
        check_choice("run.on_locked", self.on_locked, ("error", "skip"))
        if not self.root.strip():
            raise SphereBenchError("run.root is empty: name a folder, or . for this one")
        if self.name is not None:
            check_name("run.name", self.name)

    @property
    def folder(self) -> Path:
        """``root/name`` of a validated configuration."""
        return Path(self.root).expanduser() / cast(str, self.name)


@dataclass
class ObjectiveConfig:
    """What a run returns to a sweeper: a metric of a scope after the last step.

    Attributes:
        metric: a column of the table ``steps``.
        scope: ``batch``, ``seen``, ``first`` or ``all``.
    """

    metric: str = "score"
    scope: str = "seen"

    def __post_init__(self) -> None:
        for key, value in (("metric", self.metric), ("scope", self.scope)):
            if not value.strip():
                raise SphereBenchError(f"objective.{key} is empty: name a {key}, such as in steps")


@dataclass
class CheckpointConfig:
    """When the run's state is saved.

    Attributes:
        every: steps between checkpoints; the last step has one in any case.
        keep: how many of the latest stay, so that a damaged one has one before it.
        steps: steps that have one as well and keep it, for ``sphere-bench export``.
    """

    every: int
    keep: int
    steps: list[int]

    def __post_init__(self) -> None:
        check_at_least("checkpoint.every", self.every, 1)
        check_at_least("checkpoint.keep", self.keep, 1)
        for step in self.steps:
            check_at_least("checkpoint.steps", step, 1)
