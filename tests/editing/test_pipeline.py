"""What the frame around an editor does, with editors of a few lines."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.numerics import Numerics
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.state import flatten_state, unflatten_state
from sphere_bench.editing.transforms import EditedWeight, Prune, Sphere
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from tests.tiny_models import tiny_model

REQUESTS = [EditRequest("0", "Rome lies in", "Rome", "Spain", None)]


def setup(architecture: str = "llama") -> EditingSetup:
    loaded = tiny_model(architecture)
    return EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, [1, 2]),
        values=ValueSettings(),
        contexts=["{}"],
        second_moments=dict,
        seed=0,
        pool=lambda count: REQUESTS[:count],
        tokens_per_batch=512,
    )


def draw(weight: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)


class Calling:
    """An editor without memory that does what it is given."""

    def __init__(self, edit: Callable[[Batch], object]) -> None:
        self.edit = edit


class Accumulating:
    """An editor that writes the sum of all batches' draws, and changes its memory in place."""

    def __init__(self, setup: EditingSetup) -> None:
        self.sums = {
            layer: torch.zeros_like(weight).double()
            for layer, weight in setup.weights.current.items()
        }
        self.batches = torch.zeros((), dtype=torch.int64)

    def edit(self, batch: Batch) -> None:
        self.batches += 1
        for layer, total in self.sums.items():
            total += draw(total, seed=int(self.batches))
            batch.write(layer, total.clone())

    def state_dict(self) -> dict[str, Any]:
        sums = {str(layer): total for layer, total in self.sums.items()}
        return {"batches": self.batches, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]
        self.sums = {int(layer): total for layer, total in state["sums"].items()}


class Smoothing:
    """A transform with memory: the mean of the update and what it returned last."""

    def __init__(self) -> None:
        self.last: dict[str, Tensor] = {}

    def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
        smooth = update.clone()
        if (earlier := self.last.get(str(weight.layer))) is not None:
            smooth = earlier.add_(update).div_(2)
        self.last[str(weight.layer)] = smooth
        return smooth.clone()

    def state_dict(self) -> dict[str, Tensor]:
        return self.last

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.last = dict(state)


def to_ones(update: Tensor, weight: EditedWeight) -> Tensor:
    return torch.ones_like(update)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_model_holds_what_was_written(architecture: str) -> None:
    given = setup(architecture)
    before = given.weights.current[1]
    update = draw(before, seed=0)
    report = EditingPipeline(Calling(lambda batch: batch.write(1, update)), given).edit(REQUESTS)
    torch.testing.assert_close(given.loaded.layout.weight(1), (before + update).float())
    assert report.layers[1].update_norm == update.norm().item()
    assert report.layers[1].applied_norm == pytest.approx(update.norm().item(), rel=1e-5)
    assert report.layers[2].applied_norm == 0
    assert report.layers[1].rank is None


@pytest.mark.parametrize("apply", ["in_loop", "after"])
def test_transforms_come_in_order_and_sphere_last(apply: Any) -> None:
    sphere = Sphere(alpha=1.0)
    given = setup()
    before = given.weights.current[2]
    editor = Calling(lambda batch: batch.write(2, draw(before, seed=1)))
    report = EditingPipeline(editor, given, [to_ones], sphere=sphere, apply=apply).edit(REQUESTS)
    weight = EditedWeight(2, given.weights.pretrained[2], before)
    expected = sphere(torch.ones_like(before, dtype=torch.float64), weight)
    torch.testing.assert_close(given.weights.current[2], (before + expected).float())
    assert report.layers[2].rank == sphere.ranks[2]
    assert report.layers[2].update_norm == draw(before, seed=1).norm().item()


def test_an_error_within_a_batch_leaves_the_weights_of_before() -> None:
    given = setup()
    before = {layer: weight.clone() for layer, weight in given.weights.current.items()}
    broken = draw(before[2], seed=0)
    broken[3, 4] = float("nan")

    def edit(batch: Batch) -> None:
        batch.write(1, draw(before[1], seed=1))
        batch.write(2, broken)

    message = r"layer 2 is not finite, and the batch was not written"
    with pytest.raises(SphereBenchError, match=message):
        EditingPipeline(Calling(edit), given).edit(REQUESTS)
    for layer, weight in before.items():
        assert torch.equal(given.weights.current[layer], weight)
        assert torch.equal(given.loaded.layout.weight(layer), weight)


@pytest.mark.parametrize("continue_from", ["unconditioned", "deployed"])
def test_a_conditioner_decides_what_is_deployed(continue_from: Any) -> None:
    given = setup()
    pretrained = given.weights.pretrained[1]
    large = draw(pretrained, seed=2, scale=100 * pretrained.abs().max().item())
    started_from = []

    def edit(batch: Batch) -> None:
        started_from.append(batch.weights.current[1])
        batch.write(1, large)

    pipeline = EditingPipeline(
        Calling(edit), given, conditioner=Prune(), continue_from=continue_from
    )
    for _ in range(2):
        pipeline.edit(REQUESTS)
    bound = torch.linalg.matrix_norm(pretrained.double(), 2)
    deployed = torch.linalg.matrix_norm((given.weights.current[1] - pretrained).double(), 2)
    assert deployed < torch.linalg.matrix_norm(large, 2) / 10
    assert deployed > bound
    kept = pipeline.state_dict()["unconditioned"]
    if continue_from == "unconditioned":
        torch.testing.assert_close(started_from[1], (pretrained + large).float())
        resumed = EditingPipeline(Calling(edit), given, conditioner=Prune())
        resumed.load_state_dict(pipeline.state_dict())
        resumed.edit(REQUESTS)
        assert torch.equal(started_from[2], kept["1"])
    else:
        assert torch.linalg.matrix_norm((started_from[1] - pretrained).double(), 2) < deployed * 1.5
        assert kept == {}


def test_deployed_changes_are_conditioned_then_transformed_and_the_raw_weights_go_on() -> None:
    given = setup()
    pretrained = given.weights.pretrained[1].double()
    seen, started_from = [], []

    def halve(change: Tensor, weight: EditedWeight) -> Tensor:
        seen.append((change, weight))
        return change / 2

    def add_one(update: Tensor, weight: EditedWeight) -> Tensor:
        seen.append((update, weight))
        return update + 1

    def edit(batch: Batch) -> None:
        started_from.append(batch.weights.current[1])
        batch.write(1, draw(pretrained, seed=len(started_from)))

    # The current weight of the basis is the pretrained one.
    sphere = Sphere(alpha=0.5, basis="current")
    pipeline = EditingPipeline(
        Calling(edit), given, [halve], add_one, sphere=sphere, apply="deployed"
    )
    raw, deployed = pretrained, pretrained.float()
    for number in (1, 2):
        report = pipeline.edit(REQUESTS)
        update = draw(pretrained, seed=number)
        assert torch.equal(started_from[-1].double(), raw)
        raw = (raw + update).float().double()
        # add_one conditions layer 1, halve transforms it; then both come to layer 2.
        (conditioned, of_raw), (change, of_pretrained) = seen[0], seen[1]
        assert torch.equal(of_raw.current.double(), raw) and not conditioned.any()
        assert torch.equal(of_pretrained.current, of_pretrained.pretrained)
        torch.testing.assert_close(change, raw - pretrained + 1)
        expected = pretrained + sphere(change / 2, of_pretrained)
        torch.testing.assert_close(given.weights.current[1], expected.float())
        assert report.layers[1].rank == sphere.ranks[1]
        assert report.layers[1].update_norm == pytest.approx(update.norm().item())
        moved = (given.weights.current[1] - deployed).norm().item()
        assert report.layers[1].applied_norm == moved
        assert torch.equal(pipeline.state_dict()["unconditioned"]["1"].double(), raw)
        deployed = given.weights.current[1]
        seen.clear()


def test_deployed_changes_may_be_what_the_next_batch_starts_from() -> None:
    def halve(change: Tensor, weight: EditedWeight) -> Tensor:
        return change / 2

    given = setup()
    pretrained = given.weights.pretrained[1]
    update = draw(pretrained, seed=0)
    editor = Calling(lambda batch: batch.write(1, update))
    pipeline = EditingPipeline(editor, given, [halve], continue_from="deployed", apply="deployed")
    for share in (0.5, 0.75):
        pipeline.edit(REQUESTS)
        torch.testing.assert_close(given.weights.current[1], (pretrained + share * update).float())
    assert pipeline.state_dict()["unconditioned"] == {}


@pytest.mark.parametrize("conditioner", [None, Prune()])
def test_without_transforms_nothing_else_is_deployed(conditioner: Any) -> None:
    changes = []
    for apply in ("after", "deployed"):
        given = setup()
        large = draw(given.weights.pretrained[2], seed=3, scale=100)
        editor = Calling(lambda batch, update=large: batch.write(2, update))
        pipeline = EditingPipeline(editor, given, conditioner=conditioner, apply=apply)
        for _ in range(2):
            pipeline.edit(REQUESTS)
        changes.append(given.weights.current[2])
        assert bool(pipeline.state_dict()["unconditioned"]) == (conditioner is not None)
    assert torch.equal(*changes)


def test_an_error_while_changes_are_transformed_leaves_both_weights_as_they_were() -> None:
    failing = False

    def fail(change: Tensor, weight: EditedWeight) -> Tensor:
        if failing and weight.layer == 2:
            raise torch.linalg.LinAlgError("singular")
        return change / 2

    given = setup()
    editor = Calling(lambda batch: batch.write(1, draw(batch.weights.current[1], seed=0)))
    skip = Numerics("skip")
    pipeline = EditingPipeline(editor, given, [fail], apply="deployed", numerics=skip)
    pipeline.edit(REQUESTS)
    deployed, raw = dict(given.weights.current), pipeline.state_dict()["unconditioned"]
    failing = True
    assert pipeline.edit(REQUESTS).skipped
    for layer in (1, 2):
        assert torch.equal(given.weights.current[layer], deployed[layer])
        assert torch.equal(pipeline.state_dict()["unconditioned"][str(layer)], raw[str(layer)])


@pytest.mark.parametrize("apply", ["in_loop", "after", "deployed"])
def test_a_restored_pipeline_goes_on_bit_for_bit(apply: Any) -> None:
    def fresh() -> EditingPipeline:
        given = setup()
        transforms = [to_ones, Smoothing()] if apply == "in_loop" else [Smoothing(), Smoothing()]
        return EditingPipeline(
            Accumulating(given), given, transforms, Smoothing(), sphere=Sphere(0.5), apply=apply
        )

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(4):
        whole.edit(REQUESTS)
    for _ in range(2):
        first.edit(REQUESTS)
    saved = {name: tensor.clone() for name, tensor in flatten_state(first.state_dict(), "state")}
    assert {name.partition("/")[0] for name in saved} == {
        "editor",
        *([] if apply == "in_loop" else ["transforms.0"]),
        "transforms.1",
        "conditioner",
        "unconditioned",
    }
    for layer, weight in first.weights.current.items():
        second.weights.write(layer, weight)
    second.load_state_dict(unflatten_state(saved))
    for _ in range(2):
        second.edit(REQUESTS)
    for layer, weight in whole.weights.current.items():
        assert torch.equal(second.weights.current[layer], weight)


@pytest.mark.parametrize("place", ["editor", "conditioner"])
@pytest.mark.parametrize("policy", ["skip", "record"])
def test_a_skipped_batch_restores_what_was_changed_in_place(policy: Any, place: str) -> None:
    failing = ""

    def fail_at(here: str) -> None:
        if failing == here:
            raise torch.linalg.LinAlgError("singular")

    class FailingEditor(Accumulating):
        def edit(self, batch: Batch) -> None:
            super().edit(batch)
            fail_at("editor")

    class FailingConditioner(Smoothing):
        def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
            if weight.layer == 2:
                fail_at("conditioner")
            return super().__call__(update, weight)

    given, clean = setup(), setup()
    pipeline, other = (
        EditingPipeline(
            FailingEditor(each),
            each,
            [Smoothing()],
            FailingConditioner(),
            numerics=Numerics(policy),
        )
        for each in (given, clean)
    )
    pipeline.edit(REQUESTS)
    other.edit(REQUESTS)
    failing = place
    assert pipeline.edit(REQUESTS).skipped
    failing = ""
    expected = dict(flatten_state(other.state_dict(), "state"))
    for name, tensor in flatten_state(pipeline.state_dict(), "state"):
        assert torch.equal(tensor, expected.pop(name))
    assert not expected
    pipeline.edit(REQUESTS)
    other.edit(REQUESTS)
    for layer, weight in clean.weights.current.items():
        assert torch.equal(given.weights.current[layer], weight)


class Remembering(Calling):
    """An editor whose memory is what it is given."""

    def __init__(self, state: Any) -> None:
        super().__init__(lambda batch: None)
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a/b": torch.ones(1)}, r"a key .* must be a string without '/', not 'a/b'"),
        ({"a": {3: torch.ones(1)}}, r"a key .* must be a string without '/', not 3"),
        ({"a": {"b": 1}}, r"holds a int at a/b: store a tensor"),
        ([torch.ones(1)], r"must be a dict, not list"),
    ],
)
def test_a_memory_that_cannot_be_saved_is_refused_at_the_start(state: Any, message: str) -> None:
    with pytest.raises(SphereBenchError, match=rf"^editor\.method: .*{message}"):
        EditingPipeline(Remembering(state), setup())


def test_a_memory_that_cannot_be_restored_is_refused_at_the_start() -> None:
    class Forgetful:
        def __call__(self, update: Tensor, weight: EditedWeight) -> Tensor:
            return update

        def state_dict(self) -> dict[str, Tensor]:
            return {}

    message = r"^editor\.method\.transforms\.1: Forgetful has no load_state_dict"
    with pytest.raises(SphereBenchError, match=message):
        EditingPipeline(Remembering({}), setup(), [to_ones, Forgetful()])


def test_what_is_no_editor_or_no_transform_is_refused_at_the_start() -> None:
    nothing: Any = object()
    with pytest.raises(SphereBenchError, match=r"^editor\.method: object has no method edit$"):
        EditingPipeline(nothing, setup())
    message = r"^editor\.method\.transforms\.0: object has no method __call__$"
    with pytest.raises(SphereBenchError, match=message):
        EditingPipeline(Remembering({}), setup(), [nothing])
