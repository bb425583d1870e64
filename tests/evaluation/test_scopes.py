"""Which records are looked at after which step."""

from typing import Any

from sphere_bench.evaluation.scopes import Scopes


def scopes(records: int, batch_size: int = 10, **choices: Any) -> Scopes:
    return Scopes(records, batch_size, **choices)


def test_scopes_of_a_step() -> None:
    found = scopes(25, seen=4, first=3).of(2)
    assert found["batch"] == list(range(10, 20))
    assert found["first"] == [0, 1, 2]
    assert len(found["seen"]) == 4
    assert found["seen"] == sorted(set(found["seen"]))
    assert set(found["seen"]) <= set(range(20))
    assert list(found) == ["batch", "seen", "first"]


def test_the_last_batch_may_be_smaller() -> None:
    assert scopes(25).of(3)["batch"] == list(range(20, 25))
    assert [scopes(25).edits(step) for step in range(-1, 5)] == [0, 0, 10, 20, 25, 25]


def test_step_0_looks_at_the_first_batch_on_the_unedited_model() -> None:
    found = scopes(25, seen=4, milestones=[0]).of(0)
    assert found["batch"] == found["first"] == list(range(10))
    assert len(found["seen"]) == 4
    assert set(found["seen"]) <= set(range(10))
    assert found["all"] == list(range(25))


def test_seen_is_everything_until_there_is_more() -> None:
    assert scopes(25, seen=20).of(2)["seen"] == list(range(20))


def test_seen_changes_only_by_records_that_enter() -> None:
    all_scopes = scopes(300, seen=20)
    before: set[int] = set()
    for step in range(1, 31):
        sample = set(all_scopes.of(step)["seen"])
        entered = sample - before
        assert entered <= set(range((step - 1) * 10, step * 10))
        before = sample


def test_seen_depends_on_the_seed_and_not_on_how_many_records_follow() -> None:
    samples = [scopes(90, seen=5, seed=seed).of(9)["seen"] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert scopes(500, seen=5, seed=1).of(9)["seen"] == samples[0]


def test_first_is_at_most_the_first_batch() -> None:
    assert scopes(25, first=100).of(2)["first"] == list(range(10))
    assert scopes(5, first=100).of(1)["first"] == list(range(5))


def test_scopes_of_size_0_are_left_out() -> None:
    assert list(scopes(25, seen=0, first=0).of(1)) == ["batch"]


def test_all_is_there_once_a_milestone_is_passed() -> None:
    all_scopes = scopes(45, milestones=[15, 50])
    due = {step: all_scopes.of(step).get("all") for step in range(1, 6)}
    assert due == {1: None, 2: list(range(20)), 3: None, 4: None, 5: None}
