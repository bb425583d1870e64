import pytest
import torch
from torch import Tensor

from sphere_bench.editing.pipeline import EditingSetup, UpdatePipeline
from sphere_bench.editing.transforms import EditedWeight, Prune, Sphere
from sphere_bench.editing.values import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from tests.tiny_models import tiny_model


def setup(sphere: Sphere | None = None, architecture: str = "llama") -> EditingSetup:
    loaded = tiny_model(architecture)
    return EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, [1, 2]),
        values=ValueSettings(),
        contexts=["{}"],
        second_moments=dict,
        stream=[],
        sphere=sphere,
        apply="in_loop",
        tokens_per_batch=512,
    )


def draw(weight: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_model_holds_what_was_written(architecture: str) -> None:
    given = setup(architecture=architecture)
    pipeline = UpdatePipeline(given)
    before = given.weights.current[1]
    update = draw(before, seed=0)
    with pipeline.batch(pipeline) as report:
        pipeline.write(1, before, update, report)
    torch.testing.assert_close(given.loaded.layout.weight(1), (before + update).float())
    assert report.layers[1].applied_norm == pytest.approx(update.norm().item(), rel=1e-5)
    assert report.layers[2].applied_norm == 0
    assert report.layers[1].rank is None


def test_transforms_come_in_order_and_sphere_last() -> None:
    sphere = Sphere(alpha=1.0)
    given = setup(sphere)

    def to_ones(update: Tensor, weight: EditedWeight) -> Tensor:
        return torch.ones_like(update)

    pipeline = UpdatePipeline(given, [to_ones])
    before = given.weights.current[2]
    with pipeline.batch(pipeline) as report:
        pipeline.write(2, before, draw(before, seed=1), report)
    weight = EditedWeight(2, given.weights.pretrained[2], before)
    expected = sphere(torch.ones_like(before, dtype=torch.float64), weight)
    torch.testing.assert_close(given.weights.current[2], (before + expected).float())
    assert report.layers[2].rank == sphere.ranks[2]


def test_an_error_within_a_batch_leaves_the_weights_of_before() -> None:
    given = setup()
    pipeline = UpdatePipeline(given)
    before = {layer: weight.clone() for layer, weight in given.weights.current.items()}
    broken = draw(before[2], seed=0)
    broken[3, 4] = float("nan")
    with (
        pytest.raises(
            SphereBenchError, match=r"layer 2 is not finite, and the batch was not written"
        ),
        pipeline.batch(pipeline) as report,
    ):
        pipeline.write(1, before[1], draw(before[1], seed=1), report)
        pipeline.write(2, before[2], broken, report)
    for layer, weight in before.items():
        assert torch.equal(given.weights.current[layer], weight)
        assert torch.equal(given.loaded.layout.weight(layer), weight)


@pytest.mark.parametrize("continue_from", ["unconditioned", "deployed"])
def test_a_conditioner_decides_what_is_deployed(continue_from: str) -> None:
    given = setup()
    pipeline = UpdatePipeline(given, conditioner=Prune(), continue_from=continue_from)  # type: ignore[arg-type]
    pretrained = given.weights.pretrained[1]
    large = draw(pretrained, seed=2, scale=100 * pretrained.abs().max().item())
    started_from = []
    for _ in range(2):
        with pipeline.batch(pipeline) as report:
            before = given.weights.current[1]
            started_from.append(before)
            pipeline.write(1, before, large, report)
    bound = torch.linalg.matrix_norm(pretrained.double(), 2)
    deployed = torch.linalg.matrix_norm((given.weights.current[1] - pretrained).double(), 2)
    assert deployed < torch.linalg.matrix_norm(large, 2) / 10
    assert deployed > bound
    if continue_from == "unconditioned":
        torch.testing.assert_close(started_from[1], (pretrained + large).float())
        resumed = UpdatePipeline(given, conditioner=Prune())
        resumed.load_state_dict(pipeline.state_dict())
        with resumed.batch(resumed):
            assert torch.equal(given.weights.current[1], pipeline.state_dict()["1"])
    else:
        assert torch.linalg.matrix_norm((started_from[1] - pretrained).double(), 2) < deployed * 1.5
        assert pipeline.state_dict() == {}
