"""What a batch does with an editor's writes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.numerics import NonfiniteError
from sphere_bench.editing.transforms import EditedWeight
from sphere_bench.errors import SphereBenchError
from tests.editing.test_pipeline import REQUESTS, draw, setup


def halve(update: Tensor, weight: EditedWeight) -> Tensor:
    return update / 2


class Seen:
    """A transform that changes nothing and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, EditedWeight]] = []

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        self.calls.append((update, weight))
        return update


def batch(given: EditingSetup, *transforms: Any, apply: Any = "in_loop") -> Batch:
    return Batch(REQUESTS, given.loaded, given.weights, transforms, apply)


def updates(given: EditingSetup) -> tuple[Tensor, Tensor, Tensor]:
    before = given.weights.current[1]
    return before, draw(before, seed=0), draw(before, seed=1)


def test_several_writes_in_the_loop_are_transformed_one_by_one_and_add_up() -> None:
    given, seen = setup(), Seen()
    before, first, second = updates(given)
    made = batch(given, seen, halve)
    made.write(1, first)
    half = (before.double() + first / 2).float()
    assert torch.equal(given.weights.current[1], half)
    made.write(1, second)
    assert torch.equal(given.weights.current[1], (half.double() + second / 2).float())
    assert all(map(torch.equal, (update for update, _ in seen.calls), (first, second)))
    assert torch.equal(seen.calls[1][1].current, half)
    assert not made.settle()
    made.note_update_norms()
    assert made.report.layers[1].update_norm == (first + second).norm().item()


def test_deferred_writes_are_put_as_proposed_and_their_sum_is_transformed_once() -> None:
    given, seen = setup(), Seen()
    before, first, second = updates(given)
    made = batch(given, seen, halve, apply="after")
    made.write(1, first)
    made.write(2, first)
    assert torch.equal(given.weights.current[1], (before.double() + first).float())
    made.write(1, second)
    total = first + second
    assert torch.equal(given.weights.current[1], (before.double() + total).float())
    assert not seen.calls
    assert made.settle()
    assert torch.equal(given.weights.current[1], (before.double() + total / 2).float())
    assert [weight.layer for _, weight in seen.calls] == [1, 2]
    assert torch.equal(seen.calls[0][0], total) and torch.equal(seen.calls[0][1].current, before)
    assert not made.settle()


def test_what_is_written_after_settling_starts_from_the_settled_weight() -> None:
    given = setup()
    before, first, second = updates(given)
    made = batch(given, halve, apply="after")
    made.write(1, first)
    made.settle()
    made.write(1, second)
    assert made.settle()
    half = (before.double() + first / 2).float()
    assert torch.equal(given.weights.current[1], (half.double() + second / 2).float())
    made.note_update_norms()
    assert made.report.layers[1].update_norm == (first + second).norm().item()


def test_an_update_that_carries_gradients_is_written_without_them() -> None:
    given = setup()
    factor = torch.ones_like(given.weights.current[1], requires_grad=True)
    batch(given).write(1, 2 * factor)
    assert not given.weights.current[1].requires_grad


@pytest.mark.parametrize("apply", ["in_loop", "after"])
def test_a_layer_or_a_shape_that_does_not_fit_is_named(apply: Any) -> None:
    given = setup()
    weight = given.weights.current[1]
    shape = list(weight.shape)
    made = batch(given, apply=apply)
    with pytest.raises(SphereBenchError, match=r"layer 3 is not edited: .*editor\.layers=\[1, 2\]"):
        made.write(3, draw(weight, seed=0))
    message = rf"the update for layer 1 has the shape \[{shape[0]}, 1\]"
    with pytest.raises(SphereBenchError, match=message):
        made.write(1, draw(weight, seed=0)[:, :1])
    made = batch(given, lambda update, weight: update[0], apply=apply)
    message = rf"what function returns for layer 1 has the shape \[{shape[1]}\]"
    with pytest.raises(SphereBenchError, match=message):
        made.write(1, draw(weight, seed=0))
        made.settle()


def test_rows_are_checked_against_the_batch_or_the_requests_that_are_given() -> None:
    made = batch(setup())
    made.check("key", torch.ones(1, 3))
    bad = torch.full((1, 3), float("inf"))
    with pytest.raises(NonfiniteError, match=r"^the key of case 0 is not finite"):
        made.check("key", bad)
    other = EditRequest("other", "Rome lies in", "Rome", "Spain", None)
    with pytest.raises(NonfiniteError, match=r"^the key of case other is not finite"):
        made.check("key", bad, [other])
    with pytest.raises(SphereBenchError, match="2 rows for 1 requests: give one for each"):
        made.check("key", torch.ones(2, 3))


def test_a_stage_has_one_of_four_names_and_its_seconds_add_up() -> None:
    made = batch(setup())
    for _ in range(2):
        with made.timed("keys"):
            pass
    assert made.report.seconds["keys"] > 0
    assert made.report.seconds["values"] == 0
    unknown: Any = "thinking"
    with (
        pytest.raises(SphereBenchError, match="the stage=thinking: must be one of values, keys"),
        made.timed(unknown),
    ):
        pass


@pytest.mark.parametrize("apply", ["in_loop", "after"])
def test_an_editor_may_use_its_tensor_again(apply: str) -> None:
    given = setup()
    before, update, _ = updates(given)
    buffer, made = update.clone(), batch(given, apply=apply)
    made.write(1, buffer)
    buffer.mul_(5)
    made.settle()
    made.note_update_norms()
    assert torch.equal(given.weights.current[1], (before.double() + update).float())
    assert made.report.layers[1].update_norm == update.norm().item()
