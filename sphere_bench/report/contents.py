"""What the report holds, in the order in which a reader wants it."""

from collections.abc import Sequence
from dataclasses import replace

from sphere_bench.config.identity import flatten
from sphere_bench.report import (
    ability_tables,
    early_warning,
    energy_figures,
    notes,
    score_figures,
    weight_figures,
)
from sphere_bench.report.collapse_table import MEANING, collapse_table
from sphere_bench.report.comparing import SCOPES, Setting
from sphere_bench.report.correlation_tables import (
    each_runs_table,
    lag_table,
    layer_correlation_table,
    pooled_table,
)
from sphere_bench.report.cost import time_figure, time_table
from sphere_bench.report.drawing import Drawing
from sphere_bench.report.gain_tables import gains_table
from sphere_bench.report.in_words import in_words
from sphere_bench.report.items import Folded, Item, Note, Section, Source, with_prefix
from sphere_bench.report.published import published_table
from sphere_bench.report.reading import Run
from sphere_bench.report.run_tables import differences_table, runs_table
from sphere_bench.report.score_tables import (
    beside_scores_table,
    headline_table,
    meanings_table,
    measured_earlier,
)
from sphere_bench.report.weight_tables import cosine_table, weight_table


def contents(
    runs: Sequence[Run], settings: Sequence[Setting], left_out: Sequence[str] = ()
) -> list[Section]:
    """The report's sections: what was run, and one for each model and dataset.

    Args:
        runs, settings: the same runs, see ``settings_of``.
        left_out: why further runs could not be read.
    """
    each = [
        _section(setting, index if len(settings) > 1 else None)
        for index, setting in enumerate(settings)
    ]
    return [_what_was_run(runs, settings, left_out), *each]


def _what_was_run(
    runs: Sequence[Run], settings: Sequence[Setting], left_out: Sequence[str]
) -> Section:
    unfinished = [run for run in runs if not run.ended]
    items: list[Item] = []
    if unfinished:
        items.append(
            Note(
                f"{len(unfinished)} of {len(runs)} runs are unfinished: their numbers are those of "
                "the steps recorded so far."
            )
        )
    items += [Note(f"Left out: {reason}.") for reason in left_out]
    items += [Note(f"{run.name}: {incident}.") for run in runs for incident in run.incidents]
    if (table := differences_table(runs)) is not None:
        items.append(table)
    items.append(runs_table(settings))
    origins = [Folded(run.name, [Source(_origin(run))]) for run in runs]
    items.append(Folded("Configuration and provenance of every run", origins))
    return Section("runs", "What was run", items)


def _section(setting: Setting, index: int | None) -> Section:
    """All about one model and dataset; with an index, its names differ from other sections'."""
    section = Section(
        "part",
        setting.title,
        [
            *(Note(words) for words in [in_words(setting)] if words),
            Note(f"Headline metrics are {setting.headline}."),
        ],
        [
            *(_about_scores(setting, setting.scopes[0]) if _has_scores(setting) else [_NO_SCORES]),
            *_ability(setting),
            Section("energy", "Energy and quality", _energy(setting)),
            Section("geometry", "Geometry of the weights", _geometry(setting)),
            Section("cost", "Where the time went", _cost(setting)),
        ],
    )
    return section if index is None else with_prefix(section, f"{index + 1}-")


_NO_SCORES = Section("results", "Results", [Note("These runs have recorded no headline scores.")])


def _has_scores(setting: Setting) -> bool:
    return bool(setting.scopes and setting.metrics)


def _about_scores(setting: Setting, scope: str) -> list[Section]:
    return [
        Section("results", "Results", _results(setting)),
        Section("gain", "What SPHERE gains", _gains(setting, scope)),
        Section("curves", "Over the stream of edits", _curves(setting, scope)),
        *_early_warning(setting),
        Section("retention", "Retention", _retention(setting)),
    ]


def _results(setting: Setting) -> list[Item]:
    items: list[Item] = [
        Note(
            "Mean ± standard deviation over runs that differ in their seed alone. HE change is "
            "that of the mean hyperspherical energy from the unedited model’s."
        ),
        *(Note(f"{line}.") for line in measured_earlier(setting, setting.scopes[0])),
    ]
    for scope in setting.scopes:
        table = headline_table(setting, scope, setting.measures)
        items.append(replace(table, caption=f"{table.caption}: {SCOPES.get(scope, scope)}"))
    if (beside := beside_scores_table(setting, setting.scopes[0])) is not None:
        items.append(beside)
    meanings = meanings_table(setting)
    items.append(Folded(meanings.caption, [meanings]))
    published = published_table(setting)
    return items if published is None else [*items, Note(notes.PUBLISHED), published]


def _gains(setting: Setting, scope: str) -> list[Item]:
    items: list[Item] = []
    for measure in setting.measures:
        if (table := gains_table(setting, scope, measure)) is not None:
            items += [score_figures.gains(setting, table, measure), table]
    if not items:
        return [Note("No two of these runs differ in SPHERE alone: run the same with sphere=off.")]
    return [Note(notes.GAINS), Note(notes.POSTER), *items]


def _curves(setting: Setting, scope: str) -> list[Item]:
    collapse: list[Item] = [Note(MEANING), collapse_table(setting)]
    if not _is_series(setting, scope, setting.headline):
        return [Note("Evaluated after one step at most: there is no curve to draw."), *collapse]
    others = [
        measure
        for measure in setting.measures
        if measure != setting.headline and _is_series(setting, scope, measure)
    ]
    return [
        *(score_figures.curves(setting, each, setting.headline) for each in setting.scopes),
        *(score_figures.curves(setting, scope, measure) for measure in others),
        score_figures.perplexity(setting) or Note("These runs have measured no perplexity."),
        *collapse,
    ]


def _early_warning(setting: Setting) -> list[Section]:
    table = early_warning.early_warning_table(setting)
    if table is None:
        return []
    lacking = early_warning.too_few_runs(setting)
    texts = [early_warning.MEANING, *([] if lacking is None else [lacking])]
    return [Section("warning", "Early warning", [*map(Note, texts), table])]


def _ability(setting: Setting) -> list[Section]:
    table = ability_tables.ability_table(setting)
    if table is None:
        return []
    return [Section("ability", "General ability", [Note(ability_tables.MEANING), table])]


def _is_series(setting: Setting, scope: str, measure: str) -> bool:
    """Some run was evaluated after two steps or more, the unedited model not counted."""
    return any((run.scores(scope, measure)["step"] > 0).sum() > 1 for run in setting.runs)


def _retention(setting: Setting) -> list[Item]:
    missing = Note(f"These runs have recorded no {setting.headline} of single prompts.")
    others = [measure for measure in setting.measures if _has_prompts_of_its_own(setting, measure)]
    drawn = _drawn(*(score_figures.retention(setting, measure) for measure in others))
    return [score_figures.retention(setting, setting.headline) or missing, *drawn]


def _has_prompts_of_its_own(setting: Setting, measure: str) -> bool:
    """Whether single prompts have the measure in a table other than that of the headline."""
    tables = [
        {run.declared.prompts_of(each)[0] for run in setting.runs}
        for each in (measure, setting.headline)
    ]
    return tables[0] != tables[1]


def _energy(setting: Setting) -> list[Item]:
    figure = energy_figures.energy(setting)
    if figure is None:
        return [Note("These runs have not measured the hyperspherical energy.")]
    if not _has_scores(setting):
        return [figure, Note("There are no scores to correlate it with.")]
    scope = setting.scopes[0]
    if not _is_series(setting, scope, setting.headline):
        few = "Evaluated after one step at most: there is nothing to correlate."
        return [figure, Note(few)]
    items: list[Item] = [
        figure,
        energy_figures.energy_against_quality(setting, scope),
        Note(notes.CORRELATIONS),
        Note(notes.P_VALUES),
    ]
    for of_changes in (False, True):
        each = each_runs_table(setting, scope, of_changes)
        items += [pooled_table(setting, scope, of_changes), Folded(each.caption, [each])]
    by_layer = layer_correlation_table(setting, scope)
    lagged = lag_table(setting, scope)
    folded = [Folded(table.caption, [table]) for table in (by_layer, lagged)]
    return [*items, folded[0], energy_figures.lags(setting, lagged), folded[1]]


def _geometry(setting: Setting) -> list[Item]:
    items: list[Item] = _drawn(
        weight_figures.cosines(setting), weight_figures.principal_plane(setting)
    ) or [
        Note(
            "These runs have no geometry table, so their distributions of cosines and their "
            "principal planes cannot be drawn."
        )
    ]
    items += _drawn(weight_figures.norms(setting))
    weights = weight_table(setting)
    if weights is None:
        return [*items, Note("These runs have not measured the edited weights.")]
    cosines = cosine_table(weights)
    missing = Note("These runs have not measured the cosines between neurons.")
    return [*items, weights, cosines or missing]


def _cost(setting: Setting) -> list[Item]:
    table = time_table(setting)
    return [time_figure(setting, table), table]


def _drawn(*drawings: Drawing | None) -> list[Item]:
    return [drawing for drawing in drawings if drawing is not None]


def _origin(run: Run) -> str:
    shown = run.provenance.keys() - {"columns", "config"}
    facts = {key: value for key, value in run.provenance.items() if key in shown}
    lines = [str(run.folder), ""]
    for each in (flatten(facts), run.config):
        lines += [f"{key}: {value}" for key, value in each.items()]
        lines.append("")
    return "\n".join(lines).rstrip()
