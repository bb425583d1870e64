"""What SPHERE gains: paired differences of runs that differ in it alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas

from sphere_bench.report.comparing import SPHERE_KEYS, Arm, Setting, comparable
from sphere_bench.report.intervals import mean_with_interval
from sphere_bench.report.published import poster_gains
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import Column, Row, Table, label, with_interval


class _Pair(NamedTuple):
    """Two runs that differ in SPHERE alone, and their scores by step."""

    without: pandas.DataFrame
    with_sphere: pandas.DataFrame
    ended: bool
    total: int

    @property
    def steps(self) -> set[int]:
        """Those that both have scores of, the unedited model apart."""
        return set(self.without.index) & set(self.with_sphere.index) - {0}


def gains_table(setting: Setting, scope: str, measure: str) -> Table | None:
    """SPHERE's gain in points for each editor, above the poster's; None without a pair of runs.

    Each difference is of two runs with the same seed, records and settings but for SPHERE. They are
    read at the last step that the pairs have in common, pairs that have not ended apart where
    others have; the interval is Student's t over the pairs.
    """
    metrics = setting.metrics_of(measure)
    rows = []
    for arm in setting.arms:
        pairs = [pair for pair in _pairs(setting, arm, scope, measure) if pair.steps]
        row = _row(pairs, metrics)
        if row is not None:
            rows.append({"editor": arm.editor, "variant": arm.variant, **row})
    if not rows:
        return None
    poster = {f"{metric}_points": gain for metric, gain in poster_gains().items()}
    known = {key: gain for key, gain in poster.items() if key in rows[0]}
    below = [{"editor": "the poster’s average", "variant": "", **known}] if known else []
    frame = pandas.DataFrame([*rows, *below])
    alone = "; one seed has no interval" if (frame["pairs"] == 1).any() else ""
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        Column("Seeds", _count("pairs", "of_pairs")),
        Column("Edits", _count("edits", "total")),
        *(_gain(metric) for metric in metrics),
    ]
    return Table(
        f"gain-{measure}",
        f"Gain in {measure} over the same editor without SPHERE, points [95 % interval over "
        f"seeds], scope {scope}{alone}",
        frame,
        columns,
        emphasized=frozenset(range(len(rows), len(frame))),
    )


def sphere_pairs(setting: Setting, arm: Arm) -> Iterator[tuple[Run, Run]]:
    """Runs of the same editor without SPHERE and of the arm: equal but for SPHERE, the seed too.

    Each choice of seed is there once, however often it was run; an arm without SPHERE has no pairs.
    """
    if not arm.enabled:
        return
    baselines = {
        comparable(run, without=SPHERE_KEYS): run
        for other in setting.arms_of(arm.editor)
        for run in other.runs
        if not other.enabled
    }
    for key, run in {comparable(run, without=SPHERE_KEYS): run for run in arm.runs}.items():
        if key in baselines:
            yield baselines[key], run


def _pairs(setting: Setting, arm: Arm, scope: str, measure: str) -> Iterator[_Pair]:
    for runs in sphere_pairs(setting, arm):
        scores = [each.scores(scope, measure).set_index("step") for each in runs]
        ended = all(each.ended for each in runs)
        yield _Pair(scores[0], scores[1], ended, runs[1].progress.total)


def _row(pairs: Sequence[_Pair], metrics: Sequence[str]) -> dict[str, Any] | None:
    """The gains of the pairs at one step; None where there is none that they share."""
    chosen = [pair for pair in pairs if pair.ended] or pairs
    shared = set.intersection(*(pair.steps for pair in chosen)) if chosen else set()
    if not shared:
        return None
    step = max(shared)
    without = pandas.DataFrame([pair.without.loc[step] for pair in chosen])
    with_sphere = pandas.DataFrame([pair.with_sphere.loc[step] for pair in chosen])
    row: dict[str, Any] = {
        "pairs": len(chosen),
        "of_pairs": len(pairs),
        "edits": with_sphere["edits"].iloc[0],
        "total": chosen[0].total,
    }
    for metric in metrics:
        before, after = (
            column_of(each, metric).reset_index(drop=True) for each in (without, with_sphere)
        )
        points, low, high = mean_with_interval((after - before).to_list())
        row |= {f"{metric}_without": before.mean(), f"{metric}_with": after.mean()}
        row |= {f"{metric}_points": points, f"{metric}_low": low, f"{metric}_high": high}
    return row


def _count(key: str, of: str) -> Any:
    """``3``, or ``2 of 3`` where it is not all; the poster has neither."""

    def text(row: Row) -> str:
        if math.isnan(row[key]):
            return ""
        return f"{row[key]:.0f}" if row[key] == row[of] else f"{row[key]:.0f} of {row[of]:.0f}"

    return text


def _gain(metric: str) -> Column:
    def text(row: Row) -> str:
        points, low, high = (row[f"{metric}_{part}"] for part in ("points", "low", "high"))
        # The poster's numbers stand as they are printed.
        return with_interval(points, low, high, digits=2 if math.isnan(row["pairs"]) else 1)

    return Column(metric.capitalize(), text)
