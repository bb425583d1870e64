"""The search on a made-up model, whose scores are a formula."""

from dataclasses import asdict, replace

import pytest

from sphere_bench.calibration.search import Found, Search, Space
from sphere_bench.calibration.settings import NullSpaceRule, Scores, Setting, Trial, Values
from sphere_bench.config.composition import compose_config
from sphere_bench.config.schema.calibration import CalibrationConfig
from sphere_bench.errors import SphereBenchError

WEAK = Values(learning_rate=0.1, weight_decay=0.5, clamp_norm_factor=0.75)
STRONG = Values(learning_rate=0.5, weight_decay=0.001, clamp_norm_factor=4.0)
NULL_SPACES = [NullSpaceRule("absolute", 0.02, 10.0), NullSpaceRule("share", 0.1, 1.0)]
UNEDITED = Scores(0.0, 0.0, 100.0, 20.0, 0.0)
SPACE = Space(
    layers=[(2, 3), (1, 2), (4, 5)],
    values=[WEAK, STRONG],
    second_moment_weights=[1000.0, 300.0, 100.0, 30.0, 10.0],
    null_spaces=NULL_SPACES,
    few=10,
    records=30,
    efficacy=98.0,
)


class MadeUp:
    """Edits take below a lambda that layers and values decide; each smaller one does more harm."""

    def __init__(self, *, editable: bool = True, best: tuple[int, ...] = (1, 2)) -> None:
        self.editable = editable
        self.best = best
        self.trials: list[Trial] = []

    def __call__(self, setting: Setting, records: int) -> Trial:
        scores = self.scores(setting) if self.editable else None
        self.trials.append(Trial(setting, records, scores, None if scores else "broken"))
        return self.trials[-1]

    def scores(self, setting: Setting) -> Scores:
        harm = 1.0 if setting.layers == self.best else 2.0
        harm *= 1.0 if setting.values == STRONG else 1.5
        if setting.null_space is not None:
            works = setting.null_space.rule == "share"
            return Scores(100.0 * works, 80.0, 95.0, 20.0, 0.1)
        assert setting.second_moment_weight is not None
        works = setting.second_moment_weight < 200.0
        drift = harm * 100.0 / setting.second_moment_weight
        return Scores(100.0 if works else 50.0, 80.0, 100.0 - drift, 20.0, drift)


def search(made_up: MadeUp, space: Space = SPACE) -> Found:
    return Search(space, UNEDITED, made_up).run()


def test_the_best_layers_values_lambda_and_null_space_are_found() -> None:
    made_up = MadeUp()
    found = search(made_up)
    assert found.memit is not None and found.alphaedit is not None
    # Halfway between 100, which works, and 300, which does not.
    assert found.memit.setting == Setting((1, 2), STRONG, 170.0)
    assert found.alphaedit.setting == Setting((1, 2), STRONG, None, NULL_SPACES[1])
    assert found.memit.records == found.alphaedit.records == 30
    assert found.memit in made_up.trials


def test_layers_and_values_are_chosen_on_few_records() -> None:
    made_up = MadeUp()
    search(made_up)
    few = [trial.setting for trial in made_up.trials if trial.records == 10]
    assert {setting.layers for setting in few} == {(2, 3), (1, 2), (4, 5)}
    assert {setting.layers for setting in few if setting.values == STRONG} == {(1, 2)}
    everything = {
        (trial.setting.layers, trial.setting.values)
        for trial in made_up.trials
        if trial.records == 30
    }
    assert everything == {((1, 2), STRONG), ((1, 2), WEAK)}


@pytest.mark.parametrize(("records", "last"), [(10, 100.0), (30, 30.0)])
def test_a_sweep_ends_once_one_of_few_or_two_of_all_reach_the_efficacy(
    records: int, last: float
) -> None:
    made_up = MadeUp()
    search(made_up)
    weights = [
        trial.setting.second_moment_weight
        for trial in made_up.trials
        if trial.records == records and trial.setting.null_space is None
    ]
    assert weights[: weights.index(last) + 1] == [
        weight for weight in SPACE.second_moment_weights if weight >= last
    ]
    assert min(weight for weight in weights if weight is not None) == last


def test_a_sweep_ends_where_lambda_is_no_limit() -> None:
    """Nothing reaches the efficacy, and below 100 the drift does not grow any more."""

    class Saturated(MadeUp):
        def scores(self, setting: Setting) -> Scores:
            weight = setting.second_moment_weight or 1.0
            return Scores(50.0, 80.0, 95.0, 20.0, 1.0 / max(weight, 100.0))

    made_up = Saturated()
    search(made_up, replace(SPACE, layers=[(1, 2)], values=[STRONG], null_spaces=[]))
    weights = [trial.setting.second_moment_weight for trial in made_up.trials]
    assert weights == 2 * [1000.0, 300.0, 100.0, 30.0]


@pytest.mark.parametrize("editable", [True, False])
def test_the_announced_costs_are_kept(editable: bool) -> None:
    made_up = MadeUp(editable=editable)
    never = replace(SPACE, efficacy=100.1)
    search(made_up, never)
    assert len(made_up.trials) <= never.most_trials
    solved: dict[tuple[int, Values], int] = {}
    for trial in made_up.trials:
        key = trial.setting.layers[-1], trial.setting.values
        solved[key] = max(solved.get(key, 0), trial.records)
    assert sum(solved.values()) <= never.most_values
    assert editable is (sum(solved.values()) == never.most_values)


def test_where_nothing_can_be_edited_nothing_is_found() -> None:
    assert search(MadeUp(editable=False)) == Found(None, None)


def test_where_nothing_reaches_the_efficacy_the_highest_is_found() -> None:
    space = replace(SPACE, second_moment_weights=[1000.0, 300.0], null_spaces=[])
    found = search(MadeUp(), space)
    assert found.memit is not None and found.memit.scores is not None
    assert found.memit.scores.efficacy == 50.0
    # Of the settings with the same efficacy the one with the least drift.
    assert found.memit.setting == Setting((1, 2), STRONG, 1000.0)
    assert found.alphaedit is None


def test_the_space_of_a_model_is_in_widths_of_its_keys() -> None:
    calibration = CalibrationConfig(
        records=30,
        start=None,
        efficacy=98.0,
        layers=None,
        values=[asdict(WEAK)],
        second_moment_weights=[0.1, 1.0, 3.0],
        null_spaces=[],
        null_space_editor=compose_config(["editor=alphaedit"]).editor,
    )
    space = Space.of(calibration, depth=30, width=1536)
    assert space.second_moment_weights == [4600.0, 1500.0, 150.0]
    assert space.layers[0] == (4, 5, 6, 7, 8)
    assert (space.values, space.few, space.records) == ([WEAK], 10, 30)
    calibration.layers = [[3, 4], [29, 30]]
    with pytest.raises(SphereBenchError, match=r"calibration.layers: \[29, 30\]: .* 0 to 29"):
        Space.of(calibration, depth=30, width=1536)
