"""What a trial tries, and what it found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Values:
    """The numbers of the value solver that are searched; see ``ValueSolverConfig``."""

    learning_rate: float
    weight_decay: float
    clamp_norm_factor: float


@dataclass(frozen=True)
class NullSpaceRule:
    """AlphaEdit's numbers: which eigenvectors of C are its null space, and L2."""

    rule: str
    threshold: float
    ridge: float


@dataclass(frozen=True)
class Setting:
    """Numbers of a model that are tried together.

    Attributes:
        layers: that are edited.
        values: of the value solver.
        second_moment_weight: lambda; the trial is then one of MEMIT.
        null_space: the trial is then one of AlphaEdit.
    """

    layers: tuple[int, ...]
    values: Values
    second_moment_weight: float | None = None
    null_space: NullSpaceRule | None = None

    def __str__(self) -> str:
        values = self.values
        parts = [
            f"layers {self.layers[0]}-{self.layers[-1]}",
            f"rate {values.learning_rate:g}",
            f"decay {values.weight_decay:g}",
            f"clamp {values.clamp_norm_factor:g}",
        ]
        if self.second_moment_weight is not None:
            parts.append(f"lambda {self.second_moment_weight:g}")
        if self.null_space is not None:
            rule = self.null_space
            parts.append(f"null space {rule.rule} {rule.threshold:g}, L2 {rule.ridge:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Scores:
    """What is measured after the records of a trial were edited in one batch.

    Attributes:
        efficacy, generalization, specificity: the dataset's headline, in percent; NaN where the
            records have no such prompt.
        perplexity: of ``perplexity.corpus``.
        drift: ||W - W0|| / ||W0||, as a mean over the edited layers.
    """

    efficacy: float
    generalization: float
    specificity: float
    perplexity: float
    drift: float

    def __str__(self) -> str:
        return (
            f"efficacy {self.efficacy:.1f}, generalization {self.generalization:.1f}, "
            f"specificity {self.specificity:.1f}, perplexity {self.perplexity:.3f}, "
            f"drift {self.drift:.4f}"
        )


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting: what was tried.
        records: how many records were edited.
        scores: what was found; ``None`` where the records could not be edited.
        problem: why not.
    """

    setting: Setting
    records: int
    scores: Scores | None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.setting}, {self.records} records: {self.scores or self.problem}"
