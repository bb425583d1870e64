"""The blocks of the claims' texts: tables and answers, made from the runs and from nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import pandas

from scripts.claims_effects import AVERAGE, PAIRS, PERPLEXITY, effects, verdict
from scripts.claims_settings import (
    COLLAPSE,
    NOTHING,
    abilities,
    collapses,
    cosines,
    each_setting,
    early_warnings,
    pooled,
    titled,
)
from scripts.claims_signs import Correlation, correlations, signs
from sphere_bench.report.collapse_table import collapse_step
from sphere_bench.report.comparing import WITH_SPHERE, Setting
from sphere_bench.report.gain_tables import sphere_pairs
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

#: Measures of edits; the others are of what the model loses.
SCORES = ("success", "accuracy", "generation", "agreement")
#: Of SmolLM2-135M's down projections: so many directions there are to be suppressed.
KEY_WIDTH = 1536
_ARM = ["dataset", "editor", "variant"]


class Found(NamedTuple):
    """What the runs gave.

    Attributes:
        runs: those of the protocol that have ended.
        settings: the same, as they are compared.
        effects: see :func:`scripts.claims_effects.effects`.
        explored: the same of the exploratory sweep, as they are compared.
    """

    runs: Sequence[Run]
    settings: Sequence[Setting]
    effects: pandas.DataFrame
    explored: Sequence[Setting]


def blocks(
    found: Found, planned: Sequence[str], editors: Sequence[str]
) -> Mapping[str, Callable[[], str]]:
    """Each block's name, and what makes it.

    Args:
        planned: names of all runs of the protocol.
        editors: those that a test is planned for.
    """
    settings, table = found.settings, found.effects
    swept = effects(found.explored, [])
    found_signs = cache(lambda: correlations(settings))
    found_cosines = cache(lambda: [(setting, cosines(setting)) for setting in settings])
    return {
        # Of the page.
        "runs": lambda: _runs_block(found.runs, planned),
        "answers": lambda: _answers(found, found_signs(), editors),
        "scores": lambda: _scores_block(table),
        "signs": lambda: _signs_block(found_signs(), editors),
        "lost": lambda: _lost_block(settings, table),
        "angles": lambda: _angles_block(found_cosines()),
        "swept": lambda: f"{_scores_block(swept)}\n\n{_lost_block(found.explored, swept)}",
        # Of what stands behind it.
        "claim1": lambda: _effects_block(table[table["measure"].isin(SCORES)]),
        "claim2": lambda: each_setting(settings, pooled),
        "warning": lambda: "\n\n".join(
            each_setting(settings, each) for each in (collapses, early_warnings)
        ),
        "claim3": lambda: (
            f"{_effects_block(table[~table['measure'].isin(SCORES)])}\n\n"
            f"{each_setting(settings, abilities)}"
        ),
        "cosines": lambda: titled(found_cosines()),
        "explored": lambda: _effects_block(swept),
    }


def _runs_block(runs: Sequence[Run], planned: Sequence[str]) -> str:
    missing = [name for name in planned if name not in {run.name for run in runs}]
    lines = [f"{len(planned) - len(missing)} of {len(planned)} runs have ended."]
    if missing:
        lines.append("Missing: " + ", ".join(f"`{name}`" for name in missing) + ".")
    lines += [f"{run.name}: {remark}." for run in runs for remark in run.incidents]
    return "\n".join(lines)


def _answers(found: Found, signs_of: Sequence[Correlation], editors: Sequence[str]) -> str:
    """What the protocol's rules say to each claim."""
    table = found.effects
    planned = table["editor"].isin([*editors, AVERAGE]) & (table["variant"] == WITH_SPHERE)
    tested = table[planned & (table["seeds"] >= PAIRS)]
    gained = tested[(tested["measure"] == "success") & (tested["metric"] == "score")]
    lost = tested[tested["measure"] == PERPLEXITY[0]]
    said = signs(signs_of, editors)
    moved = max(abs(run.step_values("he_ratio").iloc[-1] - 1) for run in found.runs)
    asked = [
        f" `{row['metric']}` {_interval(row)} points on average over the editors."
        for _, row in tested[tested["measure"] == "ability"].iterrows()
        if row["editor"] == AVERAGE
    ]
    return "\n".join(
        [
            f"1. **SPHERE improves every editor**: {_decided(gained, 'score of success')}",
            f"2. **Energy goes against quality**: correlation of the changes from step to step "
            f"{said[0].lower()}{said[1:]} At the end of its run the energy is at most "
            f"{write_number(100 * moved, 2)} % from where it began.",
            f"3. **SPHERE preserves abilities**: {_decided(lost, 'logarithm of perplexity')}"
            + "".join(asked),
        ]
    )


def _decided(rows: pandas.DataFrame, quantity: str) -> str:
    """Whether a claim holds for every editor and on average, and by which numbers."""
    average = rows["editor"] == AVERAGE
    if not average.any():
        return "not all pairs are there yet."
    mean = rows[average].iloc[0]
    each = {row["editor"]: _verdict(row) for _, row in rows[~average].iterrows()}
    every = "it holds" if set(each.values()) == {"better"} else "not shown"
    return (
        f"for every editor: {every} ({', '.join(f'`{name}` {each[name]}' for name in each)}); "
        f"on average over them: {_verdict(mean)}, {quantity} {_interval(mean)}, "
        f"p {write_p_value(mean['p_holm'])}."
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
        asked = [
            f"{row['metric']} {_interval(row)}"
            for _, row in own[own["measure"] == "ability"].iterrows()
        ]
        rows.append({**ratio, **_pairs_of(settings, ratio), "asked": ", ".join(asked)})
    columns = [
        Column("Perplexity, without and with", lambda row: row["perplexity"], numeric=False),
        *_effect_columns("Log ratio"),
        label("Collapsed, without and with", "collapsed"),
        label("Abilities, points", "asked"),
    ]
    return _arms_block(pandas.DataFrame(rows), columns)


def _pairs_of(settings: Sequence[Setting], row: Row) -> dict[str, str]:
    """Of the pairs of an arm: mean perplexity at the end, and how many runs have collapsed."""
    ends: list[list[float]] = [[], []]
    collapsed: list[list[bool]] = [[], []]
    for setting in (each for each in settings if each.dataset == row["dataset"]):
        for arm in setting.arms_of(row["editor"]):
            pairs = sphere_pairs(setting, arm) if arm.variant == row["variant"] else ()
            for place, run in (both for pair in pairs for both in enumerate(pair)):
                ends[place].append(math.log(run.step_values("perplexity").iloc[-1]))
                collapsed[place].append(collapse_step(run, setting, COLLAPSE) is not None)
    if not ends[0]:
        return {"perplexity": NONE, "collapsed": NONE}
    means = [math.exp(math.fsum(each) / len(each)) for each in ends]
    return {
        "perplexity": ", ".join(write_number(mean, 0) for mean in means),
        "collapsed": ", ".join(f"{sum(each)} of {len(each)}" for each in collapsed),
    }


def _angles_block(tables: Sequence[tuple[Setting, Table | None]]) -> str:
    """An arm in one row: angles, drift, and what of its updates SPHERE suppresses."""
    rows = [table.rows.assign(dataset=each.dataset) for each, table in tables if table is not None]
    if not rows:
        return NOTHING
    frame = pandas.concat(rows, ignore_index=True)
    frame = frame.assign(share=100 * frame["overlap"], chance=100 * frame["rank"] / KEY_WIDTH)
    columns = [
        spread("Cosines, standard deviation", "cos_std", 4),
        number("Drift, %", "drift", 0),
        number("Updates in the suppressed directions, %", "share"),
        number("By chance, %", "chance"),
    ]
    return _arms_block(frame, columns)


def _arms_block(frame: pandas.DataFrame, columns: Sequence[Column]) -> str:
    """A row for each arm."""
    if frame.empty:
        return NOTHING
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


def _effects_block(rows: pandas.DataFrame) -> str:
    """A row for each effect."""
    columns = [label("Measure", "measure"), label("Metric", "metric"), *_effect_columns("Change")]
    return _arms_block(rows.reset_index(drop=True), columns)


def _signs_block(found: Sequence[Correlation], editors: Sequence[str]) -> str:
    """Each run's correlation, and what those that count say."""
    arms: dict[tuple[str, ...], list[str]] = {}
    for each in found:
        coefficients = arms.setdefault((each.dataset, each.editor, each.variant), [])
        coefficients.append(write_number(each.coefficient, 2, sign=True))
    rows = [{**dict(zip(_ARM, arm, strict=True)), "each": ", ".join(arms[arm])} for arm in arms]
    table = _arms_block(pandas.DataFrame(rows), [label("Spearman, each run", "each")])
    return f"{signs(found, editors)}\n\n{table}"
