"""The choice among trials, against cases decided by hand."""

import math
from dataclasses import replace

import pytest

from sphere_bench.calibration.choice import choose, damage
from sphere_bench.calibration.settings import Scores, Setting, Trial, Values

VALUES = Values(learning_rate=0.5, weight_decay=0.5, clamp_norm_factor=0.75)
UNEDITED = Scores(efficacy=10.0, generalization=10.0, specificity=90.0, perplexity=20.0, drift=0.0)
GOOD = Scores(efficacy=100.0, generalization=80.0, specificity=80.0, perplexity=22.0, drift=0.1)
NAN = math.nan


def trial(name: float, scores: Scores | None) -> Trial:
    """A trial that lambda gives its name."""
    return Trial(Setting((0, 1), VALUES, name), 30, scores)


CASES: dict[str, list[dict[str, float]]] = {
    # The first of each is the one to choose.
    "less specificity lost": [{"specificity": 85.0}, {"specificity": 80.0}],
    "less perplexity": [{"perplexity": 21.0}, {"perplexity": 22.0}],
    "two of damage are chance, and drift decides": [
        {"specificity": 78.0, "drift": 0.1},
        {"specificity": 80.0, "drift": 0.2},
    ],
    "a tenth of drift is nothing, and damage decides": [
        {"specificity": 81.0, "drift": 0.109},
        {"specificity": 80.0, "drift": 0.1},
    ],
    "more than a tenth is something": [
        {"specificity": 80.0, "drift": 0.1},
        {"specificity": 81.0, "drift": 0.111},
    ],
    "more than two are none": [
        {"specificity": 80.0, "drift": 0.2},
        {"specificity": 77.9, "drift": 0.1},
    ],
    "a point of specificity against a percent of perplexity": [
        {"specificity": 78.0, "perplexity": 20.0},
        {"specificity": 80.0, "perplexity": 21.0},
    ],
    "an efficacy beyond the aim is worth nothing": [
        {"efficacy": 98.0, "specificity": 83.0},
        {"efficacy": 100.0, "specificity": 80.0},
    ],
    "below the aim no harmlessness counts": [
        {"efficacy": 98.0},
        {"efficacy": 97.9, "specificity": 90.0, "perplexity": 20.0},
    ],
    "what hardly generalizes is no candidate": [
        {"generalization": 80.0},
        {"generalization": 69.9, "specificity": 90.0},
    ],
    "what generalizes nearly as well is one": [
        {"generalization": 70.0, "specificity": 90.0},
        {"generalization": 80.0},
    ],
    "of equals the one with less drift": [{"drift": 0.05}, {"drift": 0.1}],
    "none reaches the aim: the highest efficacy": [
        {"efficacy": 60.0, "specificity": 10.0},
        {"efficacy": 50.0},
    ],
    "none reaches it, and two are equal: less drift": [
        {"efficacy": 60.0, "drift": 0.05},
        {"efficacy": 60.0, "drift": 0.1},
    ],
    "a perplexity that is no number is the worst": [
        {"perplexity": 1e6},
        {"perplexity": NAN},
    ],
    "without neighbours perplexity alone": [
        {"specificity": NAN, "perplexity": 21.0},
        {"specificity": NAN, "perplexity": 22.0},
    ],
    "without rewordings damage alone": [
        {"generalization": NAN, "specificity": 85.0},
        {"generalization": NAN, "specificity": 80.0},
    ],
    "an efficacy that is no number reaches nothing": [
        {"efficacy": 1.0},
        {"efficacy": NAN, "specificity": 90.0},
    ],
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_choice(case: list[dict[str, float]], reverse: bool) -> None:
    trials = [trial(number, replace(GOOD, **scores)) for number, scores in enumerate(case, 1)]
    best = choose(trials[::-1] if reverse else trials, UNEDITED, 98.0)
    assert best is trials[0]


def test_what_could_not_be_edited_is_not_chosen() -> None:
    failed = trial(1.0, None)
    assert choose([failed], UNEDITED, 98.0) is None
    assert choose([], UNEDITED, 98.0) is None
    poor = trial(2.0, replace(GOOD, efficacy=0.0))
    assert choose([failed, poor], UNEDITED, 98.0) is poor


def test_damage_is_points_and_percent() -> None:
    assert damage(UNEDITED, UNEDITED) == 0.0
    worse = replace(UNEDITED, specificity=87.0, perplexity=20.0 * math.exp(0.05))
    assert damage(worse, UNEDITED) == pytest.approx(8.0)
