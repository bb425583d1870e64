"""The tables of results/claims, made from the tables of its runs and from nothing else."""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pandas
from scipy import stats

from sphere_bench.errors import SphereBenchError
from sphere_bench.report.ability_tables import ABILITIES, ability_table, asked, latest_ability
from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.correlation_tables import each_runs_table
from sphere_bench.report.early_warning import early_warning_table
from sphere_bench.report.finding import find_runs
from sphere_bench.report.gain_tables import sphere_pairs
from sphere_bench.report.intervals import holm_adjusted, mean_with_interval
from sphere_bench.report.page import write_report
from sphere_bench.report.reading import Run
from sphere_bench.report.run_tables import runs_frame
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
KEPT = ("config.yaml", "progress.json", "provenance.json", "steps", "layers", "abilities")
SCOPE = "seen"
#: The tests that decide: the others are secondary, and a family of their own.
PRIMARY = ("success", "score")
EFFECTS = "effects.csv"
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_tables(
    page: Path, source: Path, planned: Sequence[str], exploratory: Sequence[str] = ()
) -> None:
    """Take over the runs that have ended, and make the page's tables, report and README anew.

    Raises:
        SphereBenchError: no run has ended.
    """
    wanted = {*planned, *exploratory}
    for run in find_runs([str(source)]).runs:
        if run.ended and run.name in wanted:
            _keep(source / run.name, page / "runs" / run.name)
    runs = find_runs([str(page / "runs")]).runs
    settings = settings_of(runs)
    effects(settings).to_csv(page / EFFECTS, index=False, float_format="%.6g")
    report = page / "report.html"
    write_report(contents(runs, settings), report, runs_frame(settings))
    readme = page / "README.md"
    readme.write_text(_filled(readme.read_text(encoding="utf-8"), settings, planned), "utf-8")


def check_tables(page: Path, planned: Sequence[str]) -> list[str]:
    """Where effects.csv and README.md are not what the runs' tables give, a line each.

    Raises:
        SphereBenchError: there are no runs, or a file of the page is not there.
    """
    settings = settings_of(find_runs([str(page / "runs")]).runs)
    try:
        said = {name: (page / name).read_text(encoding="utf-8") for name in (EFFECTS, "README.md")}
    except OSError as error:
        raise SphereBenchError(f"{error.filename}: {error.strerror}: make the tables") from error
    found = {
        EFFECTS: effects(settings).to_csv(index=False, float_format="%.6g"),
        "README.md": _filled(said["README.md"], settings, planned),
    }
    return [
        f"{name}, line {place}: {before!r} is {after!r} by the tables"
        for name in said
        for place, (before, after) in enumerate(
            zip_longest(said[name].splitlines(), found[name].splitlines(), fillvalue=""), start=1
        )
        if before != after
    ]


def effects(settings: Sequence[Setting]) -> pandas.DataFrame:
    """What SPHERE changes: a row for each editor, variant, measure and metric.

    ``points`` is the mean over pairs of runs, with SPHERE less without it, at the last step that
    all of them share: of scores and abilities in points, of perplexity the natural logarithm of the
    ratio. ``low`` and ``high`` are Student's 95 % interval over the pairs, ``p_holm`` the two-sided
    p of the same t, by Holm over the tests of its family; all three are empty for one seed.
    """
    rows = [
        {
            "dataset": setting.dataset,
            "editor": arm.editor,
            "variant": arm.variant,
            **row,
        }
        for setting in settings
        for arm in setting.arms
        for row in _differences(list(sphere_pairs(setting, arm)))
    ]
    columns = ["dataset", "editor", "variant", "measure", "metric", "edits", "seeds", "points"]
    table = pandas.DataFrame(rows, columns=[*columns, "low", "high", "p_holm"])
    primary = (table["measure"] == PRIMARY[0]) & (table["metric"] == PRIMARY[1])
    for family in (primary, ~primary):
        known = table.index[family & table["p_holm"].notna()]
        table.loc[known, "p_holm"] = holm_adjusted(table.loc[known, "p_holm"].to_list())
    return table


def _differences(pairs: Sequence[tuple[Run, Run]]) -> Iterator[dict[str, object]]:
    """Each quantity's difference over the pairs; ``p_holm`` is not adjusted yet."""
    measured = [(quantities(without), quantities(with_sphere)) for without, with_sphere in pairs]
    for quantity in measured[0][1] if measured else ():
        series = [tuple(each[quantity] for each in pair) for pair in measured]
        shared = set.intersection(*(set(each.index) for pair in series for each in pair))
        if not shared - {0}:
            continue
        edits = max(shared)
        values = [float(after[edits] - before[edits]) for before, after in series]
        points, low, high = mean_with_interval(values)
        measure, metric = quantity
        yield {
            "measure": measure,
            "metric": metric,
            "edits": edits,
            "seeds": len(values),
            "points": points,
            "low": low,
            "high": high,
            "p_holm": p_value(points, high, len(values)),
        }


def quantities(run: Run) -> dict[tuple[str, str], "pandas.Series[float]"]:
    """What a run is compared by, each by the number of edits: measure and metric."""
    found: dict[tuple[str, str], pandas.Series[float]] = {}
    for measure in run.declared.measures:
        scores = run.scores(SCOPE, measure).set_index("edits")
        for metric in run.declared.scores_of(measure):
            found[measure, metric] = scores[metric].dropna()
    found["perplexity", "log_ratio"] = run.step_values("perplexity", by="edits").map(math.log)
    for task, metric in asked([run]):
        unedited = latest_ability(run, task, metric, until=0)
        if unedited is not None and not math.isnan(unedited.chance) and not unedited.tells_nothing:
            rows = run.table(ABILITIES).set_index(["task", "metric"]).loc[[(task, metric)]]
            found["ability", f"{task}_{metric}"] = 100 * rows.set_index("edits")["value"]
    return found


def p_value(mean: float, high: float, pairs: int) -> float:
    """Two-sided, of the t whose 95 % interval reaches up to ``high``."""
    if pairs < 2:
        return math.nan
    if high == mean:
        return 1.0 if mean == 0 else 0.0
    error = (high - mean) / stats.t.ppf(0.975, pairs - 1)
    return float(2 * stats.t.sf(abs(mean) / error, pairs - 1))


def _filled(text: str, settings: Sequence[Setting], planned: Sequence[str]) -> str:
    """The README with its blocks made anew."""
    blocks = {
        "runs": _runs_block(settings, planned),
        "claim1": _effects_block(effects(settings)),
        "claim2": _tables_block(settings, _energy_and_score),
        "warning": _tables_block(settings, early_warning_table),
        "claim3": _tables_block(settings, ability_table),
        "angles": _tables_block(settings, _angles),
    }
    return _BLOCK.sub(lambda block: f"{block[1]}{blocks[block[2]]}\n{block[3]}", text)


def _energy_and_score(setting: Setting) -> Table:
    """Each run's correlation of changes, for the metric that the protocol counts."""
    table = each_runs_table(setting, SCOPE, True)
    return replace(table, rows=table.rows[table.rows["metric"] == setting.overall])


def _angles(setting: Setting) -> Table | None:
    weights = weight_table(setting)
    return None if weights is None else cosine_table(weights)


def _runs_block(settings: Sequence[Setting], planned: Sequence[str]) -> str:
    there = {run.name for setting in settings for run in setting.runs}
    missing = [name for name in planned if name not in there]
    lines = [f"{len(planned) - len(missing)} of {len(planned)} runs have ended."]
    if missing:
        lines.append("Missing: " + ", ".join(f"`{name}`" for name in missing) + ".")
    return "\n".join(lines)


def _effects_block(table: pandas.DataFrame) -> str:
    """The headline's effects, and what each of them says by the protocol's rule."""
    rows = table[table["measure"].isin(["success", "accuracy", "generation"])]
    columns = [
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        label("Measure", "measure"),
        label("Metric", "metric"),
        number("Seeds", "seeds", 0),
        number("Edits", "edits", 0),
        Column("Points", lambda row: with_interval(row["points"], row["low"], row["high"])),
        Column("p", lambda row: write_p_value(row["p_holm"])),
        Column("", lambda row: verdict(row["points"], row["p_holm"]), numeric=False),
    ]
    return to_markdown(Table("effects", "What SPHERE changes", rows.reset_index(), columns))


def verdict(points: float, p_holm: float) -> str:
    """The protocol's decision about one test."""
    if math.isnan(p_holm):
        return "one seed: no test"
    if p_holm > 0.05:
        return "no answer"
    return "better" if points > 0 else "worse"


def _tables_block(settings: Sequence[Setting], table_of: Callable[[Setting], Table | None]) -> str:
    tables = [(setting, table_of(setting)) for setting in settings]
    texts = [f"{each.title}\n\n{to_markdown(table)}" for each, table in tables if table is not None]
    return "\n".join(texts) or "Nothing was measured."


def _keep(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.is_file():
            shutil.copy(source, target / name)
