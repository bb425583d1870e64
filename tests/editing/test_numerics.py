"""Numbers that are not finite, planted where editors meet them: none gets into a model unasked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing import locate_then_edit
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.keys import BatchReader
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.fine_tuning import FineTuning
from sphere_bench.editing.methods.locft import LocFTReplay
from sphere_bench.editing.methods.rome import Rome
from sphere_bench.editing.methods.ultraedit import UltraEdit
from sphere_bench.editing.numerics import NonfiniteError, Numerics, requests_problem
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.editing.transforms import Prune, Sphere, Transform
from sphere_bench.editing.weights import EditedWeights
from tests.golden_numbers import LAYERS, NAMES, load_golden

NAN = float("nan")


def alphaedit(setup: EditingSetup) -> LocateThenEdit:
    null_space = NullSpace(0.02, "share")
    return LocateThenEdit(setup, LeastSquares(ridge=10, remember="written", null_space=null_space))


def memit(setup: EditingSetup) -> LocateThenEdit:
    return LocateThenEdit(setup, LeastSquares(5.0))


# The editor, and the conditioner behind it.
EDITORS: dict[str, tuple[Callable[[EditingSetup], Editor], type[Prune] | None]] = {
    "memit": (memit, None),
    "alphaedit": (alphaedit, None),
    "rlsedit": (lambda setup: LocateThenEdit(setup, LeastSquares(5.0, remember="solved")), None),
    "prune": (memit, Prune),
    "ultraedit": (lambda setup: UltraEdit(setup, learning_rate=1e-4), None),
    "ft": (lambda setup: FineTuning(setup, steps=2), None),
    "locft-bf-replay": (lambda setup: LocFTReplay(setup, steps=2, replay=2), None),
}


def setup(model: str = "tiny-gpt2") -> EditingSetup:
    golden = load_golden(model)
    values = replace(golden.values, steps=2)
    return golden.setup(values=values, contexts=golden.contexts[:2])


def pipeline(
    given: EditingSetup,
    policy: str,
    editor: str | Editor,
    *,
    largest_update: float | None = None,
    transforms: Sequence[Transform] = (),
    apply: Any = "in_loop",
) -> EditingPipeline:
    conditioner = None
    if isinstance(editor, str):
        make, conditioner = EDITORS[editor]
        editor = make(given)
    return EditingPipeline(
        editor,
        given,
        transforms,
        conditioner() if conditioner else None,
        sphere=Sphere(alpha=0.5, basis="current"),
        apply=apply,
        numerics=Numerics(policy, largest_update),  # type: ignore[arg-type]
    )


@contextmanager
def bad_keys(given: EditingSetup) -> Iterator[None]:
    """What layer 1's projection reads is infinite."""
    handle = given.loaded.layout.projection(LAYERS[1]).register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] * float("inf"),), prepend=True
    )
    yield
    handle.remove()


@contextmanager
def bad_weight(given: EditingSetup) -> Iterator[None]:
    """A weight above the edited ones, which the values are optimised through, has a NaN."""
    weight = given.loaded.layout.weight(LAYERS[-1] + 1)
    kept = weight[0, 0].item()
    weight[0, 0] = NAN
    yield
    weight[0, 0] = kept


PLANTED = {"keys": bad_keys, "weights": bad_weight}


def assert_same_state(state: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, Mapping):
            assert_same_state(value, other[key])
        else:
            assert torch.equal(value, other[key])


def assert_unedited(given: EditingSetup) -> None:
    for layer, weight in given.weights.pretrained.items():
        assert torch.equal(given.weights.current[layer], weight)
        assert torch.equal(given.loaded.layout.weight(layer), weight)


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("name", EDITORS)
def test_a_run_stops_with_nothing_written(name: str, model: str, planted: str) -> None:
    given = setup(model)
    editing = pipeline(given, "stop", name)
    with PLANTED[planted](given), pytest.raises(NonfiniteError, match="is not finite, and the b"):
        editing.edit(given.pool(3))
    assert_unedited(given)


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", EDITORS)
def test_a_skipped_batch_leaves_no_trace(name: str, planted: str) -> None:
    given, clean = setup(), setup()
    editing, other = pipeline(given, "skip", name), pipeline(clean, "skip", name)
    with PLANTED[planted](given):
        report = editing.edit(given.pool(3))
    assert report.skipped and report.nonfinite
    assert all(done.applied_norm == 0 for done in report.layers.values())
    assert_unedited(given)
    assert_same_state(editing.state_dict(), other.state_dict())
    report = editing.edit(given.pool(6)[3:])
    other.edit(clean.pool(6)[3:])
    assert not report.skipped and not report.nonfinite
    for layer in LAYERS:
        assert torch.equal(given.weights.current[layer], clean.weights.current[layer])


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", EDITORS)
def test_recorded_numbers_are_written_and_the_editor_goes_on(name: str, planted: str) -> None:
    given = setup()
    editing = pipeline(given, "record", name)
    for start in (0, 3):
        with PLANTED[planted](given):
            report = editing.edit(given.pool(6)[start : start + 3])
        assert report.nonfinite and not report.skipped
    assert not all(torch.isfinite(weight).all() for weight in given.weights.current.values())


@pytest.mark.parametrize("apply", ["in_loop", "after"])
@pytest.mark.parametrize("name", EDITORS)
def test_an_update_beyond_the_bound_is_not_written(name: str, apply: str) -> None:
    given = setup()
    editing = pipeline(given, "stop", name, largest_update=1e-9, apply=apply)
    message = r"the update of layer \d has the norm .*, over numerics.largest_update=1e-09 times"
    with pytest.raises(NonfiniteError, match=message):
        editing.edit(given.pool(3))
    assert_unedited(given)


def test_what_the_models_own_type_cannot_hold_is_not_finite() -> None:
    given = setup()
    given.loaded.model.half()
    editing = pipeline(given, "stop", "memit", transforms=[lambda update, weight: update * 1e9])
    with pytest.raises(NonfiniteError, match="the update of layer 0 is not finite"):
        editing.edit(given.pool(2))


def test_a_decomposition_that_fails_is_a_batch_that_is_not_finite() -> None:
    def failing(update: Tensor, weight: object) -> Tensor:
        return torch.linalg.inv(torch.zeros(2, 2))

    given = setup()
    report = pipeline(given, "record", "memit", transforms=[failing]).edit(given.pool(2))
    assert report.skipped and report.nonfinite
    assert_unedited(given)


@contextmanager
def huge_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layer 1's keys are finite, but so large that nothing added to K K^T makes a difference."""
    measure = BatchReader.measure

    def planted(self: BatchReader, layer: int) -> Any:
        measured = measure(self, layer)
        huge = torch.full_like(measured.keys, 2.0**64)
        return measured._replace(keys=huge) if layer == LAYERS[1] else measured

    with monkeypatch.context() as patch:
        patch.setattr(BatchReader, "measure", planted)
        yield


def test_keys_that_cannot_be_remembered_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    given = setup()
    editor = LocateThenEdit(given, LeastSquares(5.0, remember="written"))
    message = r"cannot be computed \(.*layer 1 is singular\), and the batch was not written"
    with huge_keys(monkeypatch), pytest.raises(NonfiniteError, match=message):
        pipeline(given, "stop", editor).edit(given.pool(1))
    assert_unedited(given)


@pytest.mark.parametrize("remember", ["solved", "written"])
@pytest.mark.parametrize("policy", ["skip", "record"])
def test_a_batch_whose_keys_cannot_be_remembered_leaves_no_trace(
    policy: str, remember: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, clean = setup(), setup()
    editing, other = (
        pipeline(each, policy, LocateThenEdit(each, LeastSquares(5.0, remember=remember)))
        for each in (given, clean)
    )
    with huge_keys(monkeypatch):
        report = editing.edit(given.pool(1))
    assert report.skipped and report.nonfinite
    assert_unedited(given)
    assert_same_state(editing.state_dict(), other.state_dict())
    assert not editing.edit(given.pool(4)[1:]).skipped
    other.edit(clean.pool(4)[1:])
    for layer in LAYERS:
        assert torch.equal(given.weights.current[layer], clean.weights.current[layer])


@pytest.mark.parametrize("name", ["memit", "rome"])
def test_a_value_that_is_not_finite_is_reported_by_its_case(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup()
    if name == "rome":
        given = replace(given, weights=EditedWeights(given.loaded.layout, [1]))
    module = "sphere_bench.editing.methods.rome" if name == "rome" else locate_then_edit.__name__
    solve = locate_then_edit.solve_target_values
    bad = given.pool(2)[1]

    def diverging(loaded: Any, requests: list[EditRequest], *others: Any, **named: Any) -> Any:
        solved = solve(loaded, requests, *others, **named)
        for index, request in enumerate(requests):
            if request == bad:
                solved.values[index, 0] = solved.deltas[index, 0] = NAN
        return solved

    monkeypatch.setattr(f"{module}.solve_target_values", diverging)
    editing = pipeline(given, "stop", Rome(given, whiten=False) if name == "rome" else name)
    message = f"^the target value of case {bad.case_id} is not finite"
    with pytest.raises(NonfiniteError, match=message):
        editing.edit(given.pool(3))
    assert_unedited(given)


@pytest.mark.parametrize("field", ["keys", "hidden"])
def test_a_key_that_is_not_finite_is_reported_by_its_case(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup()
    measure = BatchReader.measure

    def planted(self: BatchReader, layer: int) -> Any:
        measured = measure(self, layer)
        getattr(measured, field)[5, 2] = NAN
        return measured

    monkeypatch.setattr(BatchReader, "measure", planted)
    what = {"keys": "key", "hidden": "hidden state"}[field]
    case = given.pool(3)[2].case_id
    with pytest.raises(NonfiniteError, match=f"^the {what} of case {case} is not finite"):
        pipeline(given, "stop", "memit").edit(given.pool(3))
    assert_unedited(given)


def test_cases_are_named_once_and_not_too_many() -> None:
    requests = [EditRequest(f"c{index}", "a b", "a", "c", None) for index in range(8)]
    rows = torch.ones(8, 2)
    assert requests_problem("key", rows, requests) is None
    rows[2, 1] = NAN
    assert requests_problem("key", rows, requests) == "the key of case c2 is not finite"
    rows[:] = float("inf")
    twice = torch.cat([rows, rows])
    assert requests_problem("key", twice, requests * 2) == (
        "the key of case c0, c1, c2, c3, c4 and 3 more is not finite"
    )
