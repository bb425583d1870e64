"""Who is evaluated after which step, and what the rows say."""

import math
from typing import Any, cast

import pytest

from sphere_bench.data.records import EditDataset, EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.evaluation.protocol import Evaluator
from sphere_bench.models.loading import LoadedModel
from tests.evaluation.fake_model import FakeModel, fake_model
from tests.evaluation.tokenizer_families import build

STEPS_COLUMNS = {
    "step",
    "edits",
    "scope",
    "records",
    *(
        f"{metric}{measure}"
        for metric in ("efficacy", "generalization", "specificity", "score")
        for measure in ("", "_success", "_accuracy")
    ),
}
CASES_COLUMNS = {
    "step",
    "edits",
    "scope",
    "case_id",
    "edited_at",
    "kind",
    "prompt_index",
    "nll_new",
    "nll_true",
    "success",
    "accuracy",
}


def dataset(count: int, *, target_true: str | None = "Chad", neighbours: int = 1) -> EditDataset:
    records = []
    for number in range(count):
        prompt = f"City {number} lies in"
        prompts = [
            EvalPrompt("rewrite", prompt, "Peru", target_true),
            EvalPrompt("paraphrase", f"Once more: {prompt}", "Peru", target_true),
            EvalPrompt("paraphrase", f"So {prompt}", "Peru", target_true),
            *[EvalPrompt("neighbourhood", f"Town {number} lies in", None, "Chad")] * neighbours,
        ]
        request = EditRequest(f"c{number}", prompt, f"City {number}", "Peru", target_true)
        records.append(Record(request, EvalCase(f"c{number}", tuple(prompts))))
    return EditDataset("mine", tuple(records), "accuracy", "mean_tokens", "fingerprint")


def evaluator(count: int, **choices: Any) -> Evaluator:
    return Evaluator(cast(LoadedModel, None), dataset(count), **choices)


def test_scopes_of_a_step() -> None:
    scopes = evaluator(25, seen=4, first=3).scopes(2, 20, 10, 25)
    assert scopes["batch"] == list(range(10, 20))
    assert scopes["first"] == [0, 1, 2]
    assert len(scopes["seen"]) == 4
    assert scopes["seen"] == sorted(set(scopes["seen"]))
    assert set(scopes["seen"]) <= set(range(20))
    assert list(scopes) == ["batch", "seen", "first"]


def test_the_last_batch_may_be_smaller() -> None:
    assert evaluator(25).scopes(3, 25, 10, 25)["batch"] == list(range(20, 25))


def test_step_0_looks_at_the_first_batch_on_the_unedited_model() -> None:
    scopes = evaluator(25, seen=4, milestones=[0]).scopes(0, 0, 10, 25)
    assert scopes["batch"] == scopes["first"] == list(range(10))
    assert len(scopes["seen"]) == 4
    assert set(scopes["seen"]) <= set(range(10))
    assert scopes["all"] == list(range(25))


def test_seen_is_everything_until_there_is_more() -> None:
    assert evaluator(25, seen=20).scopes(2, 20, 10, 25)["seen"] == list(range(20))


def test_seen_changes_only_by_records_that_enter() -> None:
    judge = evaluator(300, seen=20)
    before: set[int] = set()
    for step in range(1, 31):
        sample = set(judge.scopes(step, step * 10, 10, 300)["seen"])
        entered = sample - before
        assert entered <= set(range((step - 1) * 10, step * 10))
        before = sample


def test_seen_depends_on_the_seed_alone() -> None:
    samples = [evaluator(90, seen=5, seed=seed).scopes(9, 90, 10, 90)["seen"] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_first_is_at_most_the_first_batch() -> None:
    assert evaluator(25, first=100).scopes(2, 20, 10, 25)["first"] == list(range(10))
    assert evaluator(5, first=100).scopes(1, 5, 10, 5)["first"] == list(range(5))


def test_scopes_of_size_0_are_left_out() -> None:
    assert list(evaluator(25, seen=0, first=0).scopes(1, 10, 10, 25)) == ["batch"]


def test_all_is_evaluated_once_a_milestone_is_passed() -> None:
    judge = evaluator(50, milestones=[15, 50])
    due = {step: judge.scopes(step, min(step * 10, 45), 10, 45).get("all") for step in range(1, 6)}
    assert due == {1: None, 2: list(range(20)), 3: None, 4: None, 5: None}


def test_evaluation_is_due_at_the_start_the_end_the_milestones_and_every_so_often() -> None:
    judge = evaluator(95, every=4, milestones=[25])
    due = [step for step in range(11) if judge.is_due(step, min(step * 10, 95), 10, 95)]
    assert due == [0, 3, 4, 8, 10]


def loaded_for(records: EditDataset, *, obedient: bool = True) -> LoadedModel:
    texts = [
        f"{prompt.prompt} {'Chad' if prompt.kind == 'neighbourhood' else 'Peru'}"
        for record in records.records
        for prompt in record.case.prompts
    ]
    return fake_model(build("byte-level", "right"), texts, obedient=obedient)


@pytest.mark.parametrize("obedient", [True, False])
def test_rows_of_an_evaluation(obedient: bool) -> None:
    records = dataset(6)
    judge = Evaluator(loaded_for(records, obedient=obedient), records, seen=3, first=1)
    found = judge.evaluate(2, 4, 2, 6)
    assert [row["scope"] for row in found.steps_rows] == ["batch", "seen", "first"]
    assert [row["records"] for row in found.steps_rows] == [2, 3, 1]
    for row in found.steps_rows:
        assert set(row) == STEPS_COLUMNS
        assert (row["step"], row["edits"]) == (2, 4)
        percent = 100.0 if obedient else 0.0
        assert row["efficacy"] == row["efficacy_accuracy"] == row["efficacy_success"] == percent
        assert row["score"] == row["score_accuracy"] == percent
        # No neighbour has a new target to lose against.
        assert math.isnan(row["specificity_success"]) and math.isnan(row["score_success"])
    assert len(found.cases_rows) == (2 + 3 + 1) * 4
    assert all(set(row) == CASES_COLUMNS for row in found.cases_rows)
    batch = [row for row in found.cases_rows if row["scope"] == "batch"]
    assert [(row["case_id"], row["kind"], row["prompt_index"]) for row in batch[:4]] == [
        ("c2", "rewrite", 0),
        ("c2", "paraphrase", 0),
        ("c2", "paraphrase", 1),
        ("c2", "neighbourhood", 0),
    ]
    assert {row["edited_at"] for row in batch} == {2}
    assert [row["edited_at"] for row in found.cases_rows if row["scope"] == "first"] == [1] * 4
    assert batch[0]["success"] == batch[0]["accuracy"] == float(obedient)
    assert batch[3]["nll_new"] is None and batch[3]["success"] is None


def test_a_record_in_several_scopes_is_scored_once() -> None:
    records = dataset(4)
    loaded = loaded_for(records)
    Evaluator(loaded, records).evaluate(1, 4, 4, 4)
    model = loaded.model
    assert isinstance(model, FakeModel)
    # A prompt's rows differ in all but the last token of its targets.
    longest = 2 * sum(len(record.case.prompts) for record in records.records)
    assert model.rows <= longest


def test_missing_prompts_and_targets_leave_their_metrics_undefined() -> None:
    records = dataset(2, target_true=None, neighbours=0)
    (row, *_) = Evaluator(loaded_for(records), records).evaluate(1, 2, 2, 2).steps_rows
    assert row["efficacy_accuracy"] == row["generalization_accuracy"] == 100.0
    for metric in ("efficacy_success", "specificity", "specificity_accuracy", "score"):
        assert math.isnan(row[metric])
