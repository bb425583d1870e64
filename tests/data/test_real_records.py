"""The public records, where they are: they are not part of this repository."""

from pathlib import Path

import pytest

from sphere_bench.data.corpus import corpus_texts
from sphere_bench.data.quality import warnings_of
from sphere_bench.errors import SphereBenchError
from tests.data.record_files import load

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def shared(name: str) -> str:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the public records are not here: no {path}")
    return str(path)


def test_every_counterfact_record_of_easyedit_is_valid() -> None:
    dataset = load(shared("counterfact_easyedit.json"))
    assert len(dataset.records) == 20_000
    assert dataset.headline == "success"
    first = dataset.records[0]
    assert first.request.prompt == "The mother tongue of Danielle Darrieux is"
    assert (first.request.target_new, first.request.target_true) == ("English", "French")
    kinds = {tuple(p.kind for p in record.case.prompts) for record in dataset.records}
    assert kinds == {("rewrite", "paraphrase", "neighbourhood")}


def test_every_zsre_record_is_valid_with_its_answer_as_target() -> None:
    dataset = load(shared("zsre_mend.json"))
    assert len(dataset.records) == 800
    assert dataset.headline == "accuracy"
    assert all(p.prompt.endswith("?") for r in dataset.records for p in r.case.prompts[2:])


def test_two_zsre_records_have_no_alternative_answer() -> None:
    path = shared("zsre_mend.json")
    with pytest.raises(SphereBenchError, match="record 534: field 'alt' is empty"):
        load(path, target="alt")
    assert len(load(path, target="alt", on_invalid="skip").records) == 798


def test_qaedit_records_are_questions_with_names_of_their_own() -> None:
    dataset = load(shared("qaedit.json"), on_invalid="skip")
    # Three of 700 name a subject that their question holds twice.
    assert len(dataset.records) == 697
    assert (dataset.headline, dataset.accuracy) == ("accuracy", "mean_tokens")
    assert dataset.records[0].request.case_id == "NQ-1104"
    assert {len(record.case.prompts) for record in dataset.records} == {7}
    assert all(dataset.is_question(p.prompt) for r in dataset.records for p in r.case.prompts)


def test_wikibigedit_records_have_an_accuracy_and_no_success() -> None:
    dataset = load(shared("wikibigedit.json"))
    assert len(dataset.records) == 2500
    assert dataset.headline == "accuracy"
    prompts = [each.prompt for record in dataset.records for each in record.case.prompts]
    broken = [each for each in prompts if not dataset.is_question(each)]
    assert broken == ["Reformulated Question:"] * 19
    (line,) = (each for each in warnings_of(dataset, 100) if "paraphrase" in each)
    assert line == (
        "mine: 1 paraphrase is the same for several facts with unlike targets, so that no "
        "answer is right for all of them: 'Reformulated Question:'"
    )


def test_boolq_passages_are_a_corpus() -> None:
    texts = list(corpus_texts(shared("downstream/test-ClosedDomainQA.jsonl")))
    assert len(texts) > 1000
