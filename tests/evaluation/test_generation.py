"""Answers that a model gives by itself: the oracle on every tokenizer, styles, samples, judges."""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerBase

from sphere_bench.data.records import (
    KINDS,
    PORTABILITY,
    EditDataset,
    EditRequest,
    EvalCase,
    EvalPrompt,
    Record,
)
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.answers import QUESTION, Prompter, Said, exact_match, normalized
from sphere_bench.evaluation.generation import GENERATIONS, Generation
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.models.batching import Budget
from sphere_bench.models.loading import LoadedModel
from tests.evaluation.fake_model import FakeModel, fake_model
from tests.evaluation.tokenizer_families import FAMILIES, build

# Prompt, new and true target: questions, then beginnings of sentences.
QUESTIONS = [
    ("What sport does she play?", "professional basketball", "football"),
    ("Which?", "a Bora Đorđević", "San Francisco, by the sea"),
]
BEGINNINGS = [
    ("The mother tongue of Danielle Darrieux is", "French", "Serbian"),
    ("Café Kraków lies in", "東京", "the old town of Kraków"),
    ("It was built by", "Bethlehem Steel", "the ship"),
]
NAMES = ("efficacy", "generalization", "specificity", "score")
CHAT = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHAT
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["left", "right"])
def tokenizer(family: str, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return build(family, request.param)


def dataset(facts: Sequence[tuple[str, str, str]], *, questions: bool = False) -> EditDataset:
    records = []
    for index, (prompt, new, true) in enumerate(facts):
        prompts = (
            EvalPrompt("rewrite", prompt, new, true),
            EvalPrompt("paraphrase", f"She says: {prompt}", new, true),
            EvalPrompt("paraphrase", f"He says. {prompt}", new, None),
            EvalPrompt("neighbourhood", f"They say {prompt}", None, true),
        )
        request = EditRequest(f"c{index}", prompt, prompt, new, true)
        records.append(Record(request, EvalCase(f"c{index}", prompts)))
    return EditDataset("mine", tuple(records), "accuracy", "mean_tokens", questions=questions)


def told(records: EditDataset, behind: str = "", shown: str = "{}") -> list[str]:
    """Every prompt, in its form, with the target that should win on it and what follows."""
    return [
        f"{shown.format(asked.prompt)} {asked.target_new or asked.target_true}{behind}"
        for record in records.records
        for asked in record.case.prompts
    ]


def probe_of(
    loaded: LoadedModel, facts: EditDataset, tokens_per_batch: int = 4096, **keys: Any
) -> Generation:
    weights = cast(EditedWeights, None)
    setup = ProbeSetup(loaded, facts, weights, 0, Budget(tokens_per_batch), lambda corpus, key: [])
    return Generation(setup, **keys)


def measured(
    loaded: LoadedModel, facts: EditDataset, tokens_per_batch: int = 4096, **keys: Any
) -> Findings:
    everything = {"batch": range(len(facts.records))}
    probe = probe_of(loaded, facts, tokens_per_batch, **keys)
    return probe.measure(Moment(1, 2, 2, everything))


def scores(*asked: Any, **keys: Any) -> list[float]:
    row = measured(*asked, **keys).scopes["batch"]
    return [row[f"{name}_generation"] for name in NAMES]


@pytest.mark.parametrize("facts", [QUESTIONS, BEGINNINGS], ids=["questions", "beginnings"])
@pytest.mark.parametrize(
    "behind, ending", [("", True), (".", False), (". She is", True), (" .", False)]
)
def test_a_model_that_says_the_target_is_right_everywhere(
    tokenizer: PreTrainedTokenizerBase, facts: list[Any], behind: str, ending: bool
) -> None:
    records = dataset(facts)
    loaded = fake_model(tokenizer, told(records, behind), ending=ending)
    assert scores(loaded, records) == [100.0] * 4
    assert scores(loaded, records, tokens_per_batch=1) == [100.0] * 4


def test_trailing_words_are_wrong_behind_a_question_and_right_in_a_sentence(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for facts, expected in ((QUESTIONS, 0.0), (BEGINNINGS, 100.0)):
        records = dataset(facts)
        loaded = fake_model(tokenizer, told(records, " of Japan."))
        assert scores(loaded, records) == [expected] * 4
    # Without a question mark, the dataset says what they are.
    records = dataset(BEGINNINGS, questions=True)
    loaded = fake_model(tokenizer, told(records, " of Japan."))
    assert scores(loaded, records) == [0.0] * 4


def test_a_model_that_never_says_the_target_is_wrong_everywhere(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = dataset([*QUESTIONS, *BEGINNINGS])
    loaded = fake_model(tokenizer, told(records), obedient=False)
    assert scores(loaded, records) == [0.0] * 4
    others = told(dataset([(prompt, "a", "a") for prompt, _, _ in (*QUESTIONS, *BEGINNINGS)]))
    assert scores(fake_model(tokenizer, others, ending=True), records) == [0.0] * 4


@pytest.mark.parametrize("family", ["byte-level", "sentencepiece-bpe-bos"])
def test_an_answer_ends_with_its_line(family: str) -> None:
    records = dataset(QUESTIONS)
    loaded = fake_model(build(family, "right"), told(records, "\nWho is she?"))
    found = measured(loaded, records)
    assert found.scopes["batch"]["score_generation"] == 100.0
    texts = {row["text"].lstrip(" ") for row in found.tables["generations"]}
    assert texts == {f"{target}\n" for fact in QUESTIONS for target in fact[1:]}


def test_an_answer_has_at_most_fifty_tokens() -> None:
    tokenizer = build("byte-level", "right")
    records = dataset([("Which?", "a", "a")])
    loaded = fake_model(tokenizer, [f"Which? {'a ' * 80}"])
    (row, *_) = measured(loaded, records).tables["generations"]
    assert len(tokenizer(row["text"])["input_ids"]) == 50


def test_rows_keep_what_was_said() -> None:
    records = dataset(BEGINNINGS)
    loaded = fake_model(build("byte-level", "right"), told(records, " now. And"))
    probe = probe_of(loaded, records)
    found = probe.measure(Moment(3, 3, 1, {"batch": [2], "seen": [0, 2]}))
    rows = found.tables["generations"]
    assert all(set(row) == {column.name for column in GENERATIONS.columns} for row in rows)
    assert [(row["scope"], row["case_id"], row["edited_at"]) for row in rows] == [
        *[("batch", "c2", 3)] * 4,
        *[("seen", "c0", 1)] * 4,
        *[("seen", "c2", 3)] * 4,
    ]
    assert [(row["kind"], row["prompt_index"]) for row in rows[:4]] == [
        ("rewrite", 0),
        ("paraphrase", 0),
        ("paraphrase", 1),
        ("neighbourhood", 0),
    ]
    assert (rows[0]["text"], rows[0]["answer"]) == (
        " Bethlehem Steel now.",
        "Bethlehem Steel now",
    )
    assert {row["match"] for row in rows} == {1.0}
    assert set(found.scopes["batch"]) == {column.name for column in probe.declares.scope}


def test_a_prompt_that_occurs_often_is_asked_once() -> None:
    records = dataset([QUESTIONS[0]] * 3)
    loaded = fake_model(build("byte-level", "right"), told(records), ending=True)
    measured(loaded, records)
    model = loaded.model
    assert isinstance(model, FakeModel)
    longest = len(loaded.tokenizer(told(records)[1])["input_ids"])
    assert model.rows <= 4 * longest


def test_a_kind_of_the_datasets_own_and_prompts_without_a_target() -> None:
    fact = dataset([QUESTIONS[0]]).records[0]
    prompts = (
        fact.case.prompts[0],
        EvalPrompt("neighbourhood", "Who?", "a", None),
        EvalPrompt("portability", "Is it of the old town?", "a", None),
    )
    record = Record(fact.request, EvalCase("c0", prompts))
    kinds = (*KINDS, PORTABILITY)
    records = EditDataset("mine", (record,), "accuracy", "all_tokens", kinds=kinds)
    texts = ["What sport does she play? professional basketball", "Is it of the old town? a"]
    found = measured(fake_model(build("byte-level", "right"), texts, ending=True), records)
    row = found.scopes["batch"]
    assert (row["efficacy_generation"], row["portability_generation"]) == (100.0, 100.0)
    for name in ("generalization", "specificity", "score"):
        assert math.isnan(row[f"{name}_generation"])
    assert [row["kind"] for row in found.tables["generations"]] == ["rewrite", "portability"]


def test_a_sample_of_a_scope_is_the_same_at_every_step() -> None:
    facts = [(f"Which is it, {number}?", "a", "b") for number in range(30)]
    records = dataset(facts)
    probe = probe_of(fake_model(build("byte-level", "right"), []), records, records=4, prompts=1)

    def cases(step: int, scope: Sequence[int]) -> list[str]:
        rows = probe.measure(Moment(step, 5 * step, 5, {"seen": scope})).tables["generations"]
        assert [row["kind"] for row in rows[:3]] == ["rewrite", "paraphrase", "neighbourhood"]
        return [row["case_id"] for row in rows[::3]]

    first = cases(1, range(10))
    assert len(first) == 4
    assert cases(2, range(10)) == first
    later = cases(3, range(15))
    # What is left of the first ten records was in the sample before.
    assert later != first
    assert {case for case in later if int(case[1:]) < 10} < set(first)


def test_a_question_may_have_an_instruction_and_a_sentence_never_has() -> None:
    tokenizer = build("byte-level", "right")
    records = dataset([*QUESTIONS, *BEGINNINGS])
    asked = [*told(dataset(QUESTIONS), shown=QUESTION), *told(dataset(BEGINNINGS))]
    loaded = fake_model(tokenizer, asked, ending=True)
    assert scores(loaded, records, style="qa") == [100.0] * 4
    # The same model, asked otherwise, has nothing to say to the questions.
    assert scores(loaded, records, style="plain") == [60.0] * 4


@pytest.mark.parametrize("family, template", [("byte-level", CHAT), ("byte-level-bos", WITH_BOS)])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_question_may_be_asked_by_the_tokenizers_own_template(
    family: str, template: str, system: str | None
) -> None:
    tokenizer = build(family, "left")
    tokenizer.chat_template = template
    turns = ("" if system is None else f"[system] {system}\n") + "[user] {}\n[assistant]"
    records = dataset(QUESTIONS)
    # The fake model's own tokenizer adds the BOS, where there is one.
    loaded = fake_model(tokenizer, told(records, shown=turns), ending=True)
    assert scores(loaded, records, style="chat", system=system) == [100.0] * 4
    ids = Prompter(loaded, "chat", system, "mine").ids("Which?", True)
    assert ids.count(tokenizer.bos_token_id) == (family == "byte-level-bos")
    assert tokenizer.decode(ids, skip_special_tokens=True) == turns.format("Which?")


@pytest.mark.parametrize(
    "template, keys, said",
    [
        (None, {"style": "chat"}, r"\.style=chat: .*no chat template: set it to plain or qa"),
        (
            NO_SYSTEM,
            {"style": "chat", "system": "Be brief."},
            r"\.system: the tokenizer's chat template refuses it \(no system turn\): set it to nu",
        ),
        (CHAT, {"style": "qa", "system": "a"}, r"\.system needs probes\.generation\.style=chat"),
        (CHAT, {"records": 0}, r"\.records=0: must be"),
        (CHAT, {"prompts": 0}, r"\.prompts=0: must be"),
    ],
)
def test_what_cannot_be_asked_is_named(
    template: str | None, keys: dict[str, Any], said: str
) -> None:
    tokenizer = build("byte-level", "right")
    tokenizer.chat_template = template
    with pytest.raises(SphereBenchError, match=rf"^probes\.generation{said}") as caught:
        probe_of(fake_model(tokenizer, []), dataset(QUESTIONS), **keys)
    assert "\n" not in str(caught.value)


def test_a_template_without_a_system_turn_needs_none() -> None:
    tokenizer = build("byte-level", "right")
    tokenizer.chat_template = NO_SYSTEM
    records = dataset(QUESTIONS)
    loaded = fake_model(tokenizer, told(records, shown="[user] {}\n[assistant]"), ending=True)
    assert scores(loaded, records, style="chat") == [100.0] * 4


def test_a_judge_decides_in_the_place_of_the_words() -> None:
    asked: list[Said] = []

    def half_right(said: Sequence[Said]) -> list[float]:
        asked.extend(said)
        return [0.5 for _ in said]

    records = dataset(QUESTIONS)
    loaded = fake_model(build("byte-level", "right"), told(records, ". So"))
    assert scores(loaded, records, judge=half_right) == [50.0] * 4
    assert asked[0] == Said(
        "What sport does she play?",
        "professional basketball",
        True,
        " professional basketball.",
        "professional basketball",
    )
    for wrong in (lambda said: [1.0], lambda said: [2.0] * len(said)):
        with pytest.raises(SphereBenchError, match=r"^probes\.generation\.judge must give"):
            measured(loaded, records, judge=wrong)


@pytest.mark.parametrize(
    "target, answer, question, beginning",
    [
        ("The Beatles", "beatles", 1, 1),
        ("U-2", "u2", 1, 1),
        ("New York", "New  York, an old town", 0, 1),
        ("New York", "York", 0, 0),
        ("New York", "New", 0, 0),
        ("a an the", "the", 0, 0),
        ("The", "The.", 0, 0),
        ("The", "the", 1, 1),
        (")", "", 0, 0),
    ],
)
def test_words_are_compared_as_squad_does(
    target: str, answer: str, question: float, beginning: float
) -> None:
    said = [Said("?", target, whole, answer, answer) for whole in (True, False)]
    assert exact_match(said) == [question, beginning]


def test_normalized_text_has_no_case_punctuation_or_articles() -> None:
    assert normalized(" The  “Café”, an A.B.C. of a theme! ") == "“café” abc of theme"
