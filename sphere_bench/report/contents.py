"""What the report holds, in the order in which a reader wants it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import pandas

from sphere_bench.report import score_figures, weight_figures
from sphere_bench.report.comparing import SCOPES, Setting, differences
from sphere_bench.report.drawing import Drawing
from sphere_bench.report.measures import (
    POOLED,
    correlation_table,
    cosine_table,
    lag_table,
    layer_correlation_table,
    time_table,
    weight_table,
)
from sphere_bench.report.reading import Run
from sphere_bench.report.results import COLLAPSE, collapse_table, gains_table, headline_table
from sphere_bench.report.tables import Table, label, number


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Source:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Folded:
    """What few readers want, behind a line that opens it."""

    summary: str
    items: Sequence["Item"]


Item: TypeAlias = Note | Source | Table | Drawing | Folded
Named = TypeVar("Named", Table, Drawing)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        name: of its anchor.
        title: its heading.
        items: in their order.
        sections: below it.
    """

    name: str
    title: str
    items: Sequence[Item] = ()
    sections: Sequence["Section"] = field(default=())


def contents(runs: Sequence[Run], settings: Sequence[Setting]) -> list[Section]:
    """The report's sections: what was run, and a part for each model and dataset."""
    parts = [
        _part(setting, index if len(settings) > 1 else None)
        for index, setting in enumerate(settings)
    ]
    return [_what_was_run(runs, settings), *parts]


def runs_table(settings: Sequence[Setting]) -> Table:
    """A row a run: what it is, how far it is, and the SPHERE that it used."""
    rows = []
    for setting in settings:
        for arm in setting.arms:
            for run in arm.runs:
                config = run.config
                rows.append(
                    {
                        "model": setting.model,
                        "dataset": setting.dataset,
                        "editor": arm.editor,
                        "sphere": f"α {config['sphere.alpha']:g}, η {config['sphere.eta']:g}"
                        if arm.enabled
                        else "off",
                        "seed": config["seed"],
                        "batch_size": run.progress.batch_size,
                        "edits": run.progress.edits,
                        "state": run.state,
                        "started": run.provenance.get("started_at", ""),
                        "folder": run.name,
                    }
                )
    columns = [
        label("Model", "model"),
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        label("SPHERE", "sphere"),
        number("Seed", "seed", 0),
        number("Batch", "batch_size", 0),
        number("Edits", "edits", 0),
        label("State", "state"),
        label("Folder", "folder"),
    ]
    return Table("runs", "The runs", pandas.DataFrame(rows), columns)


def differences_table(runs: Sequence[Run]) -> Table | None:
    """A row for each choice that differs between runs; None where none does."""
    table = differences(runs)
    if len(runs) < 2 or table.empty or not len(table.columns):
        return None
    rows = []
    for key in table:
        counts = table[key].value_counts(sort=False)
        values = ", ".join(f"{value} ({count})" for value, count in counts.items())
        rows.append({"key": key, "values": values})
    columns = [label("Key", "key"), label("Values (runs)", "values")]
    return Table("differences", "What differs between the runs", pandas.DataFrame(rows), columns)


def _what_was_run(runs: Sequence[Run], settings: Sequence[Setting]) -> Section:
    unfinished = [run for run in runs if not run.ended]
    items: list[Item] = []
    if unfinished:
        items.append(
            Note(
                f"{len(unfinished)} of {len(runs)} runs are unfinished: their numbers are those of "
                "the steps recorded so far."
            )
        )
    items += [Note(f"{run.name}: {incident}.") for run in runs for incident in run.incidents]
    if (table := differences_table(runs)) is not None:
        items.append(table)
    items.append(runs_table(settings))
    origins = [Folded(run.name, [Source(_origin(run))]) for run in runs]
    items.append(Folded("Configuration and provenance of every run", origins))
    return Section("runs", "What was run", items)


def _part(setting: Setting, index: int | None) -> Section:
    """All about one model and dataset; with an index, names are set apart from other parts'."""
    scope, kind = setting.scopes[0], setting.headline
    sections = [
        Section("results", "Results", _results(setting)),
        Section("gain", "What SPHERE gains", _gains(setting, scope)),
        Section("curves", "Over the stream of edits", _curves(setting, scope)),
        Section("retention", "Retention", _drawn(score_figures.retention(setting))),
        Section(
            "energy",
            "Energy and quality",
            _energy(setting, scope),
        ),
        Section(
            "geometry",
            "Geometry of the weights",
            [
                *_geometry(setting),
                weight_figures.norms(setting),
                weight_table(setting),
                cosine_table(setting),
            ],
        ),
        Section("cost", "Where the time went", _cost(setting)),
    ]
    part = Section(
        "part",
        setting.title,
        [Note(f"Headline metrics are {kind}.")],
        sections,
    )
    return part if index is None else _renamed(part, f"{index + 1}-")


def _results(setting: Setting) -> list[Item]:
    items: list[Item] = [
        Note(
            "Mean ± standard deviation over runs that differ in their seed alone. Success is the "
            "share of prompts on which the wanted answer is likelier than the other one, accuracy "
            "that of the wanted tokens being the likeliest of all; score is the harmonic mean. HE "
            "change is that of the mean hyperspherical energy from the unedited model’s."
        )
    ]
    for scope in setting.scopes:
        table = headline_table(setting, scope)
        items.append(replace(table, caption=f"{table.caption}: {SCOPES[scope]}"))
    return items


def _gains(setting: Setting, scope: str) -> list[Item]:
    items: list[Item] = []
    for kind in setting.kinds:
        table = gains_table(setting, scope, kind)
        if table is None:
            return [
                Note("No two of these runs differ in SPHERE alone: run the same with sphere=off.")
            ]
        if kind == setting.headline:
            items.append(score_figures.gains(table))
        items.append(table)
    note = Note(
        "Points are differences of percentages; % is of the value without SPHERE, and does not "
        "exist where that is zero. The paper’s average is its poster’s (arXiv 2510.01172), over "
        "its models, editors and data, in % alone, and without saying of which kind: it is here to "
        "compare with, not a result of these runs."
    )
    return [note, *items]


def _curves(setting: Setting, scope: str) -> list[Item]:
    collapse: list[Item] = [Note(COLLAPSE), collapse_table(setting, scope)]
    if not _is_series(setting, scope):
        return [Note("Evaluated after one step at most: there is no curve to draw."), *collapse]
    scores = [score_figures.curves(setting, each) for each in setting.scopes]
    return [*scores, *_drawn(score_figures.perplexity(setting)), *collapse]


def _is_series(setting: Setting, scope: str) -> bool:
    """Some run was evaluated after two steps or more, the unedited model not counted."""
    return any((run.scores(scope)["step"] > 0).sum() > 1 for run in setting.runs)


def _energy(setting: Setting, scope: str) -> list[Item]:
    if not _is_series(setting, scope):
        few = "Evaluated after one step at most: there is nothing to correlate."
        return [weight_figures.energy(setting), Note(few)]
    items: list[Item] = [
        weight_figures.energy(setting),
        weight_figures.energy_against_quality(setting, scope),
        Note(
            "The unedited model is left out: from it to the first batch quality rises because "
            "anything is edited at all. Pooled correlations are within runs: from each run its "
            "mean is taken first. Intervals and p-values take a run’s steps as independent, which "
            "they are not quite, and are not corrected for their number; levels that both drift "
            "correlate whatever the cause, so the changes are the stricter test. A run of fewer "
            "than four points gives no number, nor do constant ones; fewer than eight in all give "
            "no interval."
        ),
    ]
    for of_changes in (False, True):
        table = correlation_table(setting, scope, of_changes)
        pooled = table.rows[table.rows["run"] == POOLED].reset_index(drop=True)
        name = f"{table.name}-pooled"
        items.append(replace(table, name=name, rows=pooled, emphasized=frozenset()))
        items.append(Folded(f"{table.caption}: each run", [table]))
    by_layer = layer_correlation_table(setting, scope)
    lagged = lag_table(setting, scope)
    folded = [Folded(table.caption, [table]) for table in (by_layer, lagged)]
    return [*items, folded[0], weight_figures.lags(lagged), folded[1]]


def _geometry(setting: Setting) -> list[Item]:
    found = _drawn(weight_figures.cosines(setting), weight_figures.principal_plane(setting))
    missing = Note(
        "These runs have no geometry table, so their distributions of cosines and their principal "
        "planes cannot be drawn; the table below has percentiles."
    )
    return found or [missing]


def _cost(setting: Setting) -> list[Item]:
    table = time_table(setting)
    return [score_figures.time(table), table]


def _drawn(*drawings: Drawing | None) -> list[Item]:
    return [drawing for drawing in drawings if drawing is not None]


def _origin(run: Run) -> str:
    lines = [str(run.folder), ""]
    for facts in (pandas.json_normalize(run.provenance).to_dict("records")[0], run.config):
        lines += [f"{key}: {value}" for key, value in facts.items()]
        lines.append("")
    return "\n".join(lines).rstrip()


def _renamed(section: Section, prefix: str) -> Section:
    def named(item: Named) -> Named:
        return replace(item, name=f"{prefix}{item.name}")

    def rename(item: Item) -> Item:
        if isinstance(item, Folded):
            return replace(item, items=[rename(each) for each in item.items])
        if isinstance(item, Table):
            return named(item)
        return named(item) if isinstance(item, Drawing) else item

    return replace(
        section,
        name=f"{prefix}{section.name}",
        items=[rename(item) for item in section.items],
        sections=[_renamed(each, prefix) for each in section.sections],
    )
