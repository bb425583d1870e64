"""The tables of results/claims, made from the tables of its runs and from nothing else."""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pandas

from scripts.claims_effects import PAIRS, SCOPE, effects, signs_say, verdict
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.files import write_json
from sphere_bench.report.ability_tables import ability_table
from sphere_bench.report.collapse_table import collapse_table
from sphere_bench.report.comparing import Arm, Setting, settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.correlation_tables import each_runs_table
from sphere_bench.report.early_warning import early_warning_table
from sphere_bench.report.finding import find_runs
from sphere_bench.report.page import write_report
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.run_tables import runs_frame
from sphere_bench.report.score_tables import UNEDITED
from sphere_bench.report.tables import (
    Column,
    Table,
    label,
    number,
    to_markdown,
    with_interval,
    write_p_value,
)
from sphere_bench.report.weight_tables import cosine_table, weight_table

#: What is kept of a run: enough for every number of the page, and small.
TABLES = ("steps", "layers", "abilities")
FILES = ("config.yaml", "progress.json", "provenance.json")
EFFECTS, README = "effects.csv", "README.md"
#: So large may the page be with all that belongs to it.
MEGABYTES = 10
#: What counts as a collapse in these runs.
COLLAPSE = Collapse(perplexity=10.0)
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLACE = re.compile(r"(?<![\w./:~-])/(?:home|mnt|root|tmp|Users|work)/[^\s\"']*")


class Names(NamedTuple):
    """Of the runs.

    Attributes:
        planned: of the protocol.
        explored: those of the sweep, and the run that they are compared with.
        editors: those that a test is planned for.
    """

    planned: Sequence[str]
    explored: Sequence[str]
    editors: Sequence[str]


def write_tables(page: Path, source: Path, names: Names) -> None:
    """Take over the runs that have ended, and make the page's tables, report and README anew.

    Raises:
        SphereBenchError: no run has ended, or two runs of a pair cannot be compared.
    """
    for run in find_runs([str(source)]).runs:
        if run.ended and run.name in {*names.planned, *names.explored}:
            _keep(source / run.name, page / "runs" / run.name)
    runs = find_runs([str(page / "runs")]).runs
    for name, text in _made(page, runs, names).items():
        (page / name).write_text(text, encoding="utf-8")
    planned = _chosen(runs, names.planned)
    settings = settings_of(planned)
    write_report(contents(planned, settings), page / "report.html", runs_frame(settings))


def check_fit_to_publish(page: Path) -> None:
    """Check that the page is small, and that its runs name no place of this machine.

    Raises:
        SphereBenchError: it is too large, or one of them does.
    """
    size = sum(file.stat().st_size for file in page.rglob("*") if file.is_file())
    if size > MEGABYTES * 1e6:
        raise SphereBenchError(f"{page}: {size / 1e6:.1f} MB, more than {MEGABYTES}: keep less")
    for file in (each for name in FILES for each in page.glob(f"runs/*/{name}")):
        if found := _PLACE.search(file.read_text(encoding="utf-8")):
            raise SphereBenchError(
                f"{file} names {found[0]}: make the runs with --model and --data inside the "
                "project's folder"
            )


def check_tables(page: Path, names: Names) -> list[str]:
    """Where effects.csv and README.md are not what the runs' tables give, a line each.

    Raises:
        SphereBenchError: there are no runs, or a file of the page is not there.
    """
    runs = find_runs([str(page / "runs")]).runs
    try:
        said = {name: (page / name).read_text(encoding="utf-8") for name in (EFFECTS, README)}
    except OSError as error:
        raise SphereBenchError(f"{error.filename}: {error.strerror}: make the tables") from error
    found = _made(page, runs, names)
    return [
        f"{name}, line {place}: {before!r} is {after!r} by the tables"
        for name in said
        for place, (before, after) in enumerate(
            zip_longest(said[name].splitlines(), found[name].splitlines(), fillvalue=""), start=1
        )
        if before != after
    ]


def _chosen(runs: Sequence[Run], names: Collection[str]) -> list[Run]:
    return [run for run in runs if run.name in names]


def _made(page: Path, runs: Sequence[Run], names: Names) -> dict[str, str]:
    """The effects, and the README with its blocks made anew, by the names of their files."""
    planned = _chosen(runs, names.planned)
    settings = settings_of(planned)
    explored = settings_of(_chosen(runs, names.explored))
    table = effects(settings, names.editors)
    lost = table[table["measure"].isin(["perplexity", "ability"])]
    blocks = {
        "runs": lambda: _runs_block(planned, names.planned),
        "claim1": lambda: _effects_block(_scores(table)),
        "claim2": lambda: _signs_block(settings, names.editors),
        "warning": lambda: "\n\n".join(
            _each_setting(settings, each) for each in (_collapses, _warnings)
        ),
        "claim3": lambda: f"{_effects_block(lost)}\n\n{_each_setting(settings, _abilities)}",
        "angles": lambda: _each_setting(settings, _angles),
        "explored": lambda: _effects_block(_scores(effects(explored, []))),
    }
    text = (page / README).read_text(encoding="utf-8")
    return {
        EFFECTS: table.to_csv(index=False, float_format="%.6g"),
        README: _BLOCK.sub(lambda block: f"{block[1]}{blocks[block[2]]()}\n{block[3]}", text),
    }


def _runs_block(runs: Sequence[Run], planned: Sequence[str]) -> str:
    missing = [name for name in planned if name not in {run.name for run in runs}]
    lines = [f"{len(planned) - len(missing)} of {len(planned)} runs have ended."]
    if missing:
        lines.append("Missing: " + ", ".join(f"`{name}`" for name in missing) + ".")
    lines += [f"{run.name}: {remark}." for run in runs for remark in run.incidents]
    return "\n".join(lines)


def _scores(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of the table's rows those about edits: the score of each measure, and all of success."""
    asked = table["measure"].isin(["success", "accuracy", "generation"])
    return table[asked & ((table["measure"] == "success") | (table["metric"] == "score"))]


def _effects_block(rows: pandas.DataFrame) -> str:
    """Effects, and what each of them says by the protocol's rule."""
    if rows.empty:
        return "There is no pair of runs yet."
    columns = [
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        label("Measure", "measure"),
        label("Metric", "metric"),
        number("Seeds", "seeds", 0),
        number("Edits", "edits", 0),
        Column("Change", lambda row: with_interval(row["points"], row["low"], row["high"], 2)),
        Column("p", lambda row: write_p_value(row["p_holm"])),
        Column(
            "", lambda row: verdict(row["measure"], row["points"], row["p_holm"]), numeric=False
        ),
    ]
    return to_markdown(Table("effects", "", rows.reset_index(drop=True), columns))


def _signs_block(settings: Sequence[Setting], editors: Sequence[str]) -> str:
    """How often energy and score go against each other, in the runs that count and in others."""
    rows = [row for setting in settings for row in _correlations(setting)]
    table = pandas.DataFrame(rows, columns=["dataset", "editor", "seed", "enabled", "coefficient"])
    known = table[table["coefficient"].notna()]
    counted = known[~known["enabled"] & known["editor"].isin(editors)]
    seeds = counted.groupby("dataset")["seed"].transform("nunique")
    counted = counted[seeds >= PAIRS]
    sentence = signs_say(counted["coefficient"].to_list(), PAIRS * len(editors))
    columns = [
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        Column("SPHERE", lambda row: "with" if row["enabled"] else "without", numeric=False),
        Column("Spearman, each run", lambda row: row["each"], numeric=False),
    ]
    each = (
        known.groupby(["dataset", "editor", "enabled"])["coefficient"]
        .agg(lambda values: ", ".join(f"{value:+.2f}" for value in values))
        .rename("each")
        .reset_index()
    )
    return f"{sentence}\n\n{to_markdown(Table('signs', '', each, columns))}"


def _correlations(setting: Setting) -> Iterator[tuple[str, str, int, bool, float]]:
    """Each run's rank correlation of the changes of energy and score."""
    for arm in setting.arms:
        for run in arm.runs:
            table = each_runs_table(settings_of([run])[0], SCOPE, of_changes=True)
            row = table.rows[table.rows["metric"] == setting.overall].iloc[0]
            seed = int(run.config["seed"])
            yield setting.dataset, arm.editor, seed, arm.enabled, float(row["spearman_coefficient"])


def _each_setting(settings: Sequence[Setting], table_of: Callable[[Setting], Table | None]) -> str:
    tables = [(setting, table_of(setting)) for setting in settings]
    texts = [f"{each.title}\n\n{to_markdown(table)}" for each, table in tables if table is not None]
    return "\n\n".join(texts) or "Nothing was measured."


def _collapses(setting: Setting) -> Table:
    return collapse_table(setting, COLLAPSE)


def _warnings(setting: Setting) -> Table | None:
    table = _by_editor(setting, lambda each: early_warning_table(each, COLLAPSE))
    if table is None:
        return None
    says = table.rows[["collapsed", "judged"]].sum(axis=1) > 0
    return replace(table, rows=table.rows[says]) if says.any() else None


def _abilities(setting: Setting) -> Table | None:
    """Those that tell something; of the others a row says that they do not."""
    table = ability_table(setting)
    if table is None:
        return None
    rows = table.rows[table.rows["chance"].notna()]
    silent = rows["remark"] != ""
    told = rows[silent].drop_duplicates(["task", "metric"]).assign(editor="all", variant="")
    return replace(table, rows=pandas.concat([rows[~silent], told], ignore_index=True))


def _angles(setting: Setting) -> Table | None:
    def cosines(each: Setting) -> Table | None:
        weights = weight_table(each)
        table = None if weights is None else cosine_table(weights)
        if table is None:
            return None
        unedited = table.rows["editor"] == UNEDITED
        return replace(
            table, rows=table.rows.assign(variant=table.rows["variant"].mask(unedited, UNEDITED))
        )

    table = _by_editor(setting, cosines)
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


def _keep(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in TABLES:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, target / name)
    for name in FILES:
        shutil.copy(folder / name, target / name)
    file = target / "provenance.json"
    provenance = json.loads(file.read_text(encoding="utf-8"))
    # What is not kept is not missing.
    kept = [each for each in provenance["columns"] if each["table"] in TABLES]
    write_json(file, {**provenance, "columns": kept})
