"""The metrics of one prompt, of a record and of a set of records.

Definitions as in MEMIT (Meng et al. 2023, https://arxiv.org/abs/2210.07229) for success and the
score, and as in AlphaEdit (Fang et al. 2025, https://arxiv.org/abs/2410.02355) for accuracy. A
value that is not defined, because the record has no such prompt or the prompt no such target, is
NaN, and means leave it out.
"""

import math
from collections.abc import Iterable, Sequence

from sphere_bench.data.records import KINDS, Accuracy, PromptKind

SCORE = "score"
METRICS = (*(kind.metric for kind in KINDS), SCORE)


def success(kind: PromptKind, nll_new: float | None, nll_true: float | None) -> float:
    """1 if the target that should win is the likelier one, else 0; NaN without both targets.

    The kind of the prompt says which one should win: the new one on rewrite and paraphrase
    prompts, the true one on neighbourhood prompts. Equal or NaN likelihoods are no success.
    """
    if nll_new is None or nll_true is None:
        return math.nan
    return float(nll_true < nll_new if kind.wants == "true" else nll_true > nll_new)


def accuracy(matches: Sequence[bool] | None, rule: Accuracy) -> float:
    """How much of a target the model would say; NaN without a target.

    Args:
        matches: for each of the target's tokens whether it is the argmax, at least one.
        rule: ``all_tokens`` is 1 if every token is, else 0; ``mean_tokens`` their share.
    """
    if matches is None:
        return math.nan
    if rule == "all_tokens":
        return float(all(matches))
    return sum(matches) / len(matches)


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def mean_over_records(records: Iterable[Iterable[float]]) -> float:
    """Mean within each record, then over the records that have a value."""
    return mean(mean(values) for values in records)


def mean_of_kind(records: Sequence[Sequence[tuple[str, float]]], kind: PromptKind) -> float:
    """Mean over the prompts of one kind in each record, then over records.

    Args:
        records: for each record its prompts, each with the name of its kind and its value.
        kind: the kind.
    """
    return mean_over_records(
        [value for name, value in record if name == kind.name] for record in records
    )


def scores_of(
    records: Sequence[Sequence[tuple[str, float]]], kinds: Sequence[PromptKind]
) -> dict[str, float]:
    """Each kind's metric and their harmonic mean, ``score``, in percent, by one measure.

    Args:
        records: for each record its prompts, each with the name of its kind and its value, 0 to 1.
        kinds: the kinds of prompts that there are; those that are ``scored`` make the score.
    """
    scores = {kind.metric: 100.0 * mean_of_kind(records, kind) for kind in kinds}
    return {**scores, SCORE: harmonic_mean([scores[kind.metric] for kind in kinds if kind.scored])}


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of numbers that are not negative: 0 if one is 0, NaN if one is NaN or none."""
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    if 0.0 in values:
        return 0.0
    return len(values) / math.fsum(1.0 / value for value in values)
