"""Which records a run gets, in which order."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sphere_bench.data.records import EditDataset
from sphere_bench.data.selection import shuffled
from sphere_bench.errors import SphereBenchError
from tests.data.record_files import load


def fact(number: int) -> dict[str, Any]:
    return {
        "case_id": number,
        "prompt": f"City{number}. lies in",
        "subject": f"City{number}.",
        "target_new": "Peru",
        "ground_truth": "Chad",
    }


def write(folder: Path, records: list[Any]) -> str:
    path = folder / "facts.json"
    path.write_text(json.dumps(records))
    return str(path)


def ids(dataset: EditDataset) -> list[str]:
    return [record.request.case_id for record in dataset.records]


@pytest.fixture
def facts(tmp_path: Path) -> str:
    return write(tmp_path, [fact(number) for number in range(10)])


def test_without_shuffling_the_order_is_the_files(facts: str) -> None:
    assert ids(load(facts)) == [str(number) for number in range(10)]


def test_start_and_total_cut_a_piece_out_of_the_stream(facts: str) -> None:
    assert ids(load(facts, start=3, total=4)) == ["3", "4", "5", "6"]
    assert ids(load(facts, start=8)) == ["8", "9"]
    whole = ids(load(facts, shuffle=True, seed=1))
    assert ids(load(facts, shuffle=True, seed=1, start=3, total=4)) == whole[3:7]


def test_the_seed_decides_a_shuffled_order(facts: str) -> None:
    orders = [ids(load(facts, shuffle=True, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [str(number) for number in range(10)]


def test_a_longer_file_keeps_the_shuffled_order_of_its_beginning() -> None:
    longer = shuffled(100, seed=5)
    assert [index for index in longer if index < 40] == shuffled(40, seed=5)


def test_a_shuffled_order_is_the_same_on_every_machine() -> None:
    assert shuffled(8, seed=0) == [3, 7, 5, 2, 4, 1, 6, 0]


def test_fingerprint_depends_on_the_used_records_and_their_order(facts: str) -> None:
    def fingerprint(**choices: Any) -> str:
        return load(facts, **choices).fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(total=9), fingerprint(shuffle=True)}) == 3


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"total": 11}, "edits.total=11, edits.start=0: .* holds 10 records; lower edits.total"),
        ({"total": 5, "start": 6}, "edits.total=5, edits.start=6: .* holds 10 records"),
        ({"start": 10}, "edits.start=10: .* holds 10 records; lower edits.start"),
        ({"total": 0}, "edits.total=0"),
        ({"start": -1}, "edits.start=-1"),
        ({"format": "mquake"}, "dataset.format=mquake: must be one of auto, counterfact"),
        ({"format": "zsre"}, "those of dataset.format=easyedit, not dataset.format=zsre"),
        ({"on_invalid": "warn"}, "dataset.on_invalid=warn: must be one of error, skip"),
        ({"target": "pred"}, "dataset.target=pred: must be one of answers, alt"),
        ({"headline": "score"}, "dataset.headline=score: must be one of success, accuracy"),
    ],
)
def test_impossible_choices_are_named(facts: str, choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(SphereBenchError, match=problem):
        load(facts, **choices)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([fact(0), fact(1), fact(0)], "record 2: field 'case_id' is '0', as in record 0"),
        ([{"question": "?"}], "record 0 has the fields 'question': of none of the formats count"),
        (
            [{"prompt": "x y", "subject": "x", "ground_truth": "z", "target": "y"}],
            "of none of the formats .* more than of another; with dataset.format=NAME you are told",
        ),
        ([{"subject": "x"}], "record 0 has the fields 'subject': of none of the formats count"),
        ([5], "record 0 has no fields"),
        ([{}], "record 0 has no fields"),
        ([fact(0), None], "record 1: it must be an object"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, records: list[Any], problem: str
) -> None:
    with pytest.raises(SphereBenchError, match=problem):
        load(write(tmp_path, records))


def test_skipping_leaves_invalid_records_out_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [fact(0), {**fact(1), "target_new": ""}, fact(2), fact(2), 7, fact(3)]
    path = write(tmp_path, records)
    with pytest.raises(SphereBenchError, match="record 1: field 'target_new' is empty"):
        load(path)
    with caplog.at_level(logging.WARNING):
        assert ids(load(path, on_invalid="skip")) == ["0", "2", "3"]
    assert "record 1: field 'target_new' is empty" in caplog.text
    assert "skipped 3 invalid records" in caplog.text
    assert ids(load(path, on_invalid="skip", start=1, total=1)) == ["2"]
    with pytest.raises(SphereBenchError, match=r"holds 3 records \(3 invalid ones skipped\)"):
        load(path, on_invalid="skip", total=4)


def test_records_behind_the_last_one_used_are_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path, [fact(0), fact(1), {"broken": True}])
    assert ids(load(path, total=2)) == ["0", "1"]


def test_portability_is_a_kind_of_files_that_have_it(tmp_path: Path) -> None:
    portable = {"portability": {"New Question": "Where?", "New Answer": "Lima"}}
    with_it = load(write(tmp_path, [fact(0), {**fact(1), **portable}]))
    assert [kind.name for kind in with_it.kinds][3:] == ["portability"]
    assert not with_it.kinds[3].scored
    assert with_it.records[1].case.prompts[-1].target_new == "Lima"
    without = load(write(tmp_path, [fact(0), {**fact(1), "portability": None}]))
    assert len(without.kinds) == 3


def test_a_prompt_is_a_question_by_its_mark_or_by_its_format(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, [fact(0)]))
    assert [dataset.is_question(text) for text in ("Who? ", "Rome lies in")] == [True, False]
    asked = load(write(tmp_path, [{"subject": "Rome", "src": "where is Rome", "answers": ["a"]}]))
    assert asked.is_question("where is Rome")


def test_the_format_decides_the_headline_unless_it_is_set(tmp_path: Path) -> None:
    zsre = {"subject": "Rome", "src": "Where is Rome?", "answers": ["Italy"]}
    path = write(tmp_path, [zsre])
    dataset = load(path)
    assert (dataset.headline, dataset.accuracy) == ("accuracy", "mean_tokens")
    assert load(path, headline="success").headline == "success"
    dataset = load(write(tmp_path, [fact(0)]))
    assert (dataset.headline, dataset.accuracy) == ("success", "all_tokens")
