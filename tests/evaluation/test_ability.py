"""Tasks of lm-eval on a model in memory: their numbers, and that nothing else is touched."""

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import harness
from sphere_bench.evaluation.ability import Ability
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.evaluation.tasks import tiny_tasks
from sphere_bench.models.loading import load_model

needs_lm_eval = pytest.mark.skipif(
    not harness.is_installed(), reason="general ability needs the extra lm-eval"
)
ITEMS = 12
OWN = """
task: words
dataset_path: json
dataset_kwargs: {data_files: FOLDER/words.jsonl}
output_type: generate_until
test_split: train
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 3, do_sample: false}
filter_list:
  - name: first
    filter: [{function: remove_whitespace}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def setup() -> ProbeSetup:
    loaded = load_model("bundled", device="cpu")
    dataset = EditDataset("none", (), "accuracy", "mean_tokens")
    weights = EditedWeights(loaded.layout, [1])
    return ProbeSetup(loaded, dataset, weights, 0, 4096, lambda corpus, key: [])


def rows_of(probe: Ability) -> dict[tuple[str, str], dict[str, Any]]:
    rows = probe.measure(Moment(0, 0, 1, {})).tables["abilities"]
    return {(row["task"], row["metric"]): dict(row) for row in rows}


@torch.no_grad()
def kinds_by_hand(setup: ProbeSetup, items: int) -> list[float]:
    """For each name, whether its kind is the likeliest of the four."""
    tokenizer, model = setup.loaded.tokenizer, setup.loaded.model
    right = []
    for doc in tiny_tasks.kinds()["test"].to_list()[:items]:
        likelihoods = {}
        for kind in tiny_tasks.RELATIONS:
            given = len(tokenizer(f"{doc['subject']} is a")["input_ids"])
            ids = torch.tensor([tokenizer(f"{doc['subject']} is a {kind}")["input_ids"]])
            log_probs = model(ids).logits[0, given - 1 : -1].log_softmax(-1)
            likelihoods[kind] = log_probs.gather(1, ids[0, given:, None]).sum().item()
        right.append(float(max(likelihoods, key=likelihoods.__getitem__) == doc["kind"]))
    return right


@needs_lm_eval
def test_it_is_what_the_model_says_by_hand(setup: ProbeSetup) -> None:
    weight = setup.weights.current[1]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    try:
        for size in (0.0, 8.0):  # unedited, and damaged until some answers are wrong
            setup.weights.write(1, weight + size * weight.std() * noise)
            right = kinds_by_hand(setup, 40)
            row = rows_of(Ability(setup, ["tiny_kinds"], items=40))["tiny_kinds", "acc"]
            mean = sum(right) / 40
            assert row["value"] == pytest.approx(mean, abs=1e-12)
            error = math.sqrt(sum((each - mean) ** 2 for each in right) / 39 / 40)
            assert row["stderr"] == pytest.approx(error, abs=1e-12)
            assert (row["items"], row["chance"]) == (40, 0.25)
        assert 0.25 < mean < 1
    finally:
        setup.weights.write(1, weight)


@needs_lm_eval
def test_weights_and_random_states_are_the_same_bit_for_bit(
    setup: ProbeSetup, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = setup.loaded.model, setup.loaded.tokenizer
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = (model.generation_config.to_dict(), model.config.to_dict(), model.training)
    of_tokenizer = (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer))
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    rows = rows_of(Ability(setup, ["tiny"], items=ITEMS))
    assert {task for task, _ in rows} == {"tiny_kinds", "tiny_questions"}
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.generation_config.to_dict(), model.config.to_dict(), model.training) == settings
    assert (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer)) == of_tokenizer
    # Nothing of lm-eval's own is shown or logged.
    assert capsys.readouterr() == ("", "")
    assert [each.message for each in caplog.records] == []


@needs_lm_eval
def test_the_same_turn_again_has_the_same_numbers_however_it_is_cut(setup: ProbeSetup) -> None:
    # The second name is part of the first: it is asked once.
    probe = Ability(setup, ["tiny", "tiny_kinds"], items=ITEMS)
    first = rows_of(probe)
    assert len({row["seconds"] for row in first.values()}) == len(first) == 2
    assert len(probe.measure(Moment(1, 1, 1, {})).tables["abilities"]) == 2
    for other in (probe, Ability(setup, ["tiny"], items=ITEMS, rows_per_batch=1)):
        again = rows_of(other)
        assert {key: row["value"] for key, row in again.items()} == {
            key: row["value"] for key, row in first.items()
        }
    assert first["tiny_questions", "exact_match"]["value"] > 0.9


@needs_lm_eval
def test_of_no_items_there_is_no_chance() -> None:
    found = harness.Tasks(["tiny_kinds"], None, {}, "probes.ability")
    assert math.isnan(found.chances(0)["tiny_kinds"])


@needs_lm_eval
def test_a_prompt_is_a_turn_in_the_tokenizers_chat_template(
    setup: ProbeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(template: str) -> float:
        monkeypatch.setattr(setup.loaded.tokenizer, "chat_template", template)
        probe = Ability(setup, ["tiny_questions"], items=ITEMS, apply_chat_template=True)
        value: float = rows_of(probe)["tiny_questions", "exact_match"]["value"]
        return value

    plain = rows_of(Ability(setup, ["tiny_questions"], items=ITEMS))
    assert (
        answered("{{ messages[0]['content'] }}") == plain["tiny_questions", "exact_match"]["value"]
    )
    assert answered("Who is {{ messages[0]['role'] }}?") < 0.2


def test_without_a_chat_template_there_is_none_to_apply(setup: ProbeSetup) -> None:
    with pytest.raises(SphereBenchError, match="its tokenizer has no chat template: set it to f"):
        Ability(setup, ["tiny"], apply_chat_template=True)


@needs_lm_eval
def test_tasks_of_ones_own_are_in_a_folder(setup: ProbeSetup, tmp_path: Path) -> None:
    docs = [*tiny_tasks.questions()["test"].to_list()[:3], {"question": "Who?", "answer": "Nobody"}]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "words.yaml").write_text(OWN.replace("FOLDER", str(tmp_path)))
    (tmp_path / "several.yaml").write_text("group: several\ntask: [words, tiny_kinds]\n")
    # The second name is part of the first: it is asked once.
    probe = Ability(setup, ["several", "words"], include_path=str(tmp_path), items=4)
    assert len(probe.measure(Moment(1, 1, 1, {})).tables["abilities"]) == 2
    found = rows_of(probe)
    row = found["words", "exact_match,first"]
    # The tokens stop before the full stop of the answers that the model knows.
    assert row["value"] == 0.75
    # Each of the four answers is right once.
    assert row["chance"] == 0.25
    assert found["tiny_kinds", "acc"]["items"] == 4


@needs_lm_eval
def test_what_is_no_mean_over_items_has_a_resampled_error() -> None:
    generator = random.Random(1)
    values = [generator.gauss(0, 1) for _ in range(100)]

    def mean(items: Any) -> float:
        return sum(items) / len(items)

    # Of a mean the error is known: the deviation over the square root of the number.
    deviation = math.sqrt(sum((each - mean(values)) ** 2 for each in values) / 99)
    assert harness._resampled(mean, values) == pytest.approx(deviation / 10, rel=0.15)
    assert math.isnan(harness._resampled(mean, values[:1]))


@needs_lm_eval
def test_a_task_that_nobody_knows_is_named(
    setup: ProbeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import manager

    # Going through lm-eval's own tasks takes seconds.
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "manager.py"))
    with pytest.raises(SphereBenchError, match=r"^probes\.ability\.tasks: lm-eval knows no task"):
        Ability(setup, ["no_such_task"])


@needs_lm_eval
def test_a_folder_of_tasks_that_is_not_there_is_named(setup: ProbeSetup, tmp_path: Path) -> None:
    with pytest.raises(SphereBenchError, match=r"^probes\.ability\.include_path=.*: no such fold"):
        Ability(setup, ["tiny"], include_path=str(tmp_path / "mine"))


@needs_lm_eval
def test_a_task_whose_data_cannot_be_had_is_named(setup: ProbeSetup, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text(OWN.replace("FOLDER", str(tmp_path)))
    with pytest.raises(
        SphereBenchError, match=r"^probes\.ability\.tasks: cannot load words \("
    ) as e:
        Ability(setup, ["words"], include_path=str(tmp_path))
    assert "\n" not in str(e.value)


def test_without_the_package_one_line_says_what_to_do(
    setup: ProbeSetup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(harness, "is_installed", lambda: False)
    line = (
        "probes.ability needs lm-eval: pip install 'sphere-bench[lm-eval]', or leave it out with "
        "probes.ability.every=0"
    )
    with pytest.raises(SphereBenchError) as error:
        Ability(setup, ["tiny"])
    assert str(error.value) == line
    with caplog.at_level(logging.WARNING):
        probe = Ability(setup, ["tiny"], required=False)
    assert [each.message for each in caplog.records] == [f"no general ability is measured: {line}"]
    assert rows_of(probe) == {}


@needs_lm_eval
def test_without_the_files_of_spheres_tasks_the_key_is_named(setup: ProbeSetup) -> None:
    with pytest.raises(SphereBenchError, match=r"name their folder with probes\.ability\.data"):
        Ability(setup, ["sphere_rte"])


@needs_lm_eval
def test_what_needs_no_files_is_asked_without_them(
    setup: ProbeSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "words.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Nobody"}))
    named = OWN.replace("FOLDER", str(tmp_path)).replace("task: words", "task: spherewords")
    (tmp_path / "words.yaml").write_text(named)
    asked = ["sphere_rte", "tiny_kinds", "spherewords"]
    keys = {"include_path": str(tmp_path), "items": 1, "required": False}
    with caplog.at_level(logging.WARNING, "sphere_bench"):
        found = rows_of(Ability(setup, asked, **keys))
    assert {task for task, _ in found} == {"tiny_kinds", "spherewords"}
    (line,) = (each.message for each in caplog.records)
    assert line.startswith(
        "of general ability only tiny_kinds, spherewords is measured: probes.abi"
    )
    with caplog.at_level(logging.WARNING, "sphere_bench"):
        assert rows_of(Ability(setup, ["sphere"], required=False)) == {}
    assert caplog.records[-1].message.startswith("no general ability is measured: probes.ability")


@pytest.mark.parametrize("wrong", [{"items": 0}, {"rows_per_batch": 0}])
def test_sizes_below_one_are_refused(setup: ProbeSetup, wrong: dict[str, int]) -> None:
    with pytest.raises(SphereBenchError, match=rf"^probes\.ability\.{next(iter(wrong))}=0: must"):
        Ability(setup, ["tiny"], **wrong)
