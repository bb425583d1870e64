"""SimIE against the recursion of its paper, written plainly."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.simie import SimIE
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.errors import SphereBenchError
from tests.editing.test_editors import edit, nll, setup
from tests.golden_numbers import relative_error

MEMIT = "sphere_bench.editing.locate_then_edit.LocateThenEdit"
RIDGE = 0.5


def memit() -> LeastSquares:
    return LeastSquares(second_moment_weight=5.0)


def simie(given: EditingSetup, **settings: Any) -> SimIE:
    return SimIE(given, MEMIT, **{"ridge": RIDGE, **settings}, solver=memit())


def keys_of(given: EditingSetup, requests: list[EditRequest], layer: int) -> Tensor:
    """Inputs of the projection at every token of prompt and target, one text after another."""
    rows = []
    projection = given.loaded.model.model.layers[layer].mlp.down_proj
    handle = projection.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][0]))
    for request in requests:
        text = f"{request.prompt} {request.target_new}"
        with torch.no_grad():
            given.loaded.model(**given.loaded.tokenizer(text, return_tensors="pt"))
    handle.remove()
    return torch.cat(rows).double()


@pytest.mark.parametrize("start", ["pretrained", "current"])
def test_three_batches_follow_the_recursion(start: str) -> None:
    given = setup()
    requests = list(given.pool(6))
    batches = [requests[:2], requests[2:5], requests[5:]]
    editor = simie(given, start=start)
    expected = {layer: weight.double() for layer, weight in given.weights.pretrained.items()}
    grown = {
        layer: RIDGE * torch.eye(weight.shape[1], dtype=torch.float64)
        for layer, weight in expected.items()
    }
    for batch in batches:
        # MEMIT by itself, on a model of its own.
        alone = setup()
        if start == "current":
            for layer, weight in expected.items():
                alone.weights.write(layer, weight)
        keys = {layer: keys_of(alone, batch, layer) for layer in expected}
        edit(LocateThenEdit(alone, memit()), alone, batch)
        for layer, rows in keys.items():
            gram = rows.T @ rows
            grown[layer] = grown[layer] + gram
            change = alone.weights.current[layer].double() - expected[layer]
            expected[layer] = expected[layer] + change @ gram @ torch.linalg.inv(grown[layer])
        edit(editor, given, batch)
    for layer, weight in expected.items():
        before = given.weights.pretrained[layer]
        moved = given.weights.current[layer] - before
        assert relative_error(moved, weight - before.double()) < 1.4e-5
    assert nll(given, 6) < nll(setup(), 6) / 2


def test_with_a_ridge_near_zero_one_request_is_edited_as_by_the_wrapped_editor() -> None:
    given, alone = setup(), setup()
    (request,) = given.pool(1)
    edit(simie(given, ridge=1e-9), given, [request])
    edit(LocateThenEdit(alone, memit()), alone, [request])
    for layer in given.weights.layers:
        keys = keys_of(setup(), [request], layer)
        ours, theirs = (
            weights.current[layer].double() for weights in (given.weights, alone.weights)
        )
        assert relative_error(keys @ ours.T, keys @ theirs.T) < 2e-7


def test_a_wrapped_editor_keeps_its_memory() -> None:
    def wrapping(given: EditingSetup) -> SimIE:
        solver = LeastSquares(second_moment_weight=5.0, remember="written")
        return SimIE(given, MEMIT, ridge=RIDGE, solver=solver)

    whole, stopped = setup(), setup()
    first = wrapping(stopped)
    edit(first, stopped, stopped.pool(3))
    again = wrapping(stopped)
    again.load_state_dict(first.state_dict())
    edit(again, stopped, stopped.pool(6)[3:])
    straight = wrapping(whole)
    edit(straight, whole, whole.pool(3))
    edit(straight, whole, whole.pool(6)[3:])
    assert set(straight.state_dict()["wrapped"]["solver"]) == {"0", "1", "2"}
    for layer, weight in whole.weights.current.items():
        assert torch.equal(stopped.weights.current[layer], weight)


@pytest.mark.parametrize(
    "wraps, own, said",
    [
        ("nowhere.Nothing", {}, "editor.method.wraps=nowhere.Nothing"),
        (MEMIT, {}, "missing a required argument: 'solver'"),
        (MEMIT, {"solver": None, "rank": 1}, "unexpected keyword argument 'rank'"),
    ],
)
def test_what_cannot_be_wrapped_is_named(wraps: str, own: dict[str, Any], said: str) -> None:
    with pytest.raises(SphereBenchError, match=said) as caught:
        SimIE(setup(), wraps, **own)
    assert "\n" not in str(caught.value)
