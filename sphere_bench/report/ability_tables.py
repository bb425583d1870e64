"""General ability: what tasks that no edit is about make of the edited models."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas

from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.declarations import unique
from sphere_bench.report.intervals import mean_with_interval
from sphere_bench.report.reading import Run
from sphere_bench.report.tables import Column, Row, Table, is_missing, label, number, write_number

#: The run's table.
ABILITIES = "abilities"
MEANING = (
    "Tasks of lm-eval, on the same items at every step. The interval of the unedited model, and of "
    "a single run, is 1.96 standard errors over items; that of several runs is Student’s t over "
    "runs. A task tells nothing where the unedited model is not more than two standard errors "
    "above chance, which is the larger of what blind guesses and one and the same answer would "
    "have: there is nothing that edits could take away."
)
_NORMAL = 1.96
_TELLING = 2.0


class Ability(NamedTuple):
    """What one run has of one metric of a task, at one step.

    Attributes:
        edits: records edited by then.
        value, stderr, chance: as in the table; NaN what there is not.
        items: how many were asked.
    """

    edits: int
    value: float
    stderr: float
    chance: float
    items: int

    @property
    def tells_nothing(self) -> bool:
        """Whether this, of the unedited model, is not clearly above chance."""
        margin = 0.0 if math.isnan(self.stderr) else _TELLING * self.stderr
        return self.value - margin <= self.chance


def ability_table(setting: Setting) -> Table | None:
    """Each task's metrics of every arm at its last step with them; None where nothing was asked."""
    rows = [
        _row(arm, task, metric)
        for task, metric in asked(setting.runs)
        for arm in setting.arms
        if any(latest_ability(run, task, metric) for run in arm.runs)
    ]
    if not rows:
        return None
    columns = [
        label("Task", "task"),
        label("Metric", "metric"),
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Runs", "runs", 0),
        number("Edits", "edits", 0),
        number("Items", "items", 0),
        _with_interval("Unedited", "unedited"),
        _with_interval("Edited", "edited"),
        number("Chance", "chance", 3),
        label("Remark", "remark"),
    ]
    caption = "General ability beside the unedited model’s, at the last step with it"
    return Table(ABILITIES, caption, pandas.DataFrame(rows), columns)


def ability_change(run: Run) -> float:
    """Mean change from the unedited model in points, over the tasks that tell something.

    Of each task the first metric with a chance counts. NaN without such a task.
    """
    changes: dict[str, float] = {}
    for task, metric in asked([run]):
        first = latest_ability(run, task, metric, until=0)
        last = latest_ability(run, task, metric)
        if first is None or last is None or math.isnan(first.chance):
            continue
        change = math.nan if first.tells_nothing else 100 * (last.value - first.value)
        changes.setdefault(task, change)
    telling = [change for change in changes.values() if not math.isnan(change)]
    return math.fsum(telling) / len(telling) if telling else math.nan


def latest_ability(run: Run, task: str, metric: str, until: float = float("inf")) -> Ability | None:
    """The last one up to a step."""
    rows = _abilities(run)
    chosen = rows[(rows["task"] == task) & (rows["metric"] == metric) & (rows["step"] <= until)]
    if chosen.empty:
        return None
    last = chosen.sort_values("step").iloc[-1]
    value, stderr, chance = (float(last[name]) for name in ("value", "stderr", "chance"))
    return Ability(int(last["edits"]), value, stderr, chance, int(last["items"]))


def _row(arm: Arm, task: str, metric: str) -> dict[str, Any]:
    found = [
        (latest_ability(run, task, metric, until=0), latest_ability(run, task, metric))
        for run in arm.runs
    ]
    unedited = next((first for first, _ in found if first is not None), None)
    edited = [last for _, last in found if last is not None]
    nothing = unedited is not None and unedited.tells_nothing
    return {
        "task": task,
        "metric": metric,
        "editor": arm.editor,
        "variant": arm.variant,
        "runs": len(edited),
        "edits": max(each.edits for each in edited),
        "items": edited[0].items,
        **_interval("unedited", [unedited] if unedited else []),
        **_interval("edited", edited),
        "chance": edited[0].chance,
        "remark": "tells nothing" if nothing else "",
    }


def _interval(name: str, found: Sequence[Ability]) -> dict[str, float]:
    mean, low, high = mean_with_interval([each.value for each in found])
    if len(found) == 1:
        reach = _NORMAL * found[0].stderr
        low, high = mean - reach, mean + reach
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _with_interval(header: str, key: str) -> Column:
    def text(row: Row) -> str:
        mean, low, high = (write_number(row[f"{key}{part}"], 3) for part in ("", "_low", "_high"))
        return mean if is_missing(row[f"{key}_low"]) else f"{mean} [{low}, {high}]"

    return Column(header, text)


def asked(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Task and metric, in the order in which they were asked."""
    pairs = [
        f"{row.task}\n{row.metric}"
        for run in runs
        for row in _abilities(run)[["task", "metric"]].drop_duplicates().itertuples()
    ]
    for pair in unique(pairs):
        task, metric = pair.split("\n")
        yield task, metric


def _abilities(run: Run) -> pandas.DataFrame:
    needed = ["step", "edits", "task", "metric", "value", "stderr", "chance", "items"]
    table: pandas.DataFrame = run.table(ABILITIES).reindex(columns=needed)
    known: pandas.DataFrame = table.dropna(subset=["step", "value"])
    return known
