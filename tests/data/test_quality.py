"""What a run is warned of before its first edit."""

import pytest

from sphere_bench.assets import facts_counterfact_path, facts_zsre_path
from sphere_bench.data.checks import is_part_of_a_word, subject_problem
from sphere_bench.data.quality import warnings_of
from sphere_bench.data.record_file import RecordFile
from sphere_bench.data.records import EditDataset, EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.data.selection import select


def dataset(*facts: tuple[str, str, str | None]) -> EditDataset:
    """Facts of a subject, a new and a true target; their case ids are their numbers from 0 on."""
    records = [
        Record(
            EditRequest(str(number), f"{subject} lies in", subject, new, true),
            EvalCase(str(number), ()),
        )
        for number, (subject, new, true) in enumerate(facts)
    ]
    return EditDataset("mine", tuple(records), "success", "all_tokens")


def test_a_prompt_that_a_batch_edits_to_two_targets_is_named_with_its_cases() -> None:
    rome, fallen, oslo = ("Rome", "Peru", None), ("Rome", "Cuba", None), ("Oslo", "Peru", None)
    first, second = warnings_of(dataset(rome, oslo, fallen, rome, oslo, fallen), 3)
    assert first == (
        "mine: 2 prompts are edited to several targets within a batch, so that none of these is "
        "written as it should be: cases 0 and 2, 3 and 5"
    )
    assert second == (
        "mine: 3 records are overwritten by a later edit of the same prompt to another target: "
        "from then on they are left out of the scores (evaluation.superseded=leave_out): "
        "cases 0, 2, 3"
    )


def test_what_becomes_of_an_overwritten_record_is_as_configured() -> None:
    rome, fallen = ("Rome", "Peru", None), ("Rome", "Cuba", None)
    (line,) = warnings_of(dataset(rome, fallen), 1, "score")
    assert "1 record is overwritten" in line
    assert line.endswith("they still count in the scores (evaluation.superseded=score): cases 0")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_same_target_once_more_is_no_contradiction(batch_size: int) -> None:
    rome = ("Rome", "Peru", "Italy")
    assert warnings_of(dataset(rome, rome, rome), batch_size) == []


def test_a_target_that_is_true_already_is_named_with_its_cases() -> None:
    facts = [(f"City{number}", "Peru", "Peru") for number in range(8)]
    (line,) = warnings_of(dataset(*facts, ("Rome", "Peru", "Italy"), ("Oslo", "Peru", None)), 100)
    assert line == (
        "mine: 8 records are edited to the true answer itself (the new target equals the true "
        "one), so that success is never reached: cases 0, 1, 2, 3, 4 and 3 more"
    )


def test_a_subject_within_a_word_is_named_with_its_case() -> None:
    request = EditRequest("7", "Romania lies in", "Rom", "Peru", None)
    odd = EditDataset("mine", (Record(request, EvalCase("7", ())),), "success", "all_tokens")
    (line,) = warnings_of(odd, 1)
    assert line.startswith("mine: 1 record is edited at a subject that is only a part of a longer")
    assert line.endswith(": cases 7")


def test_a_paraphrase_of_several_facts_is_named() -> None:
    def record(number: int, subject: str, target: str, paraphrase: str) -> Record:
        request = EditRequest(str(number), f"{subject} lies in", subject, target, None)
        prompts = (
            EvalPrompt("rewrite", request.prompt, target, None),
            EvalPrompt("paraphrase", paraphrase, target, None),
            EvalPrompt("neighbourhood", "Lima lies in", target, "Peru"),
        )
        return Record(request, EvalCase(str(number), prompts))

    records = (
        record(0, "Rome", "Chad", "Reworded:"),
        record(1, "Oslo", "Peru", "Reworded:"),
        # The same target in both, and the same fact twice.
        record(2, "Bonn", "Peru", "Both lie in"),
        record(3, "Kyiv", "Peru", "Both lie in"),
        record(4, "Bern", "Peru", "Where is Bern?"),
        record(5, "Bern", "Chad", "Where is Bern?"),
    )
    lines = warnings_of(EditDataset("mine", records, "accuracy", "all_tokens"), 1)
    assert lines[1:] == [
        "mine: 1 paraphrase is the same for several facts with unlike targets, so that no "
        "answer is right for all of them: 'Reworded:'"
    ]
    assert "overwritten" in lines[0]


@pytest.mark.parametrize("path", [facts_counterfact_path(), facts_zsre_path()])
def test_nothing_is_odd_about_the_bundled_facts(path: object) -> None:
    assert warnings_of(select(RecordFile(str(path)), name="tiny"), 50) == []


@pytest.mark.parametrize(
    ("prompt", "subject", "inside"),
    [
        ("Romania lies in", "Rom", True),
        ("Romania lies in", "mania", True),
        ("In 1984 it", "98", True),
        ("Ελλάδα", "Ελλ", True),
        ("Rome lies in", "Rome", False),
        ("Rome's river", "Rome", False),
        ("(Rome)", "Rome", False),
        ("the C++ language", "C++", False),
        ("Rome", "Rome", False),
        ("東京都は", "東京", False),
    ],
)
def test_whether_a_subject_is_a_part_of_a_word(prompt: str, subject: str, inside: bool) -> None:
    assert is_part_of_a_word(prompt, subject) == inside


COMPOSED, DECOMPOSED = "Beyonc\u00e9", "Beyonce\u0301"


@pytest.mark.parametrize(
    ("prompt", "subject"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["NFC", "NFD"]
)
def test_a_subject_in_another_composition_than_its_prompt_is_named_as_that(
    prompt: str, subject: str
) -> None:
    problem = subject_problem(f"{prompt} sings in", subject)
    assert problem is not None and "only after Unicode normalisation" in problem
    assert "write both the same way" in problem
    assert subject_problem(f"{subject} sings in", subject) is None


def test_an_occurrence_within_a_word_is_counted_and_said() -> None:
    problem = subject_problem("In tandoori cooking, a tandoor is a", "tandoor")
    assert problem is not None and "more than once (a part of a longer word counts too)" in problem
    plain = subject_problem("Rome is Rome", "Rome")
    assert plain is not None and plain.startswith("holds the subject 'Rome' more than once: ")
