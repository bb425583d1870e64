"""Trackers: what they are sent, and a run that is watched by TensorBoard."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sphere_bench.cli import main
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.stream import trackers as tracking
from sphere_bench.stream.recorded_columns import DeclaredBy, RunTables
from sphere_bench.stream.trackers import check_trackers, measurements, open_trackers

NAMES = ("steps", "layers")
QUICK = (
    "model.values.steps=3",
    "values.contexts=['Nobody knew why. {}']",
    "evaluation.seen=2",
    "edits.total=4",
    "edits.batch_size=2",
)


class Recorded:
    """A tracker that remembers, and fails at a step."""

    name = "recorded"

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.logged, self.config = fails_at, {}, {}
        self.finished = False

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("nobody listens")
        self.logged[step] = values

    def finish(self) -> None:
        self.finished = True


TABLES = RunTables(
    [
        DeclaredBy(
            "mine",
            "mine",
            Declared(
                step=(Column("he_ratio", "real", "energy"),),
                scope=(Column("efficacy", "real", "a score"),),
                layer=(Column("drift", "real", "how far"),),
            ),
        )
    ]
)


def rows(*scores: float, **layer: Any) -> dict[str, list[dict[str, Any]]]:
    """A step's rows: a scope for each score, one layer."""
    columns = TABLES.columns
    empty = {name: {c.column.name: None for c in columns if c.table == name} for name in NAMES}
    position = {"step": 3, "edits": 30}
    return {
        "steps": [
            {**empty["steps"], **position, "scope": scope, "efficacy": score, "he_ratio": 1.5}
            for scope, score in zip(("batch", "seen"), scores, strict=False)
        ],
        "layers": [{**empty["layers"], **position, **layer}],
    }


def test_numbers_are_named_by_scope_by_layer_or_by_themselves():
    found = measurements(TABLES, rows(90.0, math.nan, layer=4, drift=0.1))
    assert found == {
        "batch/efficacy": 90.0,
        "edits": 30,
        "he_ratio": 1.5,
        "layer_4/drift": 0.1,
    }


def test_what_is_a_steps_own_is_sent_once():
    sent = measurements(TABLES, rows(90.0, 80.0, layer=4))
    assert {name for name in sent if "/" in name} == {"batch/efficacy", "seen/efficacy"}


def test_without_trackers_there_is_nothing_to_call(tmp_path):
    with open_trackers([], tmp_path, {}, TABLES) as track:
        assert track is None


def test_a_tracker_gets_the_configuration_and_the_steps_and_is_finished(tmp_path, monkeypatch):
    tracker = Recorded()
    monkeypatch.setattr(tracking, "_start", lambda name, folder: tracker)
    with open_trackers(
        ["wandb"], tmp_path, {"a": {"b": 1, "c": [2, 3]}, "d": None}, TABLES
    ) as track:
        assert track is not None
        track(0, {"steps": [], "layers": []})
        track(1, rows(layer=2, drift=4.0))
    assert tracker.config == {"a.b": 1, "a.c": "[2, 3]", "d": "None"}
    assert tracker.logged == {0: {}, 1: {"layer_2/drift": 4.0}}
    assert tracker.finished


def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    trackers = {"wandb": Recorded(fails_at=1), "mlflow": Recorded()}
    monkeypatch.setattr(tracking, "_start", lambda name, folder: trackers[name])
    with (
        caplog.at_level(logging.WARNING),
        open_trackers(["wandb", "mlflow"], tmp_path, {}, TABLES) as track,
    ):
        assert track is not None
        for step in range(3):
            track(step, {"steps": [], "layers": []})
    assert [list(tracker.logged) for tracker in trackers.values()] == [[0], [0, 1, 2]]
    assert "left out from here on: nobody listens" in caplog.text


def test_a_tracker_that_cannot_start_is_told(tmp_path, monkeypatch):
    def refuse(name: str, folder: Path) -> Recorded:
        raise RuntimeError("no login")

    monkeypatch.setattr(tracking, "_start", refuse)
    with (
        pytest.raises(SphereBenchError, match="trackers=wandb cannot start: no login"),
        open_trackers(["wandb"], tmp_path, {}, TABLES),
    ):
        pass


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SphereBenchError, match=r"pip install 'sphere-bench\[mlflow\]'"):
        check_trackers(["mlflow"])


def test_an_unknown_tracker_is_told(tmp_path, capsys):
    assert main(["run", f"run.root={tmp_path}", "trackers=[tensorboard,abacus]"]) == 2
    assert "trackers=abacus: must be one of tensorboard, wandb, mlflow" in capsys.readouterr().err


def test_a_watched_run_has_the_same_name_and_its_numbers_in_tensorboard(tmp_path):
    assert main(["run", f"run.root={tmp_path}", *QUICK, "trackers=tensorboard"]) == 0
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder / TensorBoardTracker.name)).Reload()
    assert [event.step for event in events.Scalars("seen/efficacy")] == [0, 1, 2]
    assert events.Scalars("he_ratio")[0].value == 1
    # The same run unwatched: it is there already.
    assert main(["run", f"run.root={tmp_path}", *QUICK]) == 0
    assert list(tmp_path.iterdir()) == [folder]
