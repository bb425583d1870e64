"""What is seen of the edited weights: how they grow, and in which directions they move."""

import math

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.state import check_state
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.evaluation.weights import Weights
from tests.tiny_models import tiny_model

LAYERS = [1, 2]


def setup_of(architecture: str = "llama") -> ProbeSetup:
    loaded = tiny_model(architecture)
    dataset = EditDataset("none", (), "accuracy", "mean_tokens")
    weights = EditedWeights(loaded.layout, LAYERS)
    return ProbeSetup(loaded, dataset, weights, 0, 4096, lambda corpus, key: [])


def measured(probe: Weights, step: int) -> dict[str, float]:
    return dict(probe.measure(Moment(step, step, 1, {})).layers[1])


def move(setup: ProbeSetup, change: Tensor) -> None:
    setup.weights.write(1, setup.weights.current[1] + change)


def halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The right singular vectors that make up half of the squares' sum, and the others."""
    _, values, vectors = torch.linalg.svd(weight.double())
    shares = values.square().cumsum(0) / values.square().sum()
    rank = int((shares < 0.5).sum()) + 1
    return vectors[:rank], vectors[rank:]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_overlap_is_the_squared_share_in_the_principal_directions(architecture: str) -> None:
    setup = setup_of(architecture)
    weight = setup.weights.pretrained[1]
    kept, others = halves(weight)
    probe = Weights(setup)
    assert math.isnan(measured(probe, 0)["subspace_overlap"])
    out = torch.randn(len(weight), 1, generator=torch.Generator().manual_seed(0)).double()
    inside, outside = out * kept[-1], out * others[0]
    move(setup, inside)
    assert measured(probe, 1)["subspace_overlap"] == pytest.approx(1, abs=1e-6)
    move(setup, outside)
    assert measured(probe, 2)["subspace_overlap"] == pytest.approx(0, abs=1e-6)
    # 3^2 / (3^2 + 4^2), of the last change alone.
    move(setup, 3 * inside + 4 * outside)
    assert measured(probe, 3)["subspace_overlap"] == pytest.approx(0.36, abs=1e-6)
    # Nothing was written in the other layer.
    assert math.isnan(probe.measure(Moment(4, 4, 1, {})).layers[2]["subspace_overlap"])


def test_the_norm_is_beside_that_of_the_unedited_weight() -> None:
    setup = setup_of()
    probe = Weights(setup)
    first = measured(probe, 0)
    assert first["norm_growth"] == 1
    move(setup, 0.5 * setup.weights.pretrained[1])
    then = measured(probe, 1)
    assert then["norm_growth"] == pytest.approx(1.5, rel=1e-6)
    assert then["weight_norm"] == pytest.approx(1.5 * first["weight_norm"], rel=1e-6)
    assert then["drift"] == pytest.approx(0.5, rel=1e-6)


def test_a_checkpoint_has_the_last_weights_only_where_it_has_others_itself() -> None:
    setup = setup_of()
    probe = Weights(setup)
    generator = torch.Generator().manual_seed(0)
    changes = [torch.randn(setup.weights.pretrained[1].shape, generator=generator) for _ in "abc"]
    move(setup, changes[0])
    measured(probe, 1)
    assert probe.state_dict() == {}
    move(setup, changes[1])  # at a step without a turn
    check_state(probe, "probes.weights")
    state = probe.state_dict()
    assert list(state) == ["1"]
    resumed = Weights(setup)
    resumed.load_state_dict(state)
    unaware = Weights(setup)
    unaware.load_state_dict({})
    move(setup, changes[2])
    expected = measured(probe, 3)["subspace_overlap"]
    assert measured(resumed, 3)["subspace_overlap"] == expected
    assert measured(unaware, 3)["subspace_overlap"] != expected
