"""The blocks of the claims' texts: tables and answers, made from the runs and from nothing else."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas

from scripts.claims_effects import AVERAGE, PAIRS, PERPLEXITY, SCOPE, signs_say, verdict
from scripts.claims_settings import (
    COLLAPSE,
    NOTHING,
    abilities,
    collapses,
    cosines,
    each_setting,
    warnings,
)
from sphere_bench.report.collapse_table import collapse_step
from sphere_bench.report.comparing import WITH_SPHERE, Setting, settings_of
from sphere_bench.report.correlation_tables import each_runs_table
from sphere_bench.report.reading import Run
from sphere_bench.report.tables import (
    NONE,
    Column,
    Row,
    Table,
    label,
    number,
    spread,
    to_markdown,
    with_interval,
    write_number,
    write_p_value,
)

_ARM = ["dataset", "editor", "variant"]


class Found(NamedTuple):
    """What the runs gave.

    Attributes:
        runs: those of the protocol that have ended.
        settings: the same, as they are compared.
        effects: see :func:`scripts.claims_effects.effects`.
        explored: the same of the exploratory sweep.
    """

    runs: Sequence[Run]
    settings: Sequence[Setting]
    effects: pandas.DataFrame
    explored: pandas.DataFrame


def blocks(
    found: Found, planned: Sequence[str], editors: Sequence[str]
) -> Mapping[str, Callable[[], str]]:
    """Each block's name, and what makes it.

    Args:
        planned: names of all runs of the protocol.
        editors: those that a test is planned for.
    """
    settings, table = found.settings, found.effects
    lost = table[table["measure"].isin(["perplexity", "ability"])]
    return {
        # Of the page.
        "runs": lambda: _runs_block(found.runs, planned),
        "answers": lambda: _answers(found, editors),
        "scores": lambda: _scores_block(table),
        "signs": lambda: _signs_block(settings, editors),
        "lost": lambda: _lost_block(settings, lost),
        "angles": lambda: _angles_block(settings),
        "swept": lambda: _scores_block(found.explored),
        # Of what stands behind it.
        "claim1": lambda: _effects_block(_scores(table)),
        "warning": lambda: "\n\n".join(
            each_setting(settings, each) for each in (collapses, warnings)
        ),
        "claim3": lambda: f"{_effects_block(lost)}\n\n{each_setting(settings, abilities)}",
        "cosines": lambda: each_setting(settings, cosines),
        "explored": lambda: _effects_block(_scores(found.explored)),
    }


def _runs_block(runs: Sequence[Run], planned: Sequence[str]) -> str:
    missing = [name for name in planned if name not in {run.name for run in runs}]
    lines = [f"{len(planned) - len(missing)} of {len(planned)} runs have ended."]
    if missing:
        lines.append("Missing: " + ", ".join(f"`{name}`" for name in missing) + ".")
    lines += [f"{run.name}: {remark}." for run in runs for remark in run.incidents]
    return "\n".join(lines)


def _answers(found: Found, editors: Sequence[str]) -> str:
    """What the protocol's rules say to each claim."""
    table = found.effects
    tested = table[(table["variant"] == WITH_SPHERE) & (table["seeds"] >= PAIRS)]
    gained = tested[(tested["measure"] == "success") & (tested["metric"] == "score")]
    lost = tested[tested["measure"] == PERPLEXITY[0]]
    signs = _signs(_correlations(found.settings), editors)
    moved = max(abs(run.step_values("he_ratio").iloc[-1] - 1) for run in found.runs)
    told = [
        f" `{row['metric']}` {_interval(row)} points on average over the editors."
        for _, row in tested[tested["measure"] == "ability"].iterrows()
        if row["editor"] == AVERAGE
    ]
    return "\n".join(
        [
            f"1. **SPHERE improves every editor.** Score of success: {_decided(gained)}.",
            f"2. **Energy goes against quality.** Correlation of the changes from step to step: "
            f"{signs[0].lower()}{signs[1:]} At the end of its run the energy is at most "
            f"{write_number(100 * moved, 2)} % from where it began.",
            f"3. **SPHERE preserves abilities.** Logarithm of perplexity: {_decided(lost)}."
            + "".join(told),
        ]
    )


def _decided(rows: pandas.DataFrame) -> str:
    """The mean over the editors and each editor's verdict, in words."""
    average = rows["editor"] == AVERAGE
    if not average.any():
        return "not all pairs are there yet"
    mean = rows[average].iloc[0]
    each = [f"`{row['editor']}` {_verdict(row)}" for _, row in rows[~average].iterrows()]
    return (
        f"{_interval(mean)} on average over the editors, p {write_p_value(mean['p_holm'])}, "
        f"{_verdict(mean)}; by itself {', '.join(each)}"
    )


def _verdict(row: Row) -> str:
    return verdict(row["measure"], row["points"], row["p_holm"])


def _interval(row: Row) -> str:
    return with_interval(row["points"], row["low"], row["high"], 2)


def _scores_block(table: pandas.DataFrame) -> str:
    """An arm's changes in one row: the headline's metrics, and what the score's says."""
    rows = []
    for _arm, own in table.groupby(_ARM, sort=False):
        measure = "success" if "success" in set(own["measure"]) else "accuracy"
        metrics = own[own["measure"] == measure].set_index("metric", drop=False)
        each = {name: row["points"] for name, row in metrics.iterrows()}
        rows.append({**metrics.loc["score"], **each})
    singles = ("efficacy", "generalization", "specificity")
    columns = [
        label("Measure", "measure"),
        *(number(each.capitalize(), each, sign=True) for each in singles),
        *_effect_columns("Score"),
    ]
    return _arms_block(pandas.DataFrame(rows), columns)


def _lost_block(settings: Sequence[Setting], table: pandas.DataFrame) -> str:
    """An arm's changes in one row: perplexity, abilities that tell something, collapses."""
    rows = []
    for _arm, own in table.groupby(_ARM, sort=False):
        ratio = own[own["measure"] == PERPLEXITY[0]].iloc[0]
        told = [
            f"{row['metric']} {_interval(row)}"
            for _, row in own[own["measure"] == "ability"].iterrows()
        ]
        rows.append({**ratio, "told": ", ".join(told), "collapsed": _collapsed(settings, ratio)})
    columns = [
        *_effect_columns("Perplexity, log ratio"),
        label("Abilities, points", "told"),
        label("Collapsed, without and with", "collapsed"),
    ]
    return _arms_block(pandas.DataFrame(rows), columns)


def _collapsed(settings: Sequence[Setting], row: Row) -> str:
    """Of the runs of the row's arm without SPHERE, and of its own, how many have collapsed."""
    said = []
    for setting in settings:
        for arm in setting.arms_of(row["editor"]) if setting.dataset == row["dataset"] else ():
            if not arm.enabled or arm.variant == row["variant"]:
                steps = [collapse_step(run, setting, COLLAPSE) for run in arm.runs]
                said.append(f"{sum(step is not None for step in steps)} of {len(steps)}")
    return ", ".join(said) or NONE


def _angles_block(settings: Sequence[Setting]) -> str:
    """An arm's cosines and overlap in one row, without what hardly differs."""
    tables = [(setting.dataset, cosines(setting)) for setting in settings]
    rows = [table.rows.assign(dataset=dataset) for dataset, table in tables if table is not None]
    if not rows:
        return NOTHING
    columns = [
        spread("Cosines, standard deviation", "cos_std", 4),
        number("Drift, %", "drift", 0),
        number("Updates in the principal directions, %", "overlap_percent"),
    ]
    frame = pandas.concat(rows, ignore_index=True)
    return _arms_block(frame.assign(overlap_percent=100 * frame["overlap"]), columns)


def _arms_block(frame: pandas.DataFrame, columns: Sequence[Column]) -> str:
    """A row for each arm."""
    if frame.empty:
        return "There is no pair of runs yet."
    arm = [label("Dataset", "dataset"), label("Editor", "editor"), label("SPHERE", "variant")]
    return to_markdown(Table("arms", "", frame, [*arm, *columns]))


def _effect_columns(header: str) -> list[Column]:
    """An effect, and what it says by the protocol's rule."""
    return [
        number("Seeds", "seeds", 0),
        Column(header, _interval),
        Column("p", lambda row: write_p_value(row["p_holm"])),
        Column("", _verdict, numeric=False),
    ]


def _scores(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of the table's rows those about edits: the score of each measure, and all of success."""
    asked = table["measure"].isin(["success", "accuracy", "generation"])
    return table[asked & ((table["measure"] == "success") | (table["metric"] == "score"))]


def _effects_block(rows: pandas.DataFrame) -> str:
    """A row for each effect."""
    columns = [label("Measure", "measure"), label("Metric", "metric"), *_effect_columns("Change")]
    return _arms_block(rows.reset_index(drop=True), columns)


class Correlation(NamedTuple):
    """Of the changes of energy and score from step to step, over one run: Spearman's."""

    dataset: str
    editor: str
    seed: int
    enabled: bool
    coefficient: float


def _correlations(settings: Sequence[Setting]) -> list[Correlation]:
    """Those of the runs that have one."""
    found = []
    for setting in settings:
        for arm in setting.arms:
            for run in arm.runs:
                table = each_runs_table(settings_of([run])[0], SCOPE, of_changes=True)
                row = table.rows[table.rows["metric"] == setting.overall].iloc[0]
                coefficient = float(row["spearman_coefficient"])
                if not math.isnan(coefficient):
                    seed = int(run.config["seed"])
                    place = (setting.dataset, arm.editor, seed, arm.enabled)
                    found.append(Correlation(*place, coefficient))
    return found


def _signs(found: Sequence[Correlation], editors: Sequence[str]) -> str:
    """How often energy and score go against each other, in the runs that count."""
    seeds = defaultdict(set)
    for each in found:
        seeds[each.dataset].add(each.seed)
    counted = [
        each.coefficient
        for each in found
        if not each.enabled and each.editor in editors and len(seeds[each.dataset]) >= PAIRS
    ]
    return signs_say(counted, PAIRS * len(editors))


def _signs_block(settings: Sequence[Setting], editors: Sequence[str]) -> str:
    """Each run's correlation, and what those that count say."""
    found = _correlations(settings)
    arms: dict[tuple[str, str], dict[bool, list[float]]] = {}
    for each in found:
        arm = arms.setdefault((each.dataset, each.editor), {False: [], True: []})
        arm[each.enabled].append(each.coefficient)

    def each_run(enabled: bool) -> Callable[[Row], str]:
        return lambda row: ", ".join(write_number(value, 2, sign=True) for value in row[enabled])

    rows = [{"dataset": arm[0], "editor": arm[1], **own} for arm, own in arms.items()]
    columns = [
        label("Dataset", "dataset"),
        label("Editor", "editor"),
        Column("Each run without SPHERE", each_run(False), numeric=False),
        Column("With it", each_run(True), numeric=False),
    ]
    table = to_markdown(Table("signs", "", pandas.DataFrame(rows), columns))
    return f"{_signs(found, editors)}\n\n{table}"
