"""Whether a run ends early, while it goes on and when it is taken up again."""

import math
from pathlib import Path

import pytest

from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.evaluation.columns import Column, Table
from sphere_bench.run_folder.folder import Progress, RunFolder
from sphere_bench.run_folder.tables import Recorder
from sphere_bench.stream.early_stopping import EarlyStopping

NAMES = ("efficacy", "perplexity")
STEPS = Table(
    "steps",
    "one row for each step",
    (
        Column("step", "whole", "which"),
        Column("scope", "text", "which"),
        Column("records", "whole", "how many"),
        *(Column(name, "real", "a number") for name in NAMES),
        Column("skipped", "truth", "left out"),
        Column("collapsed", "truth", "ended"),
    ),
)
RUN = dict.fromkeys(("run", "editor", "sphere", "model", "dataset"), "x") | {"alpha": 1, "seed": 0}


def row(
    step: int, efficacy: float | None, perplexity: float | None, **own: object
) -> dict[str, object]:
    filled = {"records": 5, "skipped": False, "collapsed": False}
    numbers = {"efficacy": efficacy, "perplexity": perplexity}
    return {"step": step, "scope": "batch", **filled, **numbers, **own}


@pytest.mark.parametrize(
    "collapse, last, ends",
    [
        (Collapse(), row(1, 0, 1e9), False),
        (Collapse(efficacy=50), row(1, 49, None), True),
        (Collapse(efficacy=50), row(1, 50, None), False),
        (Collapse(efficacy=50), row(1, 0, 9, skipped=True), False),
        (Collapse(efficacy=50), row(1, None, 9, records=0), False),
        (Collapse(perplexity=2), row(1, 90, 21), True),
        (Collapse(perplexity=2), row(1, 90, 20), False),
        (Collapse(perplexity=2), row(1, 90, None), False),  # its probe had no turn
        (Collapse(perplexity=2), row(1, 90, math.nan, collapsed=True), True),
        (Collapse(efficacy=50, perplexity=2), row(1, 10, 19), False),
        (Collapse(efficacy=50, perplexity=2), row(1, 10, 30), True),
    ],
)
def test_a_run_ends_once_all_thresholds_are_passed(
    collapse: Collapse, last: dict[str, object], ends: bool, tmp_path: Path
) -> None:
    live = EarlyStopping(collapse)
    assert not live.reached([row(0, 0, 10)])
    assert live.reached([last]) == ends
    recorder = Recorder(RunFolder(tmp_path), [STEPS], RUN)
    for step, each in enumerate([row(0, 0, 10), last]):
        recorder.commit_step(step, {"steps": [each]}, Progress(step, step, 9, 1, "running"))
    assert EarlyStopping(collapse).resume(RunFolder(tmp_path), 1) == ends
