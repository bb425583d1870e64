"""BetaEdit against its published system, solved plainly in all dimensions."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.methods.betaedit import BetaEdit
from sphere_bench.editing.solvers import NullSpace
from sphere_bench.editing.state import flatten_state, unflatten_state
from sphere_bench.errors import SphereBenchError
from tests.golden_numbers import relative_error

WIDTH, OUT, BATCH = 12, 5, 4
WEIGHT, RIDGE, THRESHOLD, REFRESH = 2.0, 0.3, 0.5, 8


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment() -> Tensor:
    """C with eigenvalues from 0.01 to 3, eight of them below the threshold."""
    directions, _ = torch.linalg.qr(draw(0, WIDTH, WIDTH))
    values = torch.tensor([0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 1, 2, 2.5, 3]).double()
    return directions @ values.diag() @ directions.T


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for seed in range(1, 7):
        yield draw(seed, WIDTH, BATCH), draw(100 + seed, OUT, BATCH)


def solver(refresh_every: int = REFRESH) -> BetaEdit:
    made = BetaEdit(WEIGHT, RIDGE, NullSpace(THRESHOLD), refresh_every)
    made.prepare({3: moment()})
    return made


def projection(matrix: Tensor) -> Tensor:
    left, values, _ = torch.linalg.svd(matrix)
    small = left[:, values < THRESHOLD]
    return small @ small.T


def published() -> Iterator[tuple[Tensor, Tensor]]:
    """The update of every batch, and the projection that it was made with."""
    ordinary, past = moment(), torch.zeros(WIDTH, WIDTH).double()
    project, edits, last = projection(ordinary), 0, 0
    for keys, residual in batches():
        if edits - last >= REFRESH:
            project = projection((past / edits + WEIGHT * ordinary) / (WEIGHT + 1))
            last = edits
        system = (
            project @ (keys @ keys.T + past + WEIGHT * ordinary) + RIDGE * torch.eye(WIDTH).double()
        )
        yield torch.linalg.solve(system, project @ keys @ residual.T).T, project
        past = past + keys @ keys.T
        edits += BATCH


def test_six_batches_are_the_published_ones_and_the_null_space_changes_twice() -> None:
    ours, ranks = solver(), []
    for (keys, residual), (expected, project) in zip(batches(), published(), strict=True):
        update = ours.solve(3, keys, residual)
        assert relative_error(update, expected) < 1e-13
        ranks.append(ours.bases[3].shape[1])
        assert ranks[-1] == round(project.trace().item())
    assert ranks[0] == ranks[1] > ranks[2] == ranks[3] and ranks[4] == ranks[5]


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_its_memory_comes_back_bit_for_bit(stopped_after: int) -> None:
    straight, first, again = solver(), solver(), solver()
    for index, (keys, residual) in enumerate(batches()):
        expected = straight.solve(3, keys, residual)
        if index < stopped_after:
            first.solve(3, keys, residual)
            continue
        if index == stopped_after:
            saved = dict(flatten_state(first.state_dict(), "solver"))
            again.load_state_dict(unflatten_state(saved))
        assert torch.equal(again.solve(3, keys, residual), expected)


def test_a_null_space_that_is_gone_is_named() -> None:
    ours = solver(refresh_every=4)
    with pytest.raises(SphereBenchError, match="layer 3 has no null space below"):
        for keys, residual in batches():
            ours.solve(3, 100 * keys.repeat(1, 3), residual.repeat(1, 3))
