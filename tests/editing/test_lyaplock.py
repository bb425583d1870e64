"""LyapLock against its published update and queue, written plainly with V0 K0^T and inverses."""

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.lyaplock import LyapLock, LyapunovQueue
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.editing.state import flatten_state, unflatten_state
from tests.editing.test_editors import edit, nll, setup
from tests.golden_numbers import relative_error

LAYER, BATCH, BATCHES = 1, 4, 6
WEIGHT = 3.0


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(weight: Tensor, ordinary: Tensor, outputs: Tensor, energy: Tensor) -> float:
    """||W K0 - V0||^2 of the statistics, as the published code has it."""
    value = (ordinary @ weight.T @ weight).trace() - 2 * (outputs @ weight.T).trace()
    return (value + energy.trace()).item()


@pytest.mark.parametrize("alpha", [0.5, 1.5, 60.0])
def test_updates_and_queue_are_the_published_ones(alpha: float) -> None:
    given = setup()
    weights = given.weights
    ours = LyapunovQueue(weights, WEIGHT, alpha)
    ours.prepare(given.second_moments())
    ordinary = given.second_moments()[LAYER].double()
    width, start = len(ordinary), weights.pretrained[LAYER].double()
    outputs, energy = start @ ordinary, start @ ordinary @ start.T
    gram, product = torch.zeros(width, width).double(), torch.zeros_like(start)
    z = step = base = limit = None
    queues = []
    for seed in range(BATCHES):
        keys, residual = draw(seed, width, BATCH), draw(100 + seed, len(start), BATCH)
        weight = weights.current[LAYER].double()
        price = WEIGHT if z is None else step * z * WEIGHT
        left = residual @ keys.T + price * (outputs - weight @ ordinary)
        left = left + product - weight @ gram
        system = keys @ keys.T + price * ordinary + gram
        expected = left @ torch.linalg.inv(system)
        update = ours.solve(LAYER, keys, residual)
        assert relative_error(update, expected) < 1.2e-10
        # The published order: written, D, then Z, then the memory.
        weights.write(LAYER, (weight + update).float())
        ours.remember(LAYER, keys)
        weight = weights.current[LAYER].double()
        moved = distance(weight, ordinary, outputs, energy)
        if base is None:
            base = moved
            step, z = 1 / (alpha * base) ** 0.5, (alpha * base) ** 0.5
            limit = z
        z = max(z + step * (moved - alpha * base), limit)
        product, gram = product + weight @ keys @ keys.T, gram + keys @ keys.T
        assert ours.queue(LAYER) == pytest.approx(step * z, rel=4e-12)
        queues.append(ours.queue(LAYER))
    assert (max(queues) > 1.5) == (alpha < 60)


def test_the_first_batch_is_memits() -> None:
    given, alone = setup(), setup()
    edit(LyapLock(given, 5.0), given, given.pool(3))
    edit(LocateThenEdit(alone, LeastSquares(second_moment_weight=5.0)), alone, alone.pool(3))
    for layer, weight in alone.weights.current.items():
        before = alone.weights.pretrained[layer]
        assert relative_error(given.weights.current[layer] - before, weight - before) < 1e-6


def test_its_memory_comes_back_bit_for_bit() -> None:
    straight, stopped = setup(), setup()
    whole, first = LyapLock(straight, 5.0, alpha=0.5), LyapLock(stopped, 5.0, alpha=0.5)
    requests = straight.pool(6)
    for batch in (requests[:2], requests[2:4], requests[4:]):
        edit(whole, straight, batch)
    for batch in (requests[:2], requests[2:4]):
        edit(first, stopped, batch)
    again = LyapLock(stopped, 5.0, alpha=0.5)
    again.load_state_dict(unflatten_state(dict(flatten_state(first.state_dict(), "editor"))))
    edit(again, stopped, requests[4:])
    for layer, weight in straight.weights.current.items():
        assert torch.equal(stopped.weights.current[layer], weight)
    assert nll(straight, 6) < nll(setup(), 6) / 2
