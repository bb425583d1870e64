"""What a loader may give, and which records of it a run gets."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from sphere_bench.config.target_arguments import check_arguments
from sphere_bench.data.record_file import RecordFile
from sphere_bench.data.records import (
    KINDS,
    REWRITE,
    EditDataset,
    EditRequest,
    EvalCase,
    EvalPrompt,
    PromptKind,
    Record,
    fingerprint_records,
)
from sphere_bench.data.selection import select
from sphere_bench.errors import SphereBenchError


def made(number: int, true: str | None = "Chad", kind: str = "rewrite") -> Record:
    case_id, prompt = str(number), f"City{number}. lies in"
    request = EditRequest(case_id, prompt, f"City{number}.", "Peru", true)
    return Record(request, EvalCase(case_id, (EvalPrompt(kind, prompt, "Peru", true),)))


def records(count: int) -> list[Record]:
    return [made(number) for number in range(count)]


def ids(requests: list[EditRequest]) -> list[str]:
    return [request.case_id for request in requests]


class Lazy:
    """Records made when they are read; those with an odd number are invalid."""

    def __init__(self, count: int = 10) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        self.read.append(index)
        if index % 2:
            raise SphereBenchError(f"record {index} is odd")
        return made(index)


def test_a_list_of_records_is_a_dataset() -> None:
    dataset = select(records(5), name="mine", total=3, start=1)
    assert dataset.records == tuple(records(5)[1:4])
    assert (dataset.name, dataset.headline, dataset.accuracy) == ("mine", "success", "all_tokens")
    assert dataset.kinds == KINDS


def test_a_source_may_say_how_it_is_scored() -> None:
    class Source(list[Record]):
        headline = "accuracy"
        accuracy = "mean_tokens"
        kinds = (REWRITE, PromptKind("hop", "portability", "true"))

    source = Source([made(0), made(1, kind="hop")])
    dataset = select(source, name="mine")
    assert (dataset.headline, dataset.accuracy) == ("accuracy", "mean_tokens")
    assert dataset.kinds == Source.kinds
    assert select(source, name="mine", headline="success").headline == "success"


def test_records_are_read_one_by_one_up_to_the_last_one_that_is_used() -> None:
    source = Lazy()
    dataset = select(source, name="mine", total=2, on_invalid="skip")
    assert source.read == [0, 1, 2]
    assert len(dataset.pool(2)) == 2
    assert len(source.read) < len(source)


def test_a_prefix_has_the_fingerprint_of_the_shorter_run() -> None:
    dataset = select(records(9), name="mine")
    for count in (1, 4, 9):
        shorter = select(records(9), name="mine", total=count)
        assert dataset.fingerprint(count) == shorter.fingerprint()
    assert len({dataset.fingerprint(count) for count in range(1, 10)}) == 9
    assert dataset.fingerprint() == dataset.fingerprint(9) == fingerprint_records(records(9))


def test_the_bundled_facts_have_the_fingerprints_that_runs_recorded() -> None:
    whole = select(RecordFile("bundled"), name="mine").fingerprint()
    assert whole == "d899dc08be7b9c83c4b10d3f3af33c98d23d36972c7eaf0a92d20a9282a0281c"
    choices = {"total": 50, "start": 7, "shuffle": True, "seed": 3}
    part = select(RecordFile("bundled"), name="mine", **choices).fingerprint()  # type: ignore[arg-type]
    assert part == "093c4b4ab7235507033322caea8f40ede88091953dc9f38267f7e60915672321"


def test_the_pool_is_the_same_whichever_records_are_edited() -> None:
    def pool(count: int, **changes: Any) -> list[str]:
        choices = {"seed": 1, "on_invalid": "skip", **changes}
        return ids(select(Lazy(40), name="mine", **choices).pool(count))

    whole = pool(100)
    assert len(whole) == 20 and len(set(whole)) == 20
    for changes in ({}, {"total": 1}, {"total": 5, "start": 3}, {"shuffle": True}):
        assert [pool(count, **changes) for count in (1, 4, 20, 100)] == [
            whole[:1],
            whole[:4],
            whole,
            whole,
        ]


def test_the_pool_is_drawn_with_the_seed_and_apart_from_the_order_of_the_edits() -> None:
    datasets = [select(records(30), name="mine", shuffle=True, seed=seed) for seed in range(3)]
    pools = [ids(dataset.pool(30)) for dataset in datasets]
    orders = [[record.request.case_id for record in dataset.records] for dataset in datasets]
    assert len({tuple(order) for order in (*pools, *orders)}) == 6
    # A sample of the whole dataset: every record is as likely as any other to come first.
    firsts = [select(records(4), name="mine", seed=seed).pool(1) for seed in range(400)]
    counts = Counter(request.case_id for (request,) in firsts)
    assert min(counts.values()) > 70 and len(counts) == 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_spare_records_are_the_last_ones_however_long_the_run_is(shuffle: bool) -> None:
    def chosen(total: int | None, count: int) -> tuple[list[str], list[str]]:
        choices = {"total": total, "start": 3, "shuffle": shuffle, "on_invalid": "skip"}
        dataset = select(Lazy(40), name="mine", **choices)  # type: ignore[arg-type]
        return [record.request.case_id for record in dataset.records], ids(dataset.spare(count))

    order, nothing = chosen(None, 5)
    assert len(order) == 17 and nothing == []
    for total in (1, 9, 12):
        assert chosen(total, 5) == (order[:total], order[-5:])
    assert chosen(14, 5) == (order[:14], order[14:])


def test_an_invalid_record_stops_only_who_draws_it() -> None:
    drawn = set()
    for seed in range(20):
        dataset = select(Lazy(), name="mine", total=1, seed=seed)
        try:
            drawn.add(len(dataset.pool(1)))
        except SphereBenchError:
            drawn.add(0)
        with pytest.raises(SphereBenchError, match="is odd"):
            dataset.pool(6)
    assert drawn == {0, 1}


def test_a_dataset_made_by_hand_has_its_own_records_as_pool() -> None:
    dataset = EditDataset("mine", tuple(records(3)), "success", "all_tokens")
    assert ids(dataset.pool(2)) == ["0", "1"]
    assert ids(dataset.pool(9)) == ["0", "1", "2"]


def generated() -> Iterator[Record]:
    yield made(0)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "dataset.loader gave an object of the type NoneType: it must give a sequence"),
        ({"0": made(0)}, "gave an object of the type dict"),
        ("facts.json", "gave an object of the type str"),
        (generated(), "gave an object of the type generator: .* such as a list"),
        (islice([made(0)], 1), "gave an object of the type islice"),
        ([], "dataset.loader gave no records"),
        (["a fact"], "record 0 is an object of the type str, not a Record"),
        ([made(0), made(1), made(1)], "record 2: field 'case_id' is '1', as in record 1"),
    ],
)
def test_what_is_no_sequence_of_records_is_named(source: Any, problem: str) -> None:
    with pytest.raises(SphereBenchError, match=problem) as caught:
        select(source, name="mine")
    assert "\n" not in str(caught.value)


def of_request(**changes: Any) -> Callable[[Record], Record]:
    return lambda record: replace(record, request=replace(record.request, **changes))


def of_prompt(**changes: Any) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        prompts = tuple(replace(prompt, **changes) for prompt in record.case.prompts)
        return replace(record, case=replace(record.case, prompts=prompts))

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (of_request(subject="Rome"), "prompt does not hold the subject 'Rome': 'City1. lies in'"),
        (of_request(prompt="City1. City1."), "prompt holds the subject 'City1.' more than once"),
        (of_request(subject=""), "subject is empty"),
        (of_request(target_new=None), "target_new must be a text, not None"),
        (of_request(target_new=" "), "target_new is empty"),
        (of_request(target_true=""), "target_true is empty"),
        (of_request(prompt="City1. \ud800"), "prompt is not valid Unicode"),
        (of_request(case_id=5), "case_id must be a text, not 5"),
        (of_request(case_id="7"), "request has the case_id '7', its case '1'"),
        (of_prompt(kind="hop"), r"prompts\[0\] is of the kind 'hop': the loader has the kinds nei"),
        (of_prompt(prompt=3), r"prompts\[0\].prompt must be a text, not 3"),
        (of_prompt(target_true="\t"), r"prompts\[0\].target_true is empty"),
    ],
)
def test_a_record_of_an_own_loader_is_checked(
    change: Callable[[Record], Record], problem: str
) -> None:
    source = [made(0), change(made(1))]
    with pytest.raises(SphereBenchError, match=f"dataset.loader: record 1: .*{problem}"):
        select(source, name="mine")
    assert len(select(source, name="mine", on_invalid="skip").records) == 1


HOP = PromptKind("hop", "portability", "true")


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"kinds": ()}, "its kinds are empty"),
        ({"kinds": ("hop",)}, "its kinds hold an object of the type str, not a PromptKind"),
        ({"kinds": (HOP, HOP)}, "two kinds have the name 'hop'"),
        ({"kinds": (HOP, replace(HOP, name="two"))}, "two kinds have the metric 'portability'"),
        ({"kinds": (replace(HOP, wants="both"),)}, "wants 'both': must be new or true"),
        ({"kinds": (replace(HOP, metric="score"),)}, "has the metric 'score'"),
        ({"kinds": (replace(HOP, metric="one hop"),)}, "has the metric 'one hop'"),
        ({"headline": "score"}, "dataset.loader.headline=score: must be one of success, accuracy"),
        ({"accuracy": "any"}, "dataset.loader.accuracy=any: must be one of all_tokens, mean_"),
    ],
)
def test_a_wrong_attribute_of_a_source_is_named(attributes: dict[str, Any], problem: str) -> None:
    source = type("Source", (list,), attributes)([made(0)])
    with pytest.raises(SphereBenchError, match=problem):
        select(source, name="mine")


def test_without_any_true_answer_the_headline_is_accuracy_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = [made(0, true=None), made(1, true=None)]
    assert select(source, name="mine").headline == "accuracy"
    assert caplog.text.count("no record has a true answer") == 1
    caplog.clear()
    assert select(source, name="mine", headline="success").headline == "success"
    assert select([*source, made(2)], name="mine").headline == "success"
    assert not caplog.records


def test_a_file_without_true_answers_is_reported_by_accuracy(tmp_path: Path) -> None:
    # As WikiBigEdit: neighbours have an answer, the edited fact has none.
    path = tmp_path / "facts.csv"
    path.write_text(
        "prompt,subject,target_new,locality_prompt,locality_ground_truth\n"
        "Where is Rome?,Rome,Peru,Where is Oslo?,Norway\n"
    )
    assert select(RecordFile(str(path)), name="mine").headline == "accuracy"


OWN = """
from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record


class Cities(list):
    def __init__(self, country: str, count: int = 3):
        for number in range(count):
            prompt = f"City{number}. lies in"
            request = EditRequest(str(number), prompt, f"City{number}.", country, "Chad")
            case = EvalCase(str(number), (EvalPrompt("rewrite", prompt, country, "Chad"),))
            self.append(Record(request, case))


def cities(country: str, count: int = 3) -> list[Record]:
    return list(Cities(country, count))
"""


@pytest.mark.parametrize("target", ["Cities", "cities"])
def test_a_loader_outside_the_package_has_keys_of_its_own(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own_cities.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": f"own_cities.{target}", "country": "Peru", "count": 5}
    check_arguments(node, "dataset.loader")
    with caplog.at_level(logging.WARNING):
        dataset = select(instantiate(node), name="mine", total=4)
    assert [record.request.target_new for record in dataset.records] == ["Peru"] * 4
    assert sorted(ids(dataset.pool(9))) == ["0", "1", "2", "3", "4"]
    assert not caplog.records
    for wrong, problem in (
        ({"contry": "Peru"}, "no key 'dataset.loader.contry': .* takes country, count"),
        ({"country": 5}, "dataset.loader.country=5: must be a text"),
        ({"count": "many"}, "dataset.loader.count=many: must be a whole number"),
    ):
        with pytest.raises(SphereBenchError, match=problem):
            check_arguments({**node, **wrong}, "dataset.loader")
