"""SPHERE's four tasks: what the published code counts as right, and what is corrected."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import harness
from sphere_bench.evaluation.ability import Ability
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.evaluation.tasks import sphere_tasks as tasks
from tests.tiny_models import tiny_model

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "downstream"
BOOLQ = {"label": "no"}
RTE = {"label": "true"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records of each task in the published files' format."""
    root = tmp_path_factory.mktemp("downstream")
    count = range(30)
    lines: dict[str, list[Any]] = {
        "gsm8k": [
            {"question": f"{n} and 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in count
        ],
        "nq": [
            {"question": f"who is {n}?", "output": [f"It is {n}."], "answer": [f"{n}", "nobody"]}
            for n in count
        ],
        "boolq": [
            {"question": f"is it {n}", "passage": f"It is {n}.", "answer": n % 3 > 0} for n in count
        ],
    }
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (root / tasks.FILES[name]).write_text(text)
    rte = [f'{n}\tA "{n}" is here.\tA is here.\t{["not_", ""][n % 2]}entailment\n' for n in count]
    header = "index\tsentence1\tsentence2\tlabel\n"
    (root / tasks.FILES["rte"]).write_text(header + "".join(rte))
    return root


@pytest.mark.parametrize(
    "judge, number, said, right",
    [
        (tasks.number_within, "18", " $18.", 1),
        # The published rule takes any number that holds the right one.
        (tasks.number_within, "18", " 3180", 1),
        (tasks.number_within, "18", " 17", 0),
        (tasks.first_number, "18", " $18.", 1),
        (tasks.first_number, "18", " 3180", 0),
        (tasks.first_number, "18", " 17 or 18", 0),
        (tasks.first_number, "1000", " 1,000.00 dollars", 1),
        (tasks.first_number, "-5", " -5", 1),
        (tasks.first_number, "18", " eighteen", 0),
        (tasks.first_number, "18", "", 0),
    ],
)
def test_numbers(judge: Callable[..., Any], number: str, said: str, right: int) -> None:
    assert judge({"number": number}, [said]) == {"acc": right}


@pytest.mark.parametrize(
    "answers, said, right",
    [
        (["Wilhelm Röntgen"], " It was the Wilhelm Röntgen, in 1901.", 1),
        (["May 18 , 2018"], " on May 18, 2018", 1),
        (["Olivia", "MFSK"], " mfsk", 1),
        (["Wilhelm Röntgen"], " Wilhelm Conrad Röntgen", 0),
        (["Olivia"], "", 0),
        # Said again, only what stands behind the last one counts.
        (["Olivia"], " Olivia\nAnswer: MFSK", 0),
    ],
)
def test_spans(answers: Sequence[str], said: str, right: int) -> None:
    assert tasks.any_span({"answers": answers}, [said]) == {"acc": right}


@pytest.mark.parametrize(
    "doc, said, published, corrected",
    [
        (BOOLQ, " no", "no", "no"),
        (BOOLQ, " not", "no", "invalid"),
        (BOOLQ, " Yes.", "yes", "yes"),
        (BOOLQ, " maybe", "invalid", "invalid"),
        (BOOLQ, "", "invalid", "invalid"),
        (RTE, " True, or", "true", "true"),
        (RTE, "\nfalse", "false", "false"),
        # "true" is looked for before "false".
        (RTE, " false or true", "true", "false"),
    ],
)
def test_words(doc: dict[str, str], said: str, published: str, corrected: str) -> None:
    found = tasks.word_within(doc, [said])
    assert found["acc"] == found["f1"] == found["mcc"] == (doc["label"], published)
    assert found["invalid"] == (published == "invalid")
    found = tasks.first_word(doc, [said])
    assert found["f1"] == (doc["label"], corrected)
    assert found["acc"] == (corrected == doc["label"])


def test_invalid_answers_are_left_out_as_published_and_wrong_otherwise() -> None:
    labels = [("yes", "yes"), ("no", "yes"), ("no", "no"), ("no", "invalid")]
    assert tasks.accuracy_of_valid(labels) == pytest.approx(2 / 3)
    assert tasks.accuracy_of_valid([("no", "invalid")]) == 0.0
    # yes: precision 1/2, recall 1; no: precision 1, recall 1/3, three times as many.
    assert tasks.weighted_f1(labels) == pytest.approx((2 / 3 + 3 * 0.5) / 4)
    assert tasks.matthews([("yes", "yes"), ("no", "no")]) == 1.0
    assert tasks.matthews([("yes", "no"), ("no", "yes")]) == -1.0
    assert tasks.matthews([("yes", "yes"), ("no", "yes")]) == 0.0


def test_f1_and_mcc_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="it needs the extra lm-eval")
    draw = random.Random(0)
    for _ in range(20):
        right = draw.choices(["yes", "no"], weights=[2, 1], k=15)
        said = draw.choices(["yes", "no", "invalid"], k=15)
        labels = list(zip(right, said, strict=True))
        f1 = metrics.f1_score(right, said, average="weighted", zero_division=0)
        assert tasks.weighted_f1(labels) == pytest.approx(f1, abs=1e-12)
        mcc = metrics.matthews_corrcoef(right, said)
        assert tasks.matthews(labels) == pytest.approx(mcc, abs=1e-12)


def test_published_items_come_in_the_files_order_and_the_others_in_one_of_their_own(
    folder: Path,
) -> None:
    first = tasks.gsm8k_published(str(folder))["test"].to_list()
    assert [doc["number"] for doc in first[:3]] == ["1", "2", "3"]
    assert first[2]["rationale"] == "2 + 1 = 3\n"
    drawn = [tasks.gsm8k(str(folder), version=1)["test"].to_list() for _ in "ab"]
    assert drawn[0] == drawn[1] != first
    assert sorted(map(str, drawn[0])) == sorted(map(str, first))
    assert (
        tasks.rte(str(folder))["test"].to_list()
        != tasks.rte_published(str(folder))["test"].to_list()
    )


@pytest.mark.skipif(not harness.is_installed(), reason="it needs the extra lm-eval")
def test_lm_eval_asks_them_as_published(folder: Path) -> None:
    metadata = {"data_path": str(folder)}
    found = harness.Tasks(["sphere_published", "sphere"], None, metadata, "probes.ability")
    asked = {}
    for loaded in found.loaded.values():
        for name, task in loaded["tasks"].items():
            with harness.quiet():
                task.build_all_requests(limit=2)
            asked[name] = [instance.args for instance in task.instances]
    prompt, settings = asked["sphere_gsm8k_published"][1]
    assert prompt == (
        "Q: 1 and 1? A:Let's think step by step. 1 + 1 = 2\n Therefore, the answer (arabic "
        "numerals) is:"
    )
    assert settings == {"until": [], "max_gen_toks": 5, "do_sample": False}
    prompt, settings = asked["sphere_nq_published"][1]
    assert prompt == (
        "Refer to the passage below and answer the following question.\nPassage: It is 1.\n"
        "Question: who is 1?\nAnswer:"
    )
    assert settings["max_gen_toks"] == 20
    prompt, settings = asked["sphere_boolq_published"][1]
    assert prompt == (
        "Please answer the given question based on the passage. The answer should be exact 'yes' "
        "or 'no'. passage: It is 1. question: is it 1. answer: "
    )
    assert settings["max_gen_toks"] == 1
    prompt, settings = asked["sphere_rte_published"][1]
    assert prompt == 'A "1" is here. entails A is here.. True or False? answer:'
    assert settings["max_gen_toks"] == 1
    assert all("+ 1 =" not in prompt for prompt, _ in asked["sphere_gsm8k"])
    assert all(prompt.endswith("answer:") for prompt, _ in asked["sphere_boolq"])
    # A third of the answers of BoolQ are no, so that always to say yes is right twice as often.
    chances = found.chances(None)
    assert chances["sphere_boolq"] == pytest.approx(2 / 3)
    assert chances["sphere_rte"] == 0.5
    assert chances["sphere_gsm8k"] == pytest.approx(1 / 30)
    assert chances["sphere_nq"] == 1.0  # nobody is an answer to all of them


@pytest.mark.skipif(not harness.is_installed(), reason="it needs the extra lm-eval")
def test_all_eight_can_be_asked(folder: Path) -> None:
    loaded = tiny_model("llama")
    loaded.model.config.max_position_embeddings = 256
    dataset = EditDataset("none", (), "accuracy", "mean_tokens")
    weights = EditedWeights(loaded.layout, [1])
    setup = ProbeSetup(loaded, dataset, weights, 0, 4096, lambda corpus, key: [])
    probe = Ability(setup, ["sphere", "sphere_published"], items=6, data_path=str(folder))
    rows = probe.measure(Moment(0, 0, 1, {})).tables["abilities"]
    assert len({row["task"] for row in rows}) == 8
    assert {row["metric"] for row in rows} == {"acc", "invalid", "f1", "mcc"}
    assert all(row["items"] == 6 for row in rows)
    # A random model says nothing that is valid: no accuracy, and the share says why.
    values = {(row["task"], row["metric"]): row["value"] for row in rows}
    for task in ("sphere_rte", "sphere_rte_published"):
        assert (values[task, "acc"], values[task, "invalid"]) == (0.0, 1.0)
    assert all(torch.tensor(row["stderr"]).isfinite() for row in rows)


@pytest.mark.parametrize("name", tasks.FILES)
def test_a_file_that_is_missing_or_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    load = getattr(tasks, name)
    with pytest.raises(SphereBenchError, match=r"set probes\.ability\.data_path to the folder"):
        load(version=1)
    with pytest.raises(SphereBenchError, match=rf"no {tasks.FILES[name]} there$"):
        load(str(tmp_path))
    (tmp_path / tasks.FILES[name]).write_text('{"q": 1}\n{"q": 2}\n')
    with pytest.raises(SphereBenchError, match="is not as SPHERE's authors publish it"):
        load(str(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no published files here")
def test_the_published_files_are_read_whole() -> None:
    counts = {
        name: len(getattr(tasks, f"{name}_published")(str(SHARED))["test"]) for name in tasks.FILES
    }
    assert counts == {"gsm8k": 1319, "nq": 3610, "boolq": 3267, "rte": 2489}
    numbers = [doc["number"] for doc in tasks.gsm8k(str(SHARED))["test"]]
    assert all(tasks.first_number({"number": each}, [f" {each}"])["acc"] for each in numbers)
