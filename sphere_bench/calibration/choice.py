"""Which of the settings that were tried is the best."""

import math
from collections.abc import Sequence

from sphere_bench.calibration.settings import Scores, Trial

#: How many points of generalization a setting may lack to the best of those that reach the aim.
TOLERANCE = 10.0
#: How much more damage than the least counts as equal: on a few dozen records so much is chance.
EQUAL = 2.0
#: By what factor a drift may exceed the least and still count as equal.
EQUAL_DRIFT = 1.1
# Shares of records are rounded.
_ROUNDING = 1e-9


def choose(trials: Sequence[Trial], unedited: Scores, efficacy: float) -> Trial | None:
    """The best of some trials with the same number of records.

    Of those that reach the efficacy, that generalize about as well as the best of them, and that
    do about the least damage, those with about the least drift count: what one batch does to the
    weights adds up over a stream, before scores show it. Of these it is the one with the least
    damage. If none reaches the efficacy, it is the one with the highest.

    Args:
        trials: with the same records.
        unedited: the scores before all edits.
        efficacy: in percent, what has to be reached.

    Returns:
        ``None`` if no trial has scores.
    """
    scored = [(trial, trial.scores) for trial in trials if trial.scores is not None]
    reached = [pair for pair in scored if pair[1].efficacy >= efficacy]
    if not reached:
        ranked = sorted(scored, key=lambda pair: (-_or(pair[1].efficacy, -1.0), pair[1].drift))
        return ranked[0][0] if ranked else None
    best = max(_or(scores.generalization, 0.0) for _, scores in reached)
    carried = [
        pair for pair in reached if _or(pair[1].generalization, 0.0) >= best - TOLERANCE - _ROUNDING
    ]
    costs = [damage(scores, unedited) for _, scores in carried]
    lowest = min(costs)
    mild = [
        (trial, scores.drift, cost)
        for (trial, scores), cost in zip(carried, costs, strict=True)
        if cost <= lowest + EQUAL + _ROUNDING
    ]
    least = min(drift for _, drift, _ in mild)
    equal = [each for each in mild if each[1] <= EQUAL_DRIFT * least]
    return min(equal, key=lambda each: (each[2], each[1]))[0]


def damage(scores: Scores, unedited: Scores) -> float:
    """What edits cost: points of specificity that are lost, and percent of perplexity gained.

    A perplexity that is no number is infinite damage; without neighbours it is perplexity alone.
    """
    growth = 100 * math.log(scores.perplexity / unedited.perplexity)
    lost = unedited.specificity - scores.specificity
    return _or(growth, math.inf) + _or(lost, 0.0)


def reaches(trial: Trial, efficacy: float) -> bool:
    """Whether a trial has the efficacy that is asked for."""
    return trial.scores is not None and trial.scores.efficacy >= efficacy


def _or(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value
