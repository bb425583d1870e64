"""Parity with the published scorer on the unedited tiny models (see tests/golden/README.md)."""

import json
from pathlib import Path

import pytest

from sphere_bench.data.record_file import RecordFile
from sphere_bench.data.selection import select
from sphere_bench.evaluation.teacher_forced import PromptResult, score_records
from tests.golden_numbers import NAMES, Golden, load_golden

KINDS = {"rewrite": "rewrite", "paraphrase": "paraphrase", "neighbourhood": "neighborhood"}


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def scored(golden: Golden, key: str, folder: Path) -> list[dict[str, list[PromptResult]]]:
    """The results of each record by the published name of their kind."""
    path = folder / "records.json"
    path.write_text(json.dumps(golden.figures[key]))
    dataset = select(RecordFile(str(path)), name="golden")
    results = score_records(golden.loaded, dataset.records, dataset.accuracy)
    return [
        {
            published: [result for result in record if result.prompt.kind == kind]
            for kind, published in KINDS.items()
        }
        for record in results
    ]


def test_counterfact_likelihoods_and_argmax_hits(golden: Golden, tmp_path: Path) -> None:
    records = scored(golden, "records", tmp_path)
    assert len(records) == 20
    for record, expected in zip(records, golden.figures["eval_before"], strict=True):
        for kind, results in record.items():
            found = [(result.nll_new, result.nll_true) for result in results]
            published = [
                (pytest.approx(nll["target_new"], abs=1e-4), nll["target_true"])
                for nll in expected[f"{kind}_prompts_probs"]
            ]
            assert [new for new, _ in found] == [new for new, _ in published]
            assert [true for _, true in found] == pytest.approx(
                [true for _, true in published], abs=1e-4
            )
            hits = [bool(result.accuracy) for result in results]
            assert hits == expected[f"{kind}_prompts_correct"]


def test_zsre_token_accuracy(golden: Golden, tmp_path: Path) -> None:
    records = scored(golden, "zsre_records", tmp_path)
    assert len(records) == 15
    for record, expected in zip(records, golden.figures["zsre_eval_before"], strict=True):
        for kind, results in record.items():
            hits = expected[f"{kind}_prompts_correct"]
            assert [result.accuracy for result in results] == [sum(hits) / len(hits)]
