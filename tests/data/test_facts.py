"""Which later edit gives a fact another target."""

import random

from sphere_bench.data.facts import overwritten_by
from sphere_bench.data.records import EditRequest


def requests(*facts: tuple[str, str]) -> list[EditRequest]:
    """Facts of a prompt, whose first word is the subject, and a target."""
    return [
        EditRequest(str(number), prompt, prompt.split()[0], target, None)
        for number, (prompt, target) in enumerate(facts)
    ]


def test_a_later_edit_of_the_same_prompt_to_another_target_overwrites() -> None:
    rome, oslo = "Rome lies in", "Oslo lies in"
    stream = [(rome, "Peru"), (oslo, "Peru"), (rome, "Cuba"), (oslo, "Peru"), (rome, "Cuba")]
    assert overwritten_by(requests(*stream)) == {0: 2}


def test_the_first_later_one_counts_and_a_return_to_the_old_target_takes_nothing_back() -> None:
    stream = requests(*(("Rome lies in", target) for target in ("Peru", "Peru", "Cuba", "Peru")))
    assert overwritten_by(stream) == {0: 2, 1: 2, 2: 3}


def test_another_relation_of_the_subject_is_another_fact() -> None:
    assert overwritten_by(requests(("Rome lies in", "Peru"), ("Rome speaks", "Latin"))) == {}


def test_capitals_spaces_and_composition_make_no_other_fact_or_target() -> None:
    composed, decomposed = "Ré lies in", "Re\u0301 lies  in"
    assert overwritten_by(requests((composed, "Peru"), (decomposed, "peru "))) == {}
    assert overwritten_by(requests((composed, "Peru"), (decomposed, "Cuba"))) == {0: 1}


def test_it_is_what_looking_at_every_later_edit_finds() -> None:
    draw = random.Random(0)
    stream = requests(*((f"{draw.choice('abc')} is", draw.choice("xyz")) for _ in range(200)))
    expected = {}
    for index, request in enumerate(stream):
        for later in range(index + 1, len(stream)):
            other = stream[later]
            if other.prompt == request.prompt and other.target_new != request.target_new:
                expected[index] = later
                break
    assert overwritten_by(stream) == expected
