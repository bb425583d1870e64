"""Whose turn it is after a step, and the rows that come of it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sphere_bench.editing.batch import BatchReport, LayerReport
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Declared, Table
from sphere_bench.evaluation.probe import Findings, Moment
from sphere_bench.evaluation.scopes import Scopes
from sphere_bench.stream.measuring import Measurer, ScheduledProbe

OWN = Table("thoughts", "one row for each thought", (Column("thought", "text", "what"),))


class Score:
    """Looks at records."""

    declares = Declared(scope=(Column("efficacy", "real", "a score", "%", shown=True),))

    def measure(self, moment: Moment) -> Findings:
        return Findings(scopes={scope: {"efficacy": len(scope)} for scope in moment.scopes})


class Look:
    """Looks at weights, and has a table of its own and a memory."""

    stage = "looking"
    declares = Declared(
        step=(Column("mood", "real", "how it looks"),),
        layer=(Column("shine", "real", "how bright"),),
        tables=(OWN,),
    )

    def __init__(self) -> None:
        self.turns = 0

    def measure(self, moment: Moment) -> Findings:
        self.turns += 1
        return Findings(
            step={"mood": moment.edits},
            layers={4: {"shine": 0.5}},
            tables={"thoughts": [{"thought": f"at {moment.step}"}]},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"turns": torch.tensor(self.turns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turns = int(state["turns"])


def measurer(records: int = 50, milestones: tuple[int, ...] = (), **every: int) -> Measurer:
    made = {"score": Score(), "look": Look()}
    probes = [ScheduledProbe(name, made[name], each) for name, each in every.items()]
    return Measurer(probes, Scopes(records, 10, first=3, milestones=milestones), [4, 5])


def turns(found: Measurer, column: str, steps: int) -> list[int]:
    rows = {step: found.measure(step, None).tables["steps"][0] for step in range(steps + 1)}
    return [step for step, row in rows.items() if row[column] is not None]


def test_each_probe_has_its_own_cadence_and_the_first_step_the_last_and_milestones():
    found = measurer(95, milestones=(25,), score=4, look=3)
    assert turns(found, "efficacy", 10) == [0, 3, 4, 8, 10]
    assert turns(found, "mood", 10) == [0, 3, 6, 9, 10]


def test_rows_have_every_declared_column_and_what_no_probe_found_is_missing():
    found = measurer(score=2, look=1)
    report = BatchReport({4: LayerReport(1.0, 2.0, 3.0, 7), 5: LayerReport()}, skipped=True)
    report.seconds["values"] = 2.5
    step = found.measure(1, report)
    names = {placed.table: set() for placed in found.tables.columns}
    for placed in found.tables.columns:
        names[placed.table].add(placed.column.name)
    (row,) = step.tables["steps"]
    assert set(row) | {"peak_memory_bytes", "collapsed"} == names["steps"]
    assert (row["scope"], row["records"], row["efficacy"]) == ("batch", 0, None)
    assert (row["mood"], row["skipped"], row["nonfinite"]) == (10, True, False)
    assert (row["seconds_values"], row["seconds_score"]) == (2.5, 0.0)
    assert row["seconds_looking"] > 0
    assert not step.evaluated
    fourth, fifth = step.tables["layers"]
    assert set(fourth) == set(fifth) == names["layers"]
    assert (fourth["shine"], fourth["update_norm"], fourth["rank"]) == (0.5, 2.0, 7)
    assert (fifth["shine"], fifth["rank"]) == (None, None)
    assert step.tables["thoughts"] == [{"step": 1, "edits": 10, "thought": "at 1"}]


def test_a_scope_has_a_row_where_records_are_looked_at():
    step = measurer(score=1, look=1).measure(2, None)
    assert step.evaluated
    assert [(row["scope"], row["records"], row["efficacy"]) for row in step.tables["steps"]] == [
        ("batch", 10, 5),
        ("seen", 20, 4),
        ("first", 3, 5),
    ]
    assert {row["mood"] for row in step.tables["steps"]} == {20}


def test_what_a_probe_does_not_declare_is_refused():
    class Careless(Look):
        declares = Declared()

    found = Measurer([ScheduledProbe("mine", Careless(), 1)], Scopes(10, 5), [4])
    with pytest.raises(SphereBenchError, match=r"probes\.mine gives mood for steps without decl"):
        found.measure(0, None)


@pytest.mark.parametrize(
    "declared, said",
    [
        (Declared(step=(Column("mood", "real", "again"),)), "column mood of steps"),
        (Declared(scope=(Column("records", "whole", "again"),)), "column records of steps"),
        (Declared(tables=(OWN,)), "table thoughts"),
        (Declared(layer=(Column("model", "text", "mine"),)), "column model of layers"),
        (Declared(tables=(Table("layers", "mine", ()),)), "table layers"),
    ],
)
def test_a_name_that_is_declared_twice_is_refused(declared: Declared, said: str) -> None:
    second = SimpleNamespace(declares=declared)
    probes = [ScheduledProbe("look", Look(), 1), ScheduledProbe("second", second, 1)]
    with pytest.raises(SphereBenchError, match=f"the {said} is declared twice"):
        Measurer(probes, Scopes(10, 5), [4])


def test_every_column_says_what_it_means_and_what_there_is_one_of():
    found = measurer(score=1, look=1).tables.described()
    assert all(column["meaning"] for column in found)
    per = {(column["table"], column["name"]): column["per"] for column in found}
    assert per["steps", "efficacy"] == "scope"
    assert per["steps", "mood"] == per["steps", "seconds_keys"] == "step"
    assert per["layers", "shine"] == "layer"
    assert per["thoughts", "thought"] == "row"


def test_a_last_step_is_provisional_if_a_longer_run_makes_or_measures_it_otherwise():
    found = measurer(100, score=2, look=1)
    assert [found.is_provisional(records) for records in (20, 25, 30, 40)] == [
        False,
        True,
        True,
        False,
    ]


def test_what_a_probe_remembers_is_taken_up_again():
    first, second = measurer(look=1), measurer(look=1)
    first.measure(0, None)
    first.measure(1, None)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"look": {"turns": torch.tensor(2)}}


def test_a_probe_named_like_a_stage_adds_to_its_seconds():
    found = Measurer([ScheduledProbe("update", Score(), 1)], Scopes(10, 5), [4])
    report = BatchReport()
    report.seconds["update"] = 2.0
    assert found.measure(1, report).tables["steps"][0]["seconds_update"] > 2.0


def test_only_numbers_are_shown():
    declared = Declared(step=(Column("mood", "text", "how it looks", shown=True),))
    probe = SimpleNamespace(declares=declared)
    with pytest.raises(SphereBenchError, match="mood of steps is shown, but is no number"):
        Measurer([ScheduledProbe("look", probe, 1)], Scopes(10, 5), [4])
