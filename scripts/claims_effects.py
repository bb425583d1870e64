"""What SPHERE changes in the runs of the claims: differences of pairs, and what they say."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas
from scipy import stats

from sphere_bench.errors import SphereBenchError
from sphere_bench.report.ability_tables import ABILITIES, asked, latest_ability
from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.gain_tables import sphere_pairs
from sphere_bench.report.intervals import holm_adjusted, mean_with_interval
from sphere_bench.report.reading import Run

SCOPE = "seen"
#: A test is made with so many pairs and not with fewer.
PAIRS = 3
#: In the place of an editor: the mean over the editors of the tests, as the poster has it.
AVERAGE = "average"
PERPLEXITY = ("perplexity", "log_ratio")
#: The measure and metric that decide a claim, each with a family of tests of its own.
DECIDING = (("success", "score"), PERPLEXITY)

Pair = tuple[Run, Run]
Quantity = tuple[str, str]


def effects(settings: Sequence[Setting], editors: Sequence[str]) -> pandas.DataFrame:
    """What SPHERE changes: a row for each editor, variant, measure and metric.

    ``points`` is the mean over pairs of runs, with SPHERE less without it, at the end of their
    stream: of scores and abilities in points, of perplexity the natural logarithm of the ratio. It
    is empty where a run of a pair has no such number. ``low`` and ``high`` are Student's 95 %
    interval over the pairs, ``p_holm`` the two-sided p of the same t by Holm over the tests of its
    family, empty with fewer than three pairs. A test that is still missing counts in its family.

    Args:
        editors: those that a test is planned for.

    Raises:
        SphereBenchError: the runs of a pair differ in what both must have.
    """
    rows: list[dict[str, Any]] = []
    for setting in settings:
        arms = {(arm.editor, arm.variant): _pairs(setting, arm) for arm in setting.arms}
        for (editor, variant), pairs in arms.items():
            rows += [
                {"dataset": setting.dataset, "editor": editor, "variant": variant, **row}
                for row in _differences([[pair] for pair in pairs.values()])
            ]
        for variant in setting.variants:
            tested = [arms.get((editor, variant), {}) for editor in editors]
            seeds = sorted(set.intersection(*map(set, tested))) if tested else []
            rows += [
                {"dataset": setting.dataset, "editor": AVERAGE, "variant": variant, **row}
                for row in _differences([[pairs[seed] for pairs in tested] for seed in seeds])
            ]
    columns = ["dataset", "editor", "variant", "measure", "metric", "edits", "seeds", "points"]
    table = pandas.DataFrame(rows, columns=[*columns, "low", "high", "p_holm"])
    return table.assign(p_holm=_adjusted(table, len(editors)))


def _pairs(setting: Setting, arm: Arm) -> dict[int, Pair]:
    """Seed to the two runs, without SPHERE and with it."""
    pairs = {int(pair[1].config["seed"]): pair for pair in sphere_pairs(setting, arm)}
    for without, with_sphere in pairs.values():
        before, after = _alike(without), _alike(with_sphere)
        for name in before:
            if before[name] != after[name]:
                raise SphereBenchError(
                    f"{without.name} and {with_sphere.name} differ in their {name} "
                    f"({before[name]} -> {after[name]}): make both anew"
                )
    return pairs


def _alike(run: Run) -> dict[str, object]:
    """What the runs of a pair have in common beside their configuration."""
    facts = run.provenance
    commit = (facts.get("git") or {}).get("commit")
    return {
        "threads": facts.get("threads"),
        "contexts": facts.get("contexts"),
        "commit": commit,
        "device": (facts.get("device") or {}).get("name"),
    }


def _differences(seeds: Sequence[Sequence[Pair]]) -> Iterator[dict[str, Any]]:
    """Each quantity's difference over seeds; of each seed the mean over its pairs.

    ``p_holm`` is not adjusted yet.
    """
    measured = [[(quantities(a), quantities(b)) for a, b in pairs] for pairs in seeds]
    if not measured:
        return
    total = seeds[0][0][1].progress.total
    for quantity in quantities(seeds[0][0][1]):
        differences = [
            math.fsum(
                _at(with_sphere, quantity, total) - _at(without, quantity, total)
                for without, with_sphere in pairs
            )
            / len(pairs)
            for pairs in measured
        ]
        if not all(map(math.isfinite, differences)):
            differences = [math.nan] * len(differences)
        # What is equal but for the last bits is equal.
        differences = [round(each, 9) for each in differences]
        points, low, high = mean_with_interval(differences)
        measure, metric = quantity
        yield {
            "measure": measure,
            "metric": metric,
            "edits": total,
            "seeds": len(differences),
            "points": points,
            "low": low,
            "high": high,
            "p_holm": p_value(points, high, len(differences)),
        }


def _at(found: dict[Quantity, "pandas.Series[float]"], quantity: Quantity, edits: int) -> float:
    series = found.get(quantity)
    return math.nan if series is None else float(series.get(edits, math.nan))


def quantities(run: Run) -> dict[Quantity, "pandas.Series[float]"]:
    """What a run is compared by, each by the number of edits: measure and metric."""
    found: dict[Quantity, pandas.Series[float]] = {}
    for measure in run.declared.measures:
        scores = run.scores(SCOPE, measure).set_index("edits")
        for metric in run.declared.scores_of(measure):
            if len(values := scores[metric].dropna()):
                found[measure, metric] = values
    found[PERPLEXITY] = run.step_values("perplexity", by="edits").map(math.log)
    for task, metric in asked([run]):
        unedited = latest_ability(run, task, metric, until=0)
        if unedited is not None and not math.isnan(unedited.chance) and not unedited.tells_nothing:
            rows = run.table(ABILITIES).set_index(["task", "metric"]).loc[[(task, metric)]]
            found["ability", f"{task}_{metric}"] = 100 * rows.set_index("edits")["value"]
    return found


def p_value(mean: float, high: float, pairs: int) -> float:
    """Two-sided, of the t whose 95 % interval reaches up to ``high``; NaN with too few pairs."""
    if pairs < PAIRS or high == mean:
        return math.nan
    error = (high - mean) / stats.t.ppf(0.975, pairs - 1)
    return float(2 * stats.t.sf(abs(mean) / error, pairs - 1))


def _adjusted(table: pandas.DataFrame, editors: int) -> "pandas.Series[float]":
    """Holm's p in the place of each; of the average only what decides a claim, one test each."""
    family = pandas.Series(
        [
            measure if (measure, metric) in DECIDING or measure == "ability" else "secondary"
            for measure, metric in zip(table["measure"], table["metric"], strict=True)
        ],
        dtype=object,
    )
    average = table["editor"] == AVERAGE
    p_holm = table["p_holm"].mask(average & family.isin(["secondary", "ability"]))
    for _, rows in table[~average].groupby(family[~average]):
        tested = rows["p_holm"].dropna()
        planned = editors * len(rows[["measure", "metric"]].drop_duplicates())
        missing = [1.0] * max(planned - len(tested), 0)
        p_holm[tested.index] = holm_adjusted([*tested, *missing])[: len(tested)]
    return p_holm


def verdict(measure: str, points: float, p_holm: float) -> str:
    """The protocol's decision about one test."""
    if math.isnan(points):
        return "not measured in all runs"
    if math.isnan(p_holm):
        return "no test"
    if p_holm > 0.05:
        return "no answer"
    more_is_better = measure != PERPLEXITY[0]
    return "better" if (points > 0) == more_is_better else "worse"


def signs_say(coefficients: Sequence[float], planned: int) -> str:
    """What the signs of correlations say of claim 2, over so many runs as are ``planned``."""
    below = sum(each < 0 for each in coefficients)
    counted = f"Below zero in {below} of {len(coefficients)} runs without SPHERE"
    if len(coefficients) < planned:
        return f"{counted}, of {planned} that are to be counted: no answer yet."
    if below == planned:
        return f"{counted}: the claim holds."
    return f"{counted}: " + ("the claim has no answer." if below else "the claim is contradicted.")
