"""Teacher-forced scores: what the rows of an evaluation say."""

import math
from collections.abc import Sequence
from typing import cast

import pytest

from sphere_bench.data.records import (
    KINDS,
    EditDataset,
    EditRequest,
    EvalCase,
    EvalPrompt,
    PromptKind,
    Record,
)
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.teacher_forced import CASES, TeacherForced
from sphere_bench.models.loading import LoadedModel
from tests.evaluation.fake_model import FakeModel, fake_model
from tests.evaluation.tokenizer_families import build

SCORES = {
    f"{metric}{measure}"
    for metric in ("efficacy", "generalization", "specificity", "score")
    for measure in ("", "_success", "_accuracy")
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
    return EditDataset("mine", tuple(records), "accuracy", "mean_tokens")


def loaded_for(records: EditDataset, *, obedient: bool = True) -> LoadedModel:
    texts = [
        f"{prompt.prompt} {'Chad' if prompt.kind == 'neighbourhood' else 'Peru'}"
        for record in records.records
        for prompt in record.case.prompts
    ]
    return fake_model(build("byte-level", "right"), texts, obedient=obedient)


def measure(
    loaded: LoadedModel, records: EditDataset, scopes: dict[str, Sequence[int]], step: int = 1
) -> tuple[TeacherForced, Findings]:
    weights = cast(EditedWeights, None)
    setup = ProbeSetup(loaded, records, weights, 0, 4096, lambda corpus, key: [])
    probe = TeacherForced(setup)
    return probe, probe.measure(Moment(step, 2 * step, 2, scopes))


@pytest.mark.parametrize("obedient", [True, False])
def test_rows_of_an_evaluation(obedient: bool) -> None:
    records = dataset(6)
    scopes = {"batch": [2, 3], "seen": [0, 1, 3], "first": [0]}
    probe, found = measure(loaded_for(records, obedient=obedient), records, scopes, step=2)
    assert list(found.scopes) == ["batch", "seen", "first"]
    assert {column.name for column in probe.declares.scope} == SCORES
    for row in found.scopes.values():
        assert set(row) == SCORES
        percent = 100.0 if obedient else 0.0
        assert row["efficacy"] == row["efficacy_accuracy"] == row["efficacy_success"] == percent
        assert row["score"] == row["score_accuracy"] == percent
        # No neighbour has a new target to lose against.
        assert math.isnan(row["specificity_success"]) and math.isnan(row["score_success"])
    cases = found.tables["cases"]
    assert len(cases) == (2 + 3 + 1) * 4
    assert all(set(row) == {column.name for column in CASES.columns} for row in cases)
    batch = [row for row in cases if row["scope"] == "batch"]
    assert [(row["case_id"], row["kind"], row["prompt_index"]) for row in batch[:4]] == [
        ("c2", "rewrite", 0),
        ("c2", "paraphrase", 0),
        ("c2", "paraphrase", 1),
        ("c2", "neighbourhood", 0),
    ]
    assert {row["edited_at"] for row in batch} == {2}
    assert [row["edited_at"] for row in cases if row["scope"] == "first"] == [1] * 4
    assert batch[0]["success"] == batch[0]["accuracy"] == float(obedient)
    assert batch[3]["nll_new"] is None and batch[3]["success"] is None


def test_a_record_in_several_scopes_is_scored_once() -> None:
    records = dataset(4)
    loaded = loaded_for(records)
    measure(loaded, records, {scope: range(4) for scope in ("batch", "seen", "first")})
    model = loaded.model
    assert isinstance(model, FakeModel)
    # A prompt's rows differ in all but the last token of its targets.
    longest = 2 * sum(len(record.case.prompts) for record in records.records)
    assert model.rows <= longest


def test_missing_prompts_and_targets_leave_their_metrics_undefined() -> None:
    records = dataset(2, target_true=None, neighbours=0)
    _, found = measure(loaded_for(records), records, {"batch": [0, 1]})
    row = found.scopes["batch"]
    assert row["efficacy_accuracy"] == row["generalization_accuracy"] == 100.0
    for metric in ("efficacy_success", "specificity", "specificity_accuracy", "score"):
        assert math.isnan(row[metric])


def test_a_kind_of_the_datasets_own_has_a_metric_of_its_own_outside_the_score() -> None:
    four = (*KINDS, PromptKind("portability", "portability", "new", scored=False))
    record = dataset(1).records[0]
    prompts = (*record.case.prompts, EvalPrompt("portability", "So it is in", "Peru", None))
    case = EvalCase("c0", prompts)
    records = EditDataset(
        "mine", (Record(record.request, case),), "accuracy", "all_tokens", kinds=four
    )
    probe, found = measure(loaded_for(records), records, {"batch": [0]})
    row = found.scopes["batch"]
    assert row["portability"] == row["portability_accuracy"] == 100.0
    assert set(row) == {column.name for column in probe.declares.scope}
    assert row["score"] == 100.0
    assert [case["kind"] for case in found.tables["cases"]][-1] == "portability"
