"""A GPU computes what the CPU does, on the models of the golden numbers."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.keys import BatchReader
from sphere_bench.editing.methods.rlsedit import RecursiveLeastSquares
from sphere_bench.editing.solvers import LeastSquares, NullSpace, UpdateSolver
from sphere_bench.editing.transforms import EditedWeight, Prune, Rect, Sphere, Transform
from sphere_bench.editing.values.solver import solve_target_values
from sphere_bench.evaluation.scoring import score_targets
from sphere_bench.geometry.energy import row_geometry
from tests.golden_numbers import LAYERS, NAMES, Golden, load_golden, relative_error
from tests.gpu.conftest import Hold

pytestmark = pytest.mark.gpu

TOKENS = 2048
SOLVERS: dict[str, Callable[[], UpdateSolver]] = {
    "memit": lambda: LeastSquares(second_moment_weight=5.0),
    "alphaedit": lambda: LeastSquares(
        ridge=10.0, remember="written", null_space=NullSpace(0.3, "share")
    ),
    "rlsedit": lambda: RecursiveLeastSquares(5.0, 0.0, carried=True),
}
TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "sphere": lambda: Sphere(0.5),
    "rect": Rect,
    "prune": Prune,
}


class Pair(NamedTuple):
    """A model on both devices."""

    cpu: Golden
    gpu: Golden


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, device: torch.device) -> Pair:
    return Pair(load_golden(request.param), load_golden(request.param, str(device)))


def error(found: Tensor, expected: Tensor) -> float:
    return relative_error(found.cpu(), expected)


def test_a_model_is_loaded_onto_the_device(pair: Pair, device: torch.device) -> None:
    assert {each.device.type for each in pair.gpu.loaded.model.parameters()} == {device.type}
    if device.type == "cuda":
        assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_target_values(pair: Pair, hold: Hold) -> None:
    cpu, gpu = (
        solve_target_values(
            each.loaded, each.requests[:5], LAYERS[-1], each.contexts, each.values, TOKENS
        )
        for each in pair
    )
    for index, losses in enumerate(gpu.losses):
        hold("the first loss", abs(losses[0] - cpu.losses[index][0]), 3e-5)
        published = pair.cpu.figures["loss_traces"][index]
        hold("a published loss", abs(losses[-1] - published[len(losses) - 1]), 5e-3)
    # Adam makes any rounding as large as a step.
    hold("target values", error(gpu.values, cpu.values), 1e-5)


def test_keys_and_hidden_states(pair: Pair, hold: Hold) -> None:
    cpu, gpu = (
        BatchReader(each.loaded, each.requests, LAYERS[-1], each.contexts, TOKENS).measure(0)
        for each in pair
    )
    hold("keys", error(gpu.keys, cpu.keys), 3e-6)
    hold("hidden states", error(gpu.hidden, cpu.hidden), 5e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_updates(solver: str, pair: Pair, hold: Hold, device: torch.device) -> None:
    found = []
    d_out, d_in = pair.cpu.loaded.layout.weight(0).shape
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(d_in, 20, generator=draw)
    residual = torch.randn(d_out, 20, generator=draw)
    for each in pair:
        solving, on = SOLVERS[solver](), each.loaded.device
        solving.prepare({0: each.second_moments[0]})
        for first in (0, 10):  # the second with a memory
            own = slice(first, first + 10)
            update = solving.solve(0, keys[:, own].to(on), residual[:, own].to(on))
            if solving.remembers_written_keys:
                solving.remember(0, keys[:, own].to(on))
        found.append(update)
    hold(f"update, {solver}", error(found[1], found[0]), 5e-13)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, pair: Pair, hold: Hold) -> None:
    found = []
    for each in pair:
        weight = each.loaded.layout.weight(0).float()
        draw = torch.Generator().manual_seed(0)
        update = torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight.device)
        edited = EditedWeight(0, weight, weight + 0.1)
        found.append(TRANSFORMS[transform]()(update, edited))
    hold(f"transform, {transform}", error(found[1], found[0]), 1e-13)


def test_energies(pair: Pair, hold: Hold) -> None:
    cpu, gpu = (row_geometry(each.loaded.layout.weight(0)) for each in pair)
    for name, found, expected in zip(cpu._fields, gpu, cpu, strict=True):
        hold(f"energy, {name}", abs(found - expected) / abs(expected), 1e-13)


def test_scores(pair: Pair, hold: Hold) -> None:
    pairs = [(each.prompt, each.target_new) for each in pair.cpu.requests]
    cpu, gpu = (score_targets(each.loaded, pairs, TOKENS) for each in pair)
    for found, expected in zip(gpu, cpu, strict=True):
        hold("NLL of a target", abs(found.nll - expected.nll), 6e-5)
