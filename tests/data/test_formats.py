"""The formats: what a record becomes, and which mistake is named how."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sphere_bench.data.counterfact import COUNTERFACT
from sphere_bench.data.easyedit import EASYEDIT
from sphere_bench.data.fields import Fields, Format
from sphere_bench.data.qaedit import QAEDIT
from sphere_bench.data.records import EvalPrompt, Record
from sphere_bench.data.zsre import zsre_format
from sphere_bench.errors import SphereBenchError

RAW: dict[str, dict[str, Any]] = {
    "counterfact": {
        "case_id": 7,
        "pararel_idx": 11185,
        "requested_rewrite": {
            "prompt": "{} debuted on",
            "relation_id": "P449",
            "target_new": {"str": "CBS", "id": "Q43380"},
            "target_true": {"str": "MTV", "id": "Q43359"},
            "subject": "Singled Out",
        },
        "paraphrase_prompts": ["A show. Singled Out is to debut on", "Singled Out is shown on"],
        "neighborhood_prompts": ["Daria premieres on"],
        "attribute_prompts": ["60 Minutes is on"],
        "generation_prompts": ["Singled Out"],
    },
    "easyedit": {
        "case_id": 7,
        "prompt": "Singled Out debuted on",
        "subject": "Singled Out",
        "target_new": "CBS",
        "ground_truth": "MTV",
        "rephrase_prompt": "Singled Out is to debut on",
        "locality_prompt": "Daria premieres on",
        "locality_ground_truth": "MTV",
    },
    "zsre": {
        "subject": "Singled Out",
        "src": "Which channel showed Singled Out?",
        "pred": "MTV",
        "rephrase": "Where did Singled Out debut?",
        "alt": "CBS",
        "answers": ["MTV", "MTV Networks"],
        "loc": "nq question: who wrote the iliad",
        "loc_ans": "Homer",
        "cond": "MTV >> CBS || Which channel showed Singled Out?",
    },
    "qaedit": {
        "id": 7,
        "source": "TQA",
        "prompt": "Which channel showed Singled Out?",
        "target": "Columbia Broadcasting System",
        "subject": "Singled Out",
        "rephrase": "Where did Singled Out debut?",
        "locality": [
            {"loc": "who wrote the iliad", "loc_ans": "Homer"},
            {"loc": "when was the first us space shuttle launched", "loc_ans": "12 April 1981"},
        ],
    },
}
FORMATS = {
    "counterfact": COUNTERFACT,
    "easyedit": EASYEDIT,
    "zsre": zsre_format(),
    "zsre-alt": zsre_format("alt"),
    "qaedit": QAEDIT,
}


def parse(name: str, raw: object) -> Record:
    known: Format = FORMATS[name]
    return known.parse(Fields(raw, "facts.json: record 3", known.known), 3)


def test_counterfact_record() -> None:
    record = parse("counterfact", RAW["counterfact"])
    assert record.request.case_id == record.case.case_id == "7"
    assert record.request.prompt == "Singled Out debuted on"
    assert record.request.subject == "Singled Out"
    assert (record.request.target_new, record.request.target_true) == ("CBS", "MTV")
    assert record.case.prompts == (
        EvalPrompt("rewrite", "Singled Out debuted on", "CBS", "MTV"),
        EvalPrompt("paraphrase", "A show. Singled Out is to debut on", "CBS", "MTV"),
        EvalPrompt("paraphrase", "Singled Out is shown on", "CBS", "MTV"),
        EvalPrompt("neighbourhood", "Daria premieres on", "CBS", "MTV"),
    )


def test_a_counterfact_record_has_what_the_model_goes_on_with() -> None:
    case = parse("counterfact", RAW["counterfact"]).case
    assert case.generation_prompts == ("Singled Out",)
    assert case.attribute == ("P449", "Q43380")
    without = copy.deepcopy(RAW["counterfact"])
    del without["generation_prompts"], without["requested_rewrite"]["target_new"]["id"]
    case = parse("counterfact", without).case
    assert (case.generation_prompts, case.attribute) == ((), None)


def test_easyedit_record() -> None:
    record = parse("easyedit", RAW["easyedit"])
    assert record.request.prompt == "Singled Out debuted on"
    assert record.case.prompts == (
        EvalPrompt("rewrite", "Singled Out debuted on", "CBS", "MTV"),
        EvalPrompt("paraphrase", "Singled Out is to debut on", "CBS", "MTV"),
        EvalPrompt("neighbourhood", "Daria premieres on", "CBS", "MTV"),
    )


def test_easyedit_needs_no_more_than_prompt_subject_and_target() -> None:
    raw = {"prompt": "Singled Out debuted on", "subject": "Singled Out", "target_new": "CBS"}
    record = parse("easyedit", raw)
    assert record.request.case_id == "3"
    assert record.case.prompts == (EvalPrompt("rewrite", raw["prompt"], "CBS", None),)


def test_easyedit_takes_lists_of_prompts() -> None:
    raw = {
        **RAW["easyedit"],
        "rephrase_prompt": ["Singled Out is on", "Singled Out was first on"],
        "locality_prompt": ["Daria is on", "Friends is on"],
        "locality_ground_truth": ["MTV", "NBC"],
    }
    prompts = parse("easyedit", raw).case.prompts
    assert [prompt.kind for prompt in prompts].count("paraphrase") == 2
    assert prompts[-1] == EvalPrompt("neighbourhood", "Friends is on", "CBS", "NBC")


def test_zsre_record_writes_the_first_answer() -> None:
    record = parse("zsre", RAW["zsre"])
    assert record.request.case_id == "3"
    assert (record.request.target_new, record.request.target_true) == ("MTV", None)
    assert record.case.prompts == (
        EvalPrompt("rewrite", "Which channel showed Singled Out?", "MTV", None),
        EvalPrompt("paraphrase", "Where did Singled Out debut?", "MTV", None),
        EvalPrompt("neighbourhood", "nq question: who wrote the iliad?", None, "Homer"),
    )


def test_zsre_alt_competes_with_the_right_answer() -> None:
    request = parse("zsre-alt", RAW["zsre"]).request
    assert (request.target_new, request.target_true) == ("CBS", "MTV")


def test_zsre_question_mark_is_not_doubled() -> None:
    record = parse("zsre", {**RAW["zsre"], "loc": "nq question: who wrote the iliad?"})
    assert record.case.prompts[-1].prompt == "nq question: who wrote the iliad?"


def test_qaedit_record_is_named_by_its_source_and_its_id() -> None:
    record = parse("qaedit", RAW["qaedit"])
    assert record.request.case_id == record.case.case_id == "TQA-7"
    assert (record.request.target_new, record.request.target_true) == (
        "Columbia Broadcasting System",
        None,
    )
    assert record.case.prompts == (
        EvalPrompt("rewrite", "Which channel showed Singled Out?", record.request.target_new, None),
        EvalPrompt("paraphrase", "Where did Singled Out debut?", record.request.target_new, None),
        EvalPrompt("neighbourhood", "who wrote the iliad", None, "Homer"),
        EvalPrompt(
            "neighbourhood", "when was the first us space shuttle launched", None, "12 April 1981"
        ),
    )


def test_qaedit_needs_no_more_than_prompt_subject_and_target() -> None:
    names = ("prompt", "subject", "target")
    record = parse("qaedit", {name: RAW["qaedit"][name] for name in names})
    assert record.request.case_id == "3"
    assert [prompt.kind for prompt in record.case.prompts] == ["rewrite"]


@pytest.mark.parametrize("name", ["easyedit", "zsre"])
@pytest.mark.parametrize(
    "portability",
    [
        {
            "Recalled Relation": "(CBS, owned by, Paramount)",
            "New Question": "Who owns the channel that showed Singled Out?",
            "New Answer": "Paramount",
        },
        {
            "Reasoning": [
                {
                    "prompt": "Who owns the channel that showed Singled Out?",
                    "ground_truth": [["Paramount", "Paramount Global"], ["Viacom"]],
                }
            ],
            "Subject_Aliasing": [],
        },
        {
            "Logical_Generalization": [
                {
                    "prompt": "Who owns the channel that showed Singled Out?",
                    "ground_truth": "Paramount",
                }
            ]
        },
    ],
)
def test_portability_is_a_kind_of_its_own(name: str, portability: dict[str, Any]) -> None:
    prompts = parse(name, {**RAW[name], "portability": portability}).case.prompts
    assert prompts[:-1] == parse(name, RAW[name]).case.prompts
    question = "Who owns the channel that showed Singled Out?"
    assert prompts[-1] == EvalPrompt("portability", question, "Paramount", None)


def test_an_empty_field_that_is_not_used_is_valid() -> None:
    raw = {**RAW["zsre"], "alt": ""}
    assert parse("zsre", raw).request.target_new == "MTV"
    with pytest.raises(SphereBenchError, match="record 3: field 'alt' is empty"):
        parse("zsre-alt", raw)


@pytest.mark.parametrize("name", RAW)
def test_spaces_around_targets_and_prompts_are_not_theirs(name: str) -> None:
    def padded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: padded(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [padded(inner) for inner in value]
        return f"  {value}\n" if isinstance(value, str) else value

    assert parse(name, padded(RAW[name])) == parse(name, RAW[name])


def _nested(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        *path, last = name.split(".")
        for part in path:
            raw = raw[part]
        raw[last] = value

    return change


def _renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        *path, last = old.split(".")
        for part in path:
            raw = raw[part]
        raw[new] = raw.pop(last)

    return change


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("easyedit", _renamed("target_new", "target_nwe"), "has no field 'target_new'; is"),
        ("easyedit", _nested("target_new", None), "has no field 'target_new'"),
        ("easyedit", _nested("target_new", "  "), "field 'target_new' is empty"),
        ("easyedit", _nested("target_new", 5), "field 'target_new' must be a text, not 5"),
        ("easyedit", _nested("ground_truth", ""), "field 'ground_truth' is empty"),
        ("easyedit", _nested("subject", "Daria"), "field 'prompt' does not hold the subject"),
        ("easyedit", _nested("prompt", "oo"), "field 'prompt' does not hold the subject"),
        (
            "easyedit",
            _nested("prompt", "Singled Out, Singled Out"),
            "field 'prompt' holds the subject 'Singled Out' more than once",
        ),
        ("easyedit", _renamed("rephrase_prompt", "rephrase_promt"), "'rephrase_promt' is unknown"),
        ("easyedit", _nested("colour", "red"), "field 'colour' is unknown; known: case_id, "),
        ("easyedit", _nested("locality_prompt", ["a", "b"]), "has 1 answers for 2 texts"),
        ("easyedit", _nested("rephrase_prompt", ["a", ""]), "'rephrase_prompt[1]' is empty"),
        ("easyedit", _nested("rephrase_prompt", 1), "'rephrase_prompt' must be a list of texts"),
        ("easyedit", _nested("case_id", True), "field 'case_id' must be a text, not True"),
        ("easyedit", _nested("case_id", ""), "field 'case_id' is empty"),
        ("easyedit", _nested("prompt", "\ud800 Singled Out"), "'prompt' is not valid Unicode"),
        ("counterfact", _nested("requested_rewrite", []), "'requested_rewrite' must be an object"),
        (
            "counterfact",
            _renamed("requested_rewrite.target_new", "target"),
            "has no field 'requested_rewrite.target_new'; is 'requested_rewrite.target' meant",
        ),
        (
            "counterfact",
            _renamed("requested_rewrite.target_new.str", "string"),
            "has no field 'requested_rewrite.target_new.str'",
        ),
        (
            "counterfact",
            _nested("requested_rewrite.target_new", "CBS"),
            "'requested_rewrite.target_new' must be an object, not 'CBS'",
        ),
        (
            "counterfact",
            _nested("requested_rewrite.prompt", "Singled Out debuted on"),
            "'requested_rewrite.prompt' must hold '{}' exactly once",
        ),
        (
            "counterfact",
            _nested("requested_rewrite.prompt", "{} {} debuted on"),
            "'requested_rewrite.prompt' must hold '{}' exactly once",
        ),
        (
            "counterfact",
            _nested("requested_rewrite.prompt", "Unlike Singled Out, {} debuted on"),
            "'requested_rewrite.prompt' holds the subject",
        ),
        (
            "counterfact",
            _renamed("paraphrase_prompts", "paraphase_prompts"),
            "field 'paraphase_prompts' is unknown; did you mean 'paraphrase_prompts'?",
        ),
        ("easyedit", _nested("portability", "why"), "'portability' must be an object, not 'why'"),
        (
            "easyedit",
            _nested("portability", {"New Question": "Who owns it?"}),
            "has no field 'portability.New Answer'",
        ),
        (
            "easyedit",
            _nested("portability", {"Reasonning": []}),
            "'portability.Reasonning' is unknown; did you mean 'Reasoning'?",
        ),
        (
            "easyedit",
            _nested("portability", {"Reasoning": ["Who owns it?"]}),
            "field 'portability.Reasoning[0]' must be an object",
        ),
        (
            "easyedit",
            _nested("portability", {"Reasoning": [{"prompt": "Who?", "ground_truth": [[]]}]}),
            "field 'portability.Reasoning[0].ground_truth' must be a text, not []",
        ),
        (
            "counterfact",
            _nested("generation_prompts", [""]),
            "field 'generation_prompts[0]' is empty",
        ),
        ("qaedit", _nested("locality", {}), "field 'locality' must be a list of objects, not {}"),
        (
            "qaedit",
            _nested("locality", [{"loc": "who wrote the iliad"}]),
            "has no field 'locality[0].loc_ans'",
        ),
        ("qaedit", _renamed("target", "target_new"), "has no field 'target'; is 'target_new'"),
        ("qaedit", _nested("id", ""), "field 'id' is empty"),
        ("zsre", _nested("answers", []), "field 'answers' is empty"),
        ("zsre", _nested("answers", [""]), r"field 'answers[0]' is empty"),
        ("zsre", _nested("answers", "MTV"), "field 'answers' must be a list of texts"),
        ("zsre", _renamed("answers", "answer"), "has no field 'answers'; is 'answer' meant"),
        ("zsre", _nested("loc_ans", None), "has no field 'loc_ans'"),
        ("zsre", _nested("src", "Who?"), "field 'src' does not hold the subject"),
    ],
)
def test_a_mistake_is_named_with_record_and_field(
    name: str, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    raw = copy.deepcopy(RAW[name])
    change(raw)
    with pytest.raises(SphereBenchError) as caught:
        parse(name, raw)
    message = str(caught.value)
    assert message.startswith("facts.json: record 3")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize("raw", [None, 3, "text", ["prompt"]])
@pytest.mark.parametrize("name", FORMATS)
def test_a_record_must_be_an_object(name: str, raw: object) -> None:
    with pytest.raises(SphereBenchError, match="record 3: it must be an object"):
        parse(name, raw)
