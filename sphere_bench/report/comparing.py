"""Which runs are compared with which, and what they are called."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas

from sphere_bench.config.identity import identity, is_decisive, is_within
from sphere_bench.report.declarations import unique
from sphere_bench.report.reading import Run

SCOPES = {
    "seen": "a fixed-seed sample of all edits so far",
    "batch": "the batch just edited",
    "first": "the first batch, for retention",
    "all": "all edits so far",
}
WITHOUT_SPHERE, WITH_SPHERE = "without SPHERE", "with SPHERE"
# What follows from SPHERE being on or off.
SPHERE_KEYS = ("sphere", "editor.apply")
_LENGTH = "edits.total"
_PROBES, _NO_PROBES, _ABSENT = "probes", "none of these", "absent"

# Keys that start so follow from these choices, unless they differ where the choices are equal.
_CHOICES = {
    "editor.apply": ("sphere.name", "editor.name"),
    "model": ("model.name",),
    "editor": ("editor.name", "model.name"),
    "dataset": ("dataset.name",),
    "edits": ("dataset.name",),
    "statistics": ("model.name",),
    "sphere": ("sphere.name", "editor.name"),
}
_NAMES = ("model.name", "dataset.name", "editor.name", "sphere.name", "seed")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        editor: its name.
        variant: with or without SPHERE, and what else sets it apart from the editor's other arms.
        enabled: SPHERE is on.
        runs: at least one.
    """

    editor: str
    variant: str
    enabled: bool
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        return f"{self.editor} {self.variant}"

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config


@dataclass(frozen=True)
class Setting:
    """Runs of one model on one dataset: their numbers are comparable.

    Attributes:
        model, dataset: names.
        headline: the measure that is shown first, such as ``success``.
        arms: by editor, without SPHERE first.
    """

    model: str
    dataset: str
    headline: str
    arms: Sequence[Arm]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.dataset}"

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def editors(self) -> list[str]:
        return unique(arm.editor for arm in self.arms)

    @property
    def variants(self) -> list[str]:
        """Without SPHERE first."""
        return unique(arm.variant for arm in sorted(self.arms, key=lambda arm: arm.enabled))

    def arms_of(self, editor: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.editor == editor]

    @cached_property
    def scopes(self) -> list[str]:
        """Those with a score in some run, the main one first."""
        scopes = unique(scope for run in self.runs for scope in run.scopes)
        known = [scope for scope in SCOPES if scope in scopes]
        return [*known, *(scope for scope in scopes if scope not in SCOPES)]

    @cached_property
    def layers(self) -> list[int]:
        """Those that some run edits, rising."""
        return sorted({int(each) for run in self.runs for each in run.layers.get("layer", ())})

    @cached_property
    def measures(self) -> list[str]:
        """Those that some run has a score of."""
        return [
            measure
            for measure in unique(each for run in self.runs for each in run.declared.measures)
            if any(len(run.scores(scope, measure)) for run in self.runs for scope in run.scopes)
        ]

    def metrics_of(self, measure: str) -> list[str]:
        """The metrics that have the measure."""
        return unique(each for run in self.runs for each in run.declared.scores_of(measure))

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that have the headline's measure."""
        return self.metrics_of(self.headline)

    @cached_property
    def overall(self) -> str:
        """The metric that sums up the others: the first that no single kind of prompt makes."""
        single = {kind.metric for run in self.runs for kind in run.declared.kinds}
        return next((metric for metric in self.metrics if metric not in single), self.metrics[0])

    def unit(self, measure: str) -> str:
        """Of a measure's scores, ``%`` as a rule."""
        columns = (run.declared.scores_of(measure).values() for run in self.runs)
        return next((column.unit for each in columns for column in each), "")

    @cached_property
    def stages(self) -> list[str]:
        """Of a step, as far as some run timed them."""
        return unique(stage for run in self.runs for stage in run.declared.stages)


def settings_of(runs: Iterable[Run]) -> list[Setting]:
    """The runs, by model, dataset and headline, and in each by arm."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        key = (run.config["model.name"], run.config["dataset.name"], run.headline)
        groups.setdefault(key, []).append(run)
    return [Setting(*key, _arms(group)) for key, group in sorted(groups.items())]


def comparable(run: Run, without: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """What decides a run's numbers and its length.

    Args:
        without: keys, and nodes with all their keys, that may differ nevertheless.
    """
    decisive = {**identity(run.config), _LENGTH: run.config.get(_LENGTH)}
    return tuple(
        (key, str(value))
        for key, value in sorted(decisive.items())
        if not any(is_within(key, each) for each in without)
    )


def differences(runs: Sequence[Run]) -> pandas.DataFrame:
    """What was chosen for each run: a row for each run, a column for each key that differs.

    Keys that follow from another choice are left out: an editor's own numbers differ whenever the
    editor does.
    """
    configs = _probes_by_name(
        pandas.DataFrame([run.config for run in runs], dtype=object).map(_text)
    )
    kept = [name for name in _NAMES if configs[name].nunique() > 1]
    for key in map(str, configs):
        if not is_decisive(key) or key in _NAMES or configs[key].nunique() < 2:
            continue
        choices = next((list(_CHOICES[each]) for each in _CHOICES if is_within(key, each)), [])
        if not choices or configs.groupby(choices)[key].nunique().max() > 1:
            kept.append(key)
    differing: pandas.DataFrame = configs[kept]
    return differing


def _arms(runs: Sequence[Run]) -> list[Arm]:
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(comparable(run, without=["seed"]), []).append(run)
    seeds = [sorted(group, key=lambda run: run.config["seed"]) for group in groups.values()]
    extras = _extras([group[0] for group in seeds])
    arms = []
    for group, extra in zip(seeds, extras, strict=True):
        config = group[0].config
        enabled = bool(config["sphere.enabled"])
        own = config["sphere.name"] if enabled and config["sphere.name"] != "paper" else ""
        details = ", ".join(
            filter(None, [own, *(f"{key}={value}" for key, value in extra.items())])
        )
        variant = WITH_SPHERE if enabled else WITHOUT_SPHERE
        arms.append(
            Arm(
                config["editor.name"],
                f"{variant} ({details})" if details else variant,
                enabled,
                group,
            )
        )
    return sorted(arms, key=lambda arm: (arm.editor, arm.enabled, arm.variant))


def _extras(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """Per run, the last words of the keys in which it differs from others of its editor."""
    extras: list[Mapping[str, str]] = []
    for run in runs:
        alike = [
            other
            for other in runs
            if all(other.config[key] == run.config[key] for key in ("editor.name", "sphere.name"))
        ]
        table = differences(alike)
        own = table.iloc[alike.index(run)].drop("seed", errors="ignore")
        own = own[(own.index != _PROBES) | (own != _NO_PROBES)]
        extras.append({str(key).rpartition(".")[2]: value for key, value in own.items()})
    return extras


def _probes_by_name(configs: pandas.DataFrame) -> pandas.DataFrame:
    """Probes that not all runs have, named in one column instead of all their keys."""
    names = {str(key): str(key).split(".")[1] for key in configs if is_within(str(key), _PROBES)}
    has = {
        name: configs[f"{_PROBES}.{name}._target_"] != _ABSENT
        for name in unique(names.values())
        if f"{_PROBES}.{name}._target_" in configs
    }
    varying = [name for name in has if not has[name].all()]
    if not varying:
        return configs
    kept: pandas.DataFrame = configs.drop(
        columns=[key for key, name in names.items() if name in varying]
    )
    kept[_PROBES] = [
        ", ".join(name for name in varying if has[name][row]) or _NO_PROBES for row in configs.index
    ]
    return kept


def _text(value: object) -> str:
    # NaN: a key that one version of the package has and another lacks.
    return _ABSENT if value != value else str(value)
