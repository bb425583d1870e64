"""The bundled world and its model are what they are said to be."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from sphere_bench import assets

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MEGABYTE = 1_000_000


def occurrences(word: str, text: str) -> int:
    """How often `word` stands in `text` as such, and not inside another word."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text))


@pytest.fixture(scope="module")
def counterfact() -> list[dict[str, Any]]:
    return json.loads(assets.facts_counterfact_path().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def zsre() -> list[dict[str, Any]]:
    return json.loads(assets.facts_zsre_path().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(assets.tiny_gpt2_path()).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(assets.tiny_gpt2_path())


@pytest.fixture(scope="module")
def world_script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("tiny_world")


@torch.no_grad()
def share_known(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> float:
    """Share of (prompt, target) pairs for which every token of " target" is the argmax."""
    encoded = [
        (tokenizer(prompt)["input_ids"], tokenizer(f" {target}")["input_ids"])
        for prompt, target in pairs
    ]
    encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    right = 0
    for start in range(0, len(encoded), 256):
        chunk = encoded[start : start + 256]
        width = max(len(prompt) + len(target) for prompt, target in chunk)
        ids = torch.full((len(chunk), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, (prompt, target) in enumerate(chunk):
            ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
            mask[row, : len(prompt) + len(target)] = 1
        best = model(ids, attention_mask=mask).logits.argmax(-1)
        for row, (prompt, target) in enumerate(chunk):
            right += best[row, len(prompt) - 1 : len(prompt) + len(target) - 1].tolist() == target
    return right / len(encoded)


def test_assets_fit_into_six_megabytes() -> None:
    folder = assets.tiny_gpt2_path().parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 6 * MEGABYTE


def test_counterfact_has_enough_facts_and_relations(counterfact: list[dict[str, Any]]) -> None:
    rewrites = [record["requested_rewrite"] for record in counterfact]
    assert len(rewrites) >= 1500
    assert len({rewrite["relation_id"] for rewrite in rewrites}) >= 12
    assert len({rewrite["subject"] for rewrite in rewrites}) == len(rewrites)
    assert [record["case_id"] for record in counterfact] == list(range(len(counterfact)))


def test_counterfact_prompts_hold_the_subject_once(counterfact: list[dict[str, Any]]) -> None:
    for record in counterfact:
        rewrite = record["requested_rewrite"]
        assert rewrite["prompt"].count("{}") == 1
        prompts = [rewrite["prompt"].format(rewrite["subject"]), *record["paraphrase_prompts"]]
        assert len(prompts) == 3
        for prompt in [*prompts, *record["generation_prompts"]]:
            assert occurrences(rewrite["subject"], prompt) == 1
            assert prompt.count(rewrite["subject"]) == 1


def test_counterfact_targets_are_bare_and_differ(counterfact: list[dict[str, Any]]) -> None:
    for record in counterfact:
        new = record["requested_rewrite"]["target_new"]
        true = record["requested_rewrite"]["target_true"]
        assert new["str"] != true["str"]
        assert new["id"] != true["id"]
        for target in (new["str"], true["str"]):
            assert target
            assert target == target.strip()


def test_neighbours_share_the_true_object_and_attributes_the_new_one(
    counterfact: list[dict[str, Any]], world_script: ModuleType
) -> None:
    facts = world_script.build_world().facts
    fact_of = {template.format(fact.subject): fact for fact in facts for template in fact.seen}
    for record in counterfact:
        rewrite = record["requested_rewrite"]
        assert len(record["neighborhood_prompts"]) >= 9
        for prompt in record["neighborhood_prompts"]:
            fact = fact_of[prompt]  # a template that this neighbour was seen with
            assert fact.relation.relation_id == rewrite["relation_id"]
            assert fact.target == rewrite["target_true"]["str"]
            assert occurrences(rewrite["subject"], prompt) == 0
        for prompt in record["attribute_prompts"]:
            assert fact_of[prompt].target == rewrite["target_new"]["str"]


def test_paraphrases_end_in_the_held_out_templates(
    counterfact: list[dict[str, Any]], world_script: ModuleType
) -> None:
    fact_of = {fact.subject: fact for fact in world_script.build_world().facts}
    for record in counterfact:
        fact = fact_of[record["requested_rewrite"]["subject"]]
        assert record["requested_rewrite"]["prompt"] in fact.seen
        for prompt, template in zip(record["paraphrase_prompts"], fact.unseen, strict=True):
            assert template not in fact.seen
            assert prompt.endswith(template.format(fact.subject))


def test_zsre_records_are_in_mends_format(zsre: list[dict[str, Any]]) -> None:
    assert len(zsre) >= 300
    for record in zsre:
        for prompt in (record["src"], record["rephrase"]):
            assert occurrences(record["subject"], prompt) == 1
        assert record["src"] != record["rephrase"]
        assert record["answers"]
        assert record["answers"][0] not in ("", record["pred"])
        assert record["loc"].startswith("nq question: ")
        assert record["subject"] not in record["loc"]
        assert record["loc_ans"]


def test_qaedit_records_ask_what_the_model_knows(model: Any, tokenizer: Any) -> None:
    records = json.loads(assets.facts_qaedit_path().read_text(encoding="utf-8"))
    assert len(records) >= 200
    assert len({(record["source"], record["id"]) for record in records}) == len(records)
    pairs = []
    for record in records:
        for prompt in (record["prompt"], record["rephrase"]):
            assert occurrences(record["subject"], prompt) == 1
        assert record["subject"] not in str(record["locality"])
        pairs += [(unrelated["loc"], unrelated["loc_ans"]) for unrelated in record["locality"]]
    assert share_known(model, tokenizer, pairs) >= 0.95


def test_there_are_snippets_for_every_new_target(counterfact: list[dict[str, Any]]) -> None:
    snippets = json.loads(assets.snippets_path().read_text(encoding="utf-8"))
    texts = {(entry["relation_id"], entry["target_id"]): entry["samples"] for entry in snippets}
    for record in counterfact:
        rewrite = record["requested_rewrite"]
        samples = texts[rewrite["relation_id"], rewrite["target_new"]["id"]]
        for sample in samples:
            assert sample["name"] in sample["text"]
            assert occurrences(rewrite["target_new"]["str"], sample["text"]) == 2


def test_corpus_is_long_enough_for_key_statistics(model: Any, tokenizer: Any) -> None:
    lines = assets.corpus_path().read_text(encoding="utf-8").splitlines()
    tokens = sum(len(ids) for ids in tokenizer(lines)["input_ids"])
    assert tokens >= 10 * 4 * model.config.n_embd


def test_model_and_tokenizer_load_as_stated(model: Any, tokenizer: Any) -> None:
    assert isinstance(model, GPT2LMHeadModel)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.num_parameters() < 3_000_000
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    text = "The rain stopped at noon."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_some_targets_and_all_subjects_have_several_tokens(
    counterfact: list[dict[str, Any]], tokenizer: Any
) -> None:
    rewrites = [record["requested_rewrite"] for record in counterfact]
    targets = [len(tokenizer(f" {r['target_new']['str']}")["input_ids"]) for r in rewrites]
    subjects = [len(tokenizer(f" {r['subject']}")["input_ids"]) for r in rewrites]
    assert sum(count > 1 for count in targets) > len(targets) / 4
    assert min(subjects) > 1


def test_model_knows_the_facts_in_held_out_templates(
    model: Any, tokenizer: Any, counterfact: list[dict[str, Any]]
) -> None:
    pairs = [
        (prompt, record["requested_rewrite"]["target_true"]["str"])
        for record in counterfact
        for prompt in record["paraphrase_prompts"]
    ]
    assert share_known(model, tokenizer, pairs) >= 0.95


def test_model_answers_the_questions(
    model: Any, tokenizer: Any, zsre: list[dict[str, Any]]
) -> None:
    assert share_known(model, tokenizer, [(r["src"], r["pred"]) for r in zsre]) >= 0.95
    assert share_known(model, tokenizer, [(r["rephrase"], r["pred"]) for r in zsre]) >= 0.95
    # With and without the question mark: loaders differ in whether they add it.
    assert share_known(model, tokenizer, [(r["loc"], r["loc_ans"]) for r in zsre]) >= 0.90
    marked = [(f"{r['loc']}?", r["loc_ans"]) for r in zsre]
    assert share_known(model, tokenizer, marked) >= 0.90


def test_the_seed_gives_the_shipped_world_byte_for_byte(world_script: ModuleType) -> None:
    world = world_script.build_world(seed=0)
    written = {
        assets.facts_counterfact_path(): world_script.to_json(
            world_script.counterfact_records(world)
        ),
        assets.facts_zsre_path(): world_script.to_json(world_script.zsre_records(world)),
        assets.facts_qaedit_path(): world_script.to_json(world_script.qaedit_records(world)),
        assets.snippets_path(): world_script.to_json(world_script.snippet_records(world)),
        assets.corpus_path(): world_script.corpus_text(world),
    }
    for path, text in written.items():
        assert path.read_bytes() == text.encode("utf-8")
