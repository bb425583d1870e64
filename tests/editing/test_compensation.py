"""Error compensation, against the normal equations written out in full."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.batch import Batch
from sphere_bench.editing.compensation import CompensatedLeastSquares
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.emmet import Emmet
from sphere_bench.editing.methods.fine_tuning import FineTuning
from sphere_bench.editing.methods.rlsedit import RlsEdit
from sphere_bench.editing.numerics import Numerics
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.editing.state import flatten_state, unflatten_state
from sphere_bench.editing.transforms import EditedWeight, Rect
from sphere_bench.errors import SphereBenchError
from tests.golden_numbers import LAYERS, load_golden, relative_error

WIDTH, OUT, REQUESTS, WEIGHT = 12, 5, 4, 3.0


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment() -> Tensor:
    keys = draw(WIDTH, 40, seed=0)
    return keys @ keys.T / 40


@pytest.mark.parametrize("remember", [None, "written", "solved"])
@pytest.mark.parametrize(
    ("ridge", "null_space"), [(0.0, None), (20.0, None), (20.0, NullSpace(threshold=0.5))]
)
def test_the_next_batch_solves_for_what_the_deployed_update_lacks(
    remember: Any, ridge: float, null_space: NullSpace | None
) -> None:
    """dW = (R K^T - E) (A + K K^T)^-1 within the null space, E = (dW' - dW) C'."""
    least_squares = LeastSquares(WEIGHT, ridge, remember, null_space)
    least_squares.prepare({0: moment()})
    solver = CompensatedLeastSquares(least_squares)
    basis = torch.eye(WIDTH).double() if null_space is None else null_space.basis(moment(), 0)
    system = basis.T @ (WEIGHT * moment() + (ridge or 1.0) * torch.eye(WIDTH)) @ basis
    error = torch.zeros(OUT, basis.shape[1], dtype=torch.float64)
    for batch in range(20):
        keys, residual = draw(WIDTH, REQUESTS, seed=batch), draw(OUT, REQUESTS, seed=50 + batch)
        inside = basis.T @ keys
        whole = system + inside @ inside.T
        expected = (residual @ inside.T - error) @ torch.linalg.inv(whole) @ basis.T
        update = solver.solve(0, keys, residual)
        torch.testing.assert_close(update, expected, rtol=4e-15, atol=4e-15)
        written = keys + 0.1 * draw(WIDTH, REQUESTS, seed=100 + batch)
        if solver.remembers_written_keys:
            solver.remember(0, written)
        deployed = update * (draw(OUT, WIDTH, seed=150 + batch) > 0)
        solver.carry(0, deployed - update)
        error = (deployed - update) @ basis @ (system if remember is None else whole)
        if remember is not None:
            added = basis.T @ (written if remember == "written" else keys)
            system = system + added @ added.T


def test_all_that_was_ever_missing_is_what_the_normal_equations_lack_in_the_end() -> None:
    """The sum of dW'_t C'_t is that of R_t K_t^T, but for the last E: nothing else is lost."""
    least_squares = LeastSquares(WEIGHT, remember="solved")
    least_squares.prepare({0: moment()})
    solver = CompensatedLeastSquares(least_squares)
    whole = WEIGHT * moment() + torch.eye(WIDTH)
    asked, given = torch.zeros(OUT, WIDTH).double(), torch.zeros(OUT, WIDTH).double()
    for batch in range(10):
        keys, residual = draw(WIDTH, REQUESTS, seed=batch), draw(OUT, REQUESTS, seed=50 + batch)
        whole = whole + keys @ keys.T
        update = solver.solve(0, keys, residual)
        deployed = update * (update.abs() > update.abs().median())
        solver.carry(0, deployed - update)
        asked, given = asked + residual @ keys.T, given + deployed @ whole
    last = solver.state_dict()["errors"]["0"]
    torch.testing.assert_close(given - asked, last, rtol=8e-14, atol=8e-14)
    assert last.norm() < asked.norm()


def setup(layers: tuple[int, ...] = LAYERS) -> EditingSetup:
    return load_golden("tiny-llama").setup(layers)


class Drawn(LocateThenEdit):
    """Solves for keys and residuals that are drawn instead of measured."""

    batches = 0

    def edit(self, batch: Batch) -> None:
        self.batches += 1
        for layer, weight in batch.weights.current.items():
            keys, residual = drawn(weight, layer, self.batches)
            batch.write(layer, self.solver.solve(layer, keys, residual))
            if self.solver.remembers_written_keys:
                self.solver.remember(layer, keys)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batches": torch.tensor(self.batches)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.batches = int(state["batches"])


def drawn(weight: Tensor, layer: int, batch: int) -> tuple[Tensor, Tensor]:
    out, width = weight.shape
    return draw(width, 4, seed=100 * batch + layer), 0.1 * draw(out, 4, seed=100 * batch + layer)


def scaled(update: Tensor, weight: EditedWeight) -> Tensor:
    return 0.7 * update


def clipped(update: Tensor, weight: EditedWeight) -> Tensor:
    """A conditioner of the whole change, as PRUNE is."""
    earlier = (weight.current - weight.pretrained).to(update)
    return 0.8 * (earlier + update) - earlier


CONDITIONED = {"transforms": [scaled], "conditioner": clipped}
PLACES: dict[str, dict[str, Any]] = {
    "in_loop": {"transforms": [scaled]},
    "after": {"transforms": [scaled], "apply": "after"},
    "unconditioned": CONDITIONED,
    "deployed": {**CONDITIONED, "continue_from": "deployed"},
    "deployed change": {**CONDITIONED, "apply": "deployed"},
}


def deployed_change(place: str, updates: list[Tensor]) -> Tensor:
    """The change of the deployed weight after the updates."""
    raw = deployed = torch.zeros_like(updates[0])
    for update in updates:
        if place in ("in_loop", "after"):
            deployed = deployed + 0.7 * update
        elif place == "unconditioned":
            raw = raw + 0.7 * update
            deployed = 0.8 * raw
        elif place == "deployed":
            deployed = 0.8 * (deployed + 0.7 * update)
        else:
            raw = raw + update
            deployed = 0.7 * 0.8 * raw
    return deployed


@pytest.mark.parametrize("place", PLACES)
def test_the_error_is_that_of_what_is_deployed(place: str) -> None:
    given = setup()
    pipeline = EditingPipeline(
        Drawn(given, LeastSquares(5.0, remember="solved")), given, compensate=True, **PLACES[place]
    )
    for _ in range(4):
        pipeline.edit(given.pool(1))
    for layer in LAYERS:
        before = given.weights.pretrained[layer]
        proposed: list[Tensor] = []
        system = 5.0 * given.second_moments()[layer].double() + torch.eye(before.shape[1])
        error = earlier = torch.zeros_like(before).double()
        for batch in range(1, 5):
            keys, residual = drawn(before, layer, batch)
            system = system + keys @ keys.T
            proposed.append(torch.linalg.solve(system, (residual @ keys.T - error).T).T)
            change = deployed_change(place, proposed)
            error = (change - earlier - proposed[-1]) @ system
            earlier = change
        # The deployed weights are float32.
        assert relative_error(given.weights.current[layer] - before, earlier) < 1.3e-5


def test_with_nothing_to_make_up_for_an_editor_is_left_as_it_is() -> None:
    given = setup()
    editor = Drawn(given, LeastSquares(5.0))
    pipeline = EditingPipeline(editor, given, compensate=True)
    assert type(editor.solver) is LeastSquares
    assert "errors" not in pipeline.state_dict()["editor"]["solver"]


def resumable(given: EditingSetup, numerics: Numerics | None = None) -> EditingPipeline:
    editor = Drawn(given, LeastSquares(5.0, remember="written"))
    return EditingPipeline(
        editor, given, [scaled], clipped, compensate=True, numerics=numerics or Numerics()
    )


def test_the_carried_error_is_restored_bit_for_bit() -> None:
    whole, first, second = (resumable(setup()) for _ in range(3))
    for _ in range(4):
        whole.edit(setup().pool(1))
    for _ in range(2):
        first.edit(setup().pool(1))
    saved = {name: each.clone() for name, each in flatten_state(first.state_dict(), "state")}
    assert f"editor/solver/errors/{LAYERS[0]}" in saved
    for layer, weight in first.weights.current.items():
        second.weights.write(layer, weight)
    second.load_state_dict(unflatten_state(saved))
    for _ in range(2):
        second.edit(setup().pool(1))
    for layer, weight in whole.weights.current.items():
        assert torch.equal(second.weights.current[layer], weight)


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_skipped_batch_leaves_the_error_that_was_carried(
    earlier: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping, clean = (resumable(setup(), Numerics("skip")) for _ in range(2))
    for _ in range(earlier):
        skipping.edit(setup().pool(1))
        clean.edit(setup().pool(1))

    def fail(self: CompensatedLeastSquares, layer: int, error: Tensor) -> None:
        carry(self, layer, error)
        if layer == LAYERS[-1]:
            raise torch.linalg.LinAlgError("singular")

    carry = CompensatedLeastSquares.carry
    with monkeypatch.context() as patch:
        patch.setattr(CompensatedLeastSquares, "carry", fail)
        assert skipping.edit(setup().pool(1)).skipped
    skipping.edit(setup().pool(1))
    clean.edit(setup().pool(1))
    expected = dict(flatten_state(clean.state_dict(), "state"))
    for name, tensor in flatten_state(skipping.state_dict(), "state"):
        assert torch.equal(tensor, expected.pop(name))
    assert not expected
    for layer, weight in clean.weights.current.items():
        assert torch.equal(skipping.weights.current[layer], weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda given: Emmet(given, 1.0),
        lambda given: RlsEdit(given, 1.0),
        lambda given: FineTuning(given),
    ],
)
def test_an_editor_that_cannot_carry_an_error_is_refused(make: Any) -> None:
    given = setup(layers=(1,))
    editor: Editor = make(given)
    name = type(editor).__name__
    with pytest.raises(SphereBenchError, match=rf"^editor\.compensate=true: {name} does not solve"):
        EditingPipeline(editor, given, [scaled], compensate=True)


def share_missing(keep: float, compensated: bool) -> float:
    """What a linear memory of 160 facts, written in 40 batches, lacks of them in the end."""
    least_squares = LeastSquares(0.1, ridge=1.0, remember="written")
    least_squares.prepare({0: torch.eye(256).double()})
    solver, rect = CompensatedLeastSquares(least_squares), Rect(keep)
    weight = pretrained = draw(16, 256, seed=999)
    facts = [(draw(256, 4, seed=batch), draw(16, 4, seed=500 + batch)) for batch in range(40)]
    for keys, values in facts:
        update = solver.solve(0, keys, values - weight @ keys)
        deployed = rect(update, EditedWeight(0, pretrained, weight))
        solver.remember(0, keys)
        if compensated:
            solver.carry(0, deployed - update)
        weight = weight + deployed
    keys, values = (torch.cat(each, dim=1) for each in zip(*facts, strict=True))
    return ((weight @ keys - values).norm() / (pretrained @ keys - values).norm()).item()


def test_rect_loses_facts_of_a_long_stream_and_compensation_gives_them_back() -> None:
    assert share_missing(1, compensated=False) == share_missing(1, compensated=True) < 0.01
    # Reached are 0.48 and 0.08 with RECT's 40 %, 0.79 and 0.26 with OTE-SE's 20 %.
    for keep, lost, given_back in ((0.4, 0.4, 0.1), (0.2, 0.7, 0.3)):
        assert share_missing(keep, compensated=False) > lost
        assert share_missing(keep, compensated=True) < given_back
