"""The search: layers, then the numbers of the value solver, then lambda, then the null space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from sphere_bench.calibration.choice import choose, reaches
from sphere_bench.calibration.layers import candidate_layers
from sphere_bench.calibration.settings import NullSpaceRule, Scores, Setting, Trial, Values
from sphere_bench.config.schema.calibration import CalibrationConfig
from sphere_bench.errors import SphereBenchError

# How many of a sweep's settings have to reach the efficacy before it ends, with few records and
# with all: each further one has a smaller lambda, and so does more damage.
_ENOUGH_OF_FEW, _ENOUGH = 1, 2
# By what factor the drift has to grow from one setting of a sweep to the next. Where it hardly
# does, the update is all that the target values ask for, and a smaller lambda changes nothing.
_GROWTH = 1.3
# How many pairs of layers and values are tried on all records.
_FINALISTS = 2

#: Tries a setting on the first so many records.
TryOut = Callable[[Setting, int], Trial]


@dataclass(frozen=True)
class Space:
    """What is tried.

    Attributes:
        layers: lists of edited layers.
        values: settings of the value solver.
        second_moment_weights: lambda, falling.
        null_spaces: of AlphaEdit.
        few: records in the trials that choose layers and values.
        records: records in the others.
        efficacy: in percent, what has to be reached.
    """

    layers: Sequence[tuple[int, ...]]
    values: Sequence[Values]
    second_moment_weights: Sequence[float]
    null_spaces: Sequence[NullSpaceRule]
    few: int
    records: int
    efficacy: float

    @classmethod
    def of(cls, calibration: CalibrationConfig, depth: int, width: int) -> "Space":
        """What is tried on a model.

        Args:
            calibration: of the configuration.
            depth: decoder layers of the model.
            width: of a key.

        Raises:
            SphereBenchError: the model has no such layers.
        """
        layers = [tuple(each) for each in calibration.layers or candidate_layers(depth)]
        for each in layers:
            if each[-1] >= depth:
                raise SphereBenchError(
                    f"calibration.layers: {list(each)}: the model has layers 0 to {depth - 1}"
                )
        weights = {rounded(width * weight) for weight in calibration.second_moment_weights}
        return cls(
            layers=layers,
            values=[Values(**each) for each in calibration.values],
            second_moment_weights=sorted(weights, reverse=True),
            null_spaces=[NullSpaceRule(**each) for each in calibration.null_spaces],
            few=-(-calibration.records // 3),
            records=calibration.records,
            efficacy=calibration.efficacy,
        )

    @property
    def most_trials(self) -> int:
        """How many trials there are at most."""
        sweeps = len(self.layers) + len(self.values) - 1 + _FINALISTS
        return sweeps * len(self.second_moment_weights) + 1 + len(self.null_spaces)

    @property
    def most_values(self) -> int:
        """How many target values are solved at most."""
        sweeps = len(self.layers) + len(self.values) - 1
        return sweeps * self.few + _FINALISTS * (self.records - self.few)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        memit: the trial of the setting that is chosen; ``None`` if no setting could be edited.
        alphaedit: the same with a null space; ``None`` if none could.
    """

    memit: Trial | None
    alphaedit: Trial | None


class Search:
    """A coordinate search, with few records until layers and values are chosen.

    Args:
        space: what is tried.
        unedited: the scores before all edits.
        try_out: makes a trial.
    """

    def __init__(self, space: Space, unedited: Scores, try_out: TryOut) -> None:
        self.space, self.unedited, self.try_out = space, unedited, try_out

    def run(self) -> Found:
        """Search the whole space."""
        space = self.space
        pairs = self._finalists()
        trials = [
            trial
            for layers, values in pairs
            for trial in self._sweep(layers, values, space.records)
        ]
        best = self._choose(trials)
        if best is None:
            return Found(None, None)
        finer = _finer(best, trials)
        if finer is not None:
            best = self._choose([*trials, self.try_out(finer, space.records)]) or best
        setting = replace(best.setting, second_moment_weight=None)
        spaces = [
            self.try_out(replace(setting, null_space=rule), space.records)
            for rule in space.null_spaces
        ]
        return Found(best, self._choose(spaces))

    def _finalists(self) -> list[tuple[tuple[int, ...], Values]]:
        """The best pairs of layers and values, by few records."""
        space = self.space
        first, *others = space.values
        trials = [
            trial for layers in space.layers for trial in self._sweep(layers, first, space.few)
        ]
        best = self._choose(trials)
        layers = space.layers[0] if best is None else best.setting.layers
        trials += [trial for values in others for trial in self._sweep(layers, values, space.few)]
        pairs: list[tuple[tuple[int, ...], Values]] = []
        while len(pairs) < _FINALISTS and (best := self._choose(trials)) is not None:
            pairs.append((best.setting.layers, best.setting.values))
            trials = [
                trial
                for trial in trials
                if (trial.setting.layers, trial.setting.values) not in pairs
            ]
        return pairs

    def _sweep(self, layers: tuple[int, ...], values: Values, records: int) -> list[Trial]:
        """Trials of falling lambda, until enough reach the efficacy or lambda is no limit."""
        trials: list[Trial] = []
        enough = _ENOUGH if records == self.space.records else _ENOUGH_OF_FEW
        for weight in self.space.second_moment_weights:
            trials.append(self.try_out(Setting(layers, values, weight), records))
            reached = sum(reaches(trial, self.space.efficacy) for trial in trials)
            if reached == enough or _is_saturated(trials):
                break
        return trials

    def _choose(self, trials: Sequence[Trial]) -> Trial | None:
        return choose(trials, self.unedited, self.space.efficacy)


def rounded(number: float) -> float:
    """A number with two digits: more would say more than was measured."""
    return float(f"{number:.2g}")


def _is_saturated(trials: Sequence[Trial]) -> bool:
    """Whether the last setting of a sweep changed the weights hardly more than the one before."""
    drifts = [trial.scores.drift for trial in trials[-2:] if trial.scores is not None]
    return len(drifts) == 2 and drifts[1] < _GROWTH * drifts[0]


def _finer(best: Trial, trials: Sequence[Trial]) -> Setting | None:
    """The best setting with a lambda halfway to the next larger one; ``None`` if it has none."""
    setting = best.setting
    weights = sorted(
        trial.setting.second_moment_weight or 0.0
        for trial in trials
        if (trial.setting.layers, trial.setting.values) == (setting.layers, setting.values)
    )
    above = weights[weights.index(setting.second_moment_weight or 0.0) + 1 :]
    if not above:
        return None
    halfway = sqrt(above[0] * (setting.second_moment_weight or 0.0))
    return replace(setting, second_moment_weight=rounded(halfway))
