from typing import Literal

import pytest
import torch
from torch import Tensor

from sphere_bench.editing.methods.emmet import EqualityConstraints
from sphere_bench.editing.methods.rlsedit import RecursiveLeastSquares
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.errors import SphereBenchError

WIDTH, OUT, REQUESTS, WEIGHT = 12, 5, 4, 3.0


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed: int, samples: int = 40) -> Tensor:
    """C [d_in, d_in] of rank min(samples, d_in)."""
    keys = draw(WIDTH, samples, seed=seed)
    return keys @ keys.T / samples


@pytest.mark.parametrize("seed", range(3))
def test_memit_satisfies_its_normal_equations(seed: int) -> None:
    solver = LeastSquares(second_moment_weight=WEIGHT)
    solver.prepare({7: moment(seed)})
    keys, residual = draw(WIDTH, REQUESTS, seed=10 + seed), draw(OUT, REQUESTS, seed=20 + seed)
    update = solver.solve(7, keys, residual)
    # d/dW of sum ||W k - r||^2 + lambda tr(W C W^T) at dW: dW (lambda C + K K^T) = R K^T.
    torch.testing.assert_close(
        update @ (WEIGHT * moment(seed) + keys @ keys.T), residual @ keys.T, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("remember", ["written", "solved"])
@pytest.mark.parametrize("null_space", [None, NullSpace(threshold=0.5)])
def test_fifty_batches_equal_full_solves_over_all_keys_so_far(
    remember: Literal["written", "solved"], null_space: NullSpace | None
) -> None:
    """dW = R K^T (A + Kp Kp^T + K K^T)^-1, all of it within the null space where there is one."""
    solver = LeastSquares(WEIGHT, ridge=20.0, remember=remember, null_space=null_space)
    solver.prepare({0: moment(0)})
    basis = torch.eye(WIDTH).double() if null_space is None else null_space.basis(moment(0), 0)
    system = basis.T @ (WEIGHT * moment(0) + 20.0 * torch.eye(WIDTH)) @ basis
    for batch in range(50):
        keys, residual = draw(WIDTH, REQUESTS, seed=batch), draw(OUT, REQUESTS, seed=50 + batch)
        inside = basis.T @ keys
        system = system + inside @ inside.T
        expected = residual @ torch.linalg.solve(system, inside).T @ basis.T
        torch.testing.assert_close(solver.solve(0, keys, residual), expected)
        if solver.remembers_written_keys:
            solver.remember(0, keys)


def test_null_space_solve_equals_alphaedits_own_system() -> None:
    """(P (K K^T + Kp Kp^T) + L2 I) X = P K R^T, dW = X^T, P the projector on the null space."""
    null_space = NullSpace(threshold=0.5)
    solver = LeastSquares(ridge=10.0, remember="written", null_space=null_space)
    solver.prepare({0: moment(0)})
    past, keys = draw(WIDTH, 7, seed=1), draw(WIDTH, REQUESTS, seed=2)
    residual = draw(OUT, REQUESTS, seed=3)
    solver.remember(0, past)
    basis = null_space.basis(moment(0), 0)
    assert 0 < basis.shape[1] < WIDTH
    projector = basis @ basis.T
    system = projector @ (keys @ keys.T + past @ past.T) + 10.0 * torch.eye(WIDTH)
    expected = torch.linalg.solve(system, projector @ keys @ residual.T).T
    torch.testing.assert_close(solver.solve(0, keys, residual), expected)


def test_null_space_updates_leave_preserved_keys_alone() -> None:
    preserved = moment(0, samples=5)  # of rank 5: the other 7 directions are free
    solver = LeastSquares(ridge=10.0, null_space=NullSpace(threshold=1e-9))
    solver.prepare({0: preserved})
    update = solver.solve(0, draw(WIDTH, REQUESTS, seed=1), draw(OUT, REQUESTS, seed=2))
    assert update.norm() > 0.01
    assert (update @ draw(WIDTH, 5, seed=0)).norm() < 1e-9 * update.norm()


def test_the_share_rule_keeps_the_smallest_directions_within_the_share() -> None:
    eigenvalues = torch.tensor([1.0, 2.0, 3.0, 14.0])  # of 20: 5 %, 15 %, 30 %, 100 %
    basis = NullSpace(threshold=0.2, rule="share").basis(torch.diag(eigenvalues), 0)
    assert basis.shape == (4, 2)
    assert torch.equal(basis.abs().round().sum(dim=1), torch.tensor([1.0, 1.0, 0.0, 0.0]).double())


def test_the_signs_of_a_null_space_are_not_left_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    null_space = NullSpace(threshold=0.5)
    expected = null_space.basis(moment(0), 0)
    eigh = torch.linalg.eigh
    signs = torch.tensor([1.0, -1.0] * (WIDTH // 2), dtype=torch.float64)

    def otherwise(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, vectors * signs

    monkeypatch.setattr(torch.linalg, "eigh", otherwise)
    assert torch.equal(null_space.basis(moment(0), 0), expected)


def test_the_state_makes_a_fresh_solver_go_on() -> None:
    def fresh() -> LeastSquares:
        solver = LeastSquares(second_moment_weight=WEIGHT, remember="written")
        solver.prepare({0: moment(0)})
        return solver

    solver, resumed = fresh(), fresh()
    solver.remember(0, draw(WIDTH, REQUESTS, seed=1))
    resumed.load_state_dict(solver.state_dict())
    keys, residual = draw(WIDTH, REQUESTS, seed=2), draw(OUT, REQUESTS, seed=3)
    assert torch.equal(resumed.solve(0, keys, residual), solver.solve(0, keys, residual))


def test_a_state_of_another_null_space_is_refused_with_the_mend() -> None:
    """The second moment was computed anew, and other directions lie below the threshold."""
    first, second = (
        LeastSquares(ridge=1.0, remember="written", null_space=NullSpace(threshold))
        for threshold in (0.5, 0.7)
    )
    for solver in (first, second):
        solver.prepare({3: moment(0)})
    assert first.bases[3].shape != second.bases[3].shape
    with pytest.raises(SphereBenchError, match=r"of layer 3 in \d+ dim.*now there are.*run\.name"):
        second.load_state_dict(first.state_dict())


def test_singular_moments_and_empty_null_spaces_are_named_with_the_mend() -> None:
    with pytest.raises(SphereBenchError, match=r"layer 2.*statistics\.tokens"):
        LeastSquares(second_moment_weight=WEIGHT).prepare({2: torch.zeros(WIDTH, WIDTH)})
    with pytest.raises(SphereBenchError, match=r"layer 2.*null_space\.threshold"):
        LeastSquares(ridge=1.0, null_space=NullSpace(1e-3)).prepare({2: torch.eye(WIDTH)})


def test_keys_that_bury_the_system_are_this_batchs_and_not_remembered() -> None:
    solver = LeastSquares(second_moment_weight=WEIGHT, remember="written")
    solver.prepare({3: moment(0)})
    before = solver.state_dict()
    # K K^T is 2^128 everywhere, exactly, and A is less than its rounding.
    with pytest.raises(torch.linalg.LinAlgError, match="the system of layer 3 is singular"):
        solver.remember(3, torch.full((WIDTH, 1), 2.0**64))
    assert torch.equal(solver.state_dict()["3"], before["3"])
    solver.remember(3, draw(WIDTH, REQUESTS, seed=1))


@pytest.mark.parametrize("requests", [1, REQUESTS])
def test_emmet_softens_the_constraints_of_several_requests(requests: int) -> None:
    """dW = R (K^T A^-1 K + s I)^-1 K^T A^-1 with A = w C, s = 0 for a single request."""
    solver = EqualityConstraints(second_moment_weight=WEIGHT, emmet_lambda=0.1)
    solver.prepare({0: moment(0)})
    keys, residual = draw(WIDTH, requests, seed=1), draw(OUT, requests, seed=2)
    whitened = torch.linalg.solve(WEIGHT * moment(0), keys)
    softness = 0.1 if requests > 1 else 0.0
    system = keys.T @ whitened + softness * torch.eye(requests)
    expected = residual @ torch.linalg.solve(system, whitened.T)
    torch.testing.assert_close(solver.solve(0, keys, residual), expected)


@pytest.mark.parametrize("carried", [True, False])
def test_the_recursion_equals_full_solves_over_all_keys_so_far_or_over_the_batchs(
    carried: bool,
) -> None:
    """P' = P - P K (I + K^T P K)^-1 K^T P, the inverse of w C + r I + Kp Kp^T + K K^T."""
    recursion = RecursiveLeastSquares(ordinary=WEIGHT, ridge=2.0, carried=carried)
    full = LeastSquares(WEIGHT, ridge=2.0, remember="solved" if carried else None)
    for solver in (recursion, full):
        solver.prepare({0: moment(0)})
    for batch in range(50):
        keys, residual = draw(WIDTH, REQUESTS, seed=batch), draw(OUT, REQUESTS, seed=50 + batch)
        expected = full.solve(0, keys, residual)
        torch.testing.assert_close(
            recursion.solve(0, keys, residual), expected, rtol=1e-11, atol=1e-12
        )


def test_a_recursion_goes_on_from_its_state() -> None:
    def fresh() -> RecursiveLeastSquares:
        solver = RecursiveLeastSquares(ordinary=WEIGHT, ridge=0.0, carried=True)
        solver.prepare({0: moment(0), 3: moment(1)})
        return solver

    solver, resumed, anew = fresh(), fresh(), fresh()
    keys, residual = draw(WIDTH, REQUESTS, seed=1), draw(OUT, REQUESTS, seed=2)
    for layer in (0, 3):
        solver.solve(layer, keys, residual)
    resumed.load_state_dict(solver.state_dict())
    keys = draw(WIDTH, REQUESTS, seed=3)
    for layer in (0, 3):
        expected = solver.solve(layer, keys, residual)
        assert torch.equal(resumed.solve(layer, keys, residual), expected)
        assert not torch.allclose(anew.solve(layer, keys, residual), expected, rtol=1e-3)
    assert RecursiveLeastSquares(WEIGHT, 0.0, carried=False).state_dict() == {}
