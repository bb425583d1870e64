"""The claims' tables that each model and dataset has for itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pandas

from scripts.claims_effects import SCOPE
from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.report.ability_tables import ability_table
from sphere_bench.report.collapse_table import collapse_table
from sphere_bench.report.comparing import Arm, Setting, settings_of
from sphere_bench.report.correlation_tables import pooled_table
from sphere_bench.report.early_warning import early_warning_table
from sphere_bench.report.reading import column_of
from sphere_bench.report.score_tables import UNEDITED
from sphere_bench.report.tables import Table, label, number, to_markdown
from sphere_bench.report.weight_tables import cosine_table, weight_table

#: What counts as a collapse in these runs.
COLLAPSE = Collapse(perplexity=10.0)
NOTHING = "Nothing was measured."
_EDITED = ("edits", "edited", "edited_low", "edited_high")


def each_setting(settings: Sequence[Setting], table_of: Callable[[Setting], Table | None]) -> str:
    """Each setting's table, where it has one, below its title."""
    return titled((setting, table_of(setting)) for setting in settings)


def titled(tables: Iterable[tuple[Setting, Table | None]]) -> str:
    """The tables that there are, each below its setting's title."""
    texts = [f"{each.title}\n\n{to_markdown(table)}" for each, table in tables if table is not None]
    return "\n\n".join(texts) or NOTHING


def collapses(setting: Setting) -> Table:
    return collapse_table(setting, COLLAPSE)


def pooled(setting: Setting) -> Table:
    """Energy and score over all runs of the setting: of the changes from step to step."""
    return pooled_table(setting, SCOPE, of_changes=True)


def early_warnings(setting: Setting) -> Table | None:
    table = _by_editor(setting, lambda each: early_warning_table(each, COLLAPSE))
    if table is None:
        return None
    says = table.rows[["collapsed", "judged"]].sum(axis=1) > 0
    return replace(table, rows=table.rows[says]) if says.any() else None


def abilities(setting: Setting) -> Table | None:
    """Those that tell something; of the others only what the unedited model has."""
    table = ability_table(setting)
    if table is None:
        return None
    rows = table.rows[table.rows["chance"].notna()]
    silent = rows["remark"] != ""
    unedited = rows[silent].drop_duplicates(["task", "metric"])
    unedited = unedited.assign(
        editor=UNEDITED, variant="", **dict.fromkeys(["runs", *_EDITED], float("nan"))
    )
    return replace(table, rows=pandas.concat([rows[~silent], unedited], ignore_index=True))


def cosines(setting: Setting) -> Table | None:
    def own(each: Setting) -> Table | None:
        weights = weight_table(each)
        table = None if weights is None else cosine_table(weights)
        if table is None:
            return None
        unedited = table.rows["editor"] == UNEDITED
        return replace(
            table, rows=table.rows.assign(variant=table.rows["variant"].mask(unedited, UNEDITED))
        )

    table = _by_editor(setting, own)
    if table is None:
        return None
    overlaps = {(arm.editor, arm.variant): _overlap(arm) for arm in setting.arms}
    arms = zip(table.rows["editor"], table.rows["variant"], strict=True)
    rows = table.rows.assign(overlap=[overlaps.get(arm) for arm in arms])
    overlap = number("Updates in the principal directions, share", "overlap", 3)
    return replace(table, rows=rows, columns=[*table.columns, overlap])


def _overlap(arm: Arm) -> float:
    """The share of an update's square in what SPHERE suppresses: mean over steps, layers, runs."""
    return float(
        pandas.concat([column_of(run.layers, "subspace_overlap") for run in arm.runs]).mean()
    )


def _by_editor(setting: Setting, table_of: Callable[[Setting], Table | None]) -> Table | None:
    """A table of each editor's own runs, one below the other: editors edit different layers."""
    parts = []
    for editor in setting.editors:
        (own,) = settings_of([run for arm in setting.arms_of(editor) for run in arm.runs])
        table = table_of(own)
        if table is not None:
            parts.append(replace(table, rows=table.rows.assign(editor=editor)))
    if not parts:
        return None
    columns = [each for each in parts[0].columns if each.header != "Editor"]
    rows = pandas.concat([part.rows for part in parts], ignore_index=True)
    return replace(parts[0], rows=rows, columns=[label("Editor", "editor"), *columns])
