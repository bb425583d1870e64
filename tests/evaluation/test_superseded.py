"""A stream that contradicts itself: which of its records count, and what they are scored as."""

from collections.abc import Sequence
from typing import cast

import pytest

from sphere_bench.data.facts import overwritten_by
from sphere_bench.data.records import EditDataset, EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.probe import ProbeSetup
from sphere_bench.evaluation.scopes import Scopes
from sphere_bench.evaluation.teacher_forced import TeacherForced
from sphere_bench.stream.measuring import MeasuredStep, Measurer, ScheduledProbe
from tests.evaluation.fake_model import fake_model
from tests.evaluation.tokenizer_families import build

ROME, OSLO, BERN, LIMA = (f"{city} lies in" for city in ("Rome", "Oslo", "Bern", "Lima"))
# Batches of two. The second overwrites record 0, the third contradicts itself (records 4 and 5),
# the fourth edits Oslo to the target that it has, and Rome back to its first one.
STREAM = [
    *[(ROME, "Peru"), (OSLO, "Peru")],
    *[(ROME, "Cuba"), (BERN, "Cuba")],
    *[(LIMA, "Mali"), (LIMA, "Iran")],
    *[(OSLO, "Peru"), (ROME, "Peru")],
]


def dataset(stream: Sequence[tuple[str, str]] = STREAM) -> EditDataset:
    records = []
    for number, (prompt, target) in enumerate(stream):
        name = f"c{number}"
        request = EditRequest(name, prompt, prompt.split()[0], target, "Chad")
        prompts = (EvalPrompt("rewrite", prompt, target, "Chad"),)
        records.append(Record(request, EvalCase(name, prompts)))
    return EditDataset("mine", tuple(records), "accuracy", "all_tokens")


def measured(step: int, *, score_superseded: bool = False) -> MeasuredStep:
    """The rows of ``step`` on a model that says what each prompt was last edited to."""
    records = dataset()
    said = dict(STREAM[: 2 * step])
    loaded = fake_model(build("byte-level", "right"), [f"{p} {t}" for p, t in said.items()])
    setup = ProbeSetup(loaded, records, cast(EditedWeights, None), 0, 4096, lambda corpus, key: [])
    scopes = Scopes(
        len(STREAM),
        2,
        seen=len(STREAM),
        first=2,
        milestones=[0],
        overwritten_by=overwritten_by([record.request for record in records.records]),
        score_superseded=score_superseded,
    )
    probe = ScheduledProbe("teacher_forced", TeacherForced(setup), 1)
    return Measurer([probe], scopes, []).measure(step, None)


def by_scope(step: MeasuredStep, column: str) -> dict[str, object]:
    return {row["scope"]: row[column] for row in step.tables["steps"]}


def cases(step: MeasuredStep, scope: str) -> list[str]:
    return [row["case_id"] for row in step.tables["cases"] if row["scope"] == scope]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_model_that_holds_the_latest_facts_is_perfect(step: int) -> None:
    for row in measured(step).tables["steps"]:
        assert row["efficacy_accuracy"] == row["efficacy_success"] == 100.0


def test_superseded_records_are_counted_beside_the_records_of_their_scope() -> None:
    counts = {step: by_scope(measured(step), "superseded") for step in range(5)}
    assert counts == {
        0: {"batch": 0, "seen": 0, "first": 0, "all": 0},  # nothing is edited yet
        1: {"batch": 0, "seen": 0, "first": 0},
        2: {"batch": 0, "seen": 1, "first": 1},
        3: {"batch": 1, "seen": 2, "first": 1},
        # Back at its first target, Rome's first record stays superseded: it was overwritten.
        4: {"batch": 0, "seen": 3, "first": 1},
    }
    assert by_scope(measured(4), "records") == {"batch": 2, "seen": 8, "first": 2}


def test_their_prompts_are_asked_no_more() -> None:
    assert cases(measured(1), "seen") == ["c0", "c1"]
    assert cases(measured(2), "seen") == ["c1", "c2", "c3"]
    assert cases(measured(2), "first") == ["c1"]
    assert cases(measured(3), "batch") == ["c5"]
    assert cases(measured(4), "seen") == ["c1", "c3", "c5", "c6", "c7"]


def test_published_code_counts_them() -> None:
    step = measured(3, score_superseded=True)
    # Four of six: Rome is no longer in Peru, and Lima cannot be in two countries.
    assert by_scope(step, "efficacy_accuracy") == {
        "batch": 50.0,
        "seen": pytest.approx(400 / 6),
        "first": 50.0,
    }
    assert by_scope(step, "superseded") == {"batch": 1, "seen": 2, "first": 1}
    assert len(cases(step, "seen")) == 6


def test_a_scope_that_is_superseded_whole_has_no_score() -> None:
    scopes = Scopes(4, 1, first=1, overwritten_by={0: 2})
    assert scopes.of(2)["first"] == [0]
    assert "first" not in scopes.of(3)
    assert scopes.members(3)["first"] == [0]
