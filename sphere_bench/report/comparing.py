"""Which runs are compared with which, and what they are called."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas

from sphere_bench.composition import is_decisive
from sphere_bench.data.records import HEADLINES
from sphere_bench.report.reading import Run

SCOPES = {
    "seen": "a fixed-seed sample of all edits so far",
    "batch": "the batch just edited",
    "first": "the first batch, for retention",
    "all": "all edits so far",
}
WITHOUT_SPHERE, WITH_SPHERE = "without SPHERE", "with SPHERE"

# A group's keys follow from these choices, unless they differ where the choices are equal.
_CHOICES = {
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
    """Runs of one model on one dataset: their numbers may stand in one table.

    Attributes:
        model, dataset: names.
        headline: what ``efficacy`` and so on are, ``success`` or ``accuracy``.
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
        return list(dict.fromkeys(arm.editor for arm in self.arms))

    @property
    def variants(self) -> list[str]:
        """Without SPHERE first."""
        ordered = sorted(self.arms, key=lambda arm: arm.enabled)
        return list(dict.fromkeys(arm.variant for arm in ordered))

    def arms_of(self, editor: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.editor == editor]

    @cached_property
    def scopes(self) -> list[str]:
        """Those that were evaluated in some run, the main one first."""
        there = {scope for run in self.runs for scope in run.evaluated["scope"]}
        return [scope for scope in SCOPES if scope in there]

    @cached_property
    def layers(self) -> list[int]:
        """Those that some run edits, rising."""
        return sorted({int(layer) for run in self.runs for layer in run.layers["layer"]})

    @cached_property
    def kinds(self) -> list[str]:
        """Success and accuracy, as far as they are defined."""
        return [
            kind
            for kind in HEADLINES
            if any(run.evaluated[f"efficacy_{kind}"].notna().any() for run in self.runs)
        ]


def settings_of(runs: Iterable[Run]) -> list[Setting]:
    """The runs, by model, dataset and headline, and in each by arm."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        key = (run.config["model.name"], run.config["dataset.name"], _headline(run))
        groups.setdefault(key, []).append(run)
    return [Setting(*key, _arms(group)) for key, group in sorted(groups.items())]


def comparable(run: Run, without: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """What decides a run's numbers, but for the keys that start with one of ``without``."""
    return tuple(
        (key, str(value))
        for key, value in sorted(run.config.items())
        if is_decisive(key) and not key.startswith(tuple(without))
    )


def differences(runs: Sequence[Run]) -> pandas.DataFrame:
    """What was chosen for each run: a row a run, a column a key that differs between runs.

    Keys that follow from another choice are left out: an editor's own numbers differ whenever the
    editor does.
    """
    configs = pandas.DataFrame([run.config for run in runs], dtype=object).map(_text)
    kept = [name for name in _NAMES if configs[name].nunique() > 1]
    for key in configs:
        if not is_decisive(str(key)) or key in _NAMES or configs[key].nunique() < 2:
            continue
        choices = list(_CHOICES.get(str(key).partition(".")[0], ()))
        if not choices or configs.groupby(choices)[key].nunique().max() > 1:
            kept.append(str(key))
    return configs[kept]


def _headline(run: Run) -> str:
    rows = run.evaluated
    same = rows["efficacy"].eq(rows["efficacy_success"]) | rows["efficacy"].isna()
    return "success" if rows["efficacy_success"].notna().any() and same.all() else "accuracy"


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
    """Per run, the last parts of the keys that tell it from others of its editor and SPHERE."""
    extras: list[Mapping[str, str]] = []
    for run in runs:
        alike = [
            other
            for other in runs
            if all(other.config[key] == run.config[key] for key in ("editor.name", "sphere.name"))
        ]
        table = differences(alike)
        own = table.iloc[alike.index(run)].drop("seed", errors="ignore")
        extras.append({str(key).rpartition(".")[2]: value for key, value in own.items()})
    return extras


def _text(value: object) -> str:
    # NaN: a key that one version of the package has and another lacks.
    return "absent" if value != value else str(value)
