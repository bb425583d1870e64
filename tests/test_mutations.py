"""The list of mistakes that tests must notice fits the code; CONTRIBUTING.md says how to try it."""

from collections import Counter

import pytest

from scripts.mutation_check import ROOT, Mutation, problem_of, read_mutations

MUTATIONS = read_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_can_be_made_and_its_tests_exist(mutation: Mutation) -> None:
    assert problem_of(mutation) is None
    files = [each for each in mutation.tests.split() if each.startswith("tests/")]
    assert files
    assert all((ROOT / each).exists() for each in files)


def test_every_mutation_has_a_name_of_its_own() -> None:
    assert len(MUTATIONS) >= 25
    assert max(Counter(each.name for each in MUTATIONS).values()) == 1


def test_a_mutation_that_changes_nothing_or_is_not_there_once_has_a_problem() -> None:
    first = MUTATIONS[0]
    assert problem_of(first._replace(old="e", new="x")) is not None
    assert problem_of(first._replace(old="no such text")) == f"its text is 0 times in {first.file}"
    assert problem_of(first._replace(new=first.old)) == "it changes nothing"
