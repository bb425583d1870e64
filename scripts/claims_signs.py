"""Claim 2: in how many runs energy and score go against each other."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from scripts.claims_effects import PAIRS, SCOPE, signs_say
from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.correlation_tables import each_runs_table


class Correlation(NamedTuple):
    """Of the changes of energy and score from step to step, over one run: Spearman's."""

    dataset: str
    editor: str
    variant: str
    enabled: bool
    seed: int
    coefficient: float


def correlations(settings: Sequence[Setting]) -> list[Correlation]:
    """Those of the runs that have one."""
    found = []
    for setting in settings:
        for arm in setting.arms:
            for run in arm.runs:
                table = each_runs_table(settings_of([run])[0], SCOPE, of_changes=True)
                row = table.rows[table.rows["metric"] == setting.overall].iloc[0]
                coefficient = float(row["spearman_coefficient"])
                if not math.isnan(coefficient):
                    place = (setting.dataset, arm.editor, arm.variant, arm.enabled)
                    found.append(Correlation(*place, int(run.config["seed"]), coefficient))
    return found


def signs(found: Sequence[Correlation], editors: Sequence[str]) -> str:
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
