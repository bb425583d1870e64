import pytest
import torch

from sphere_bench.editing.solvers import Memit
from sphere_bench.errors import SphereBenchError

WIDTH, OUT, REQUESTS, WEIGHT = 12, 5, 4, 3.0


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """C [d_in, d_in], K [d_in, n] and R [d_out, n]."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(WIDTH, 40, generator=generator, dtype=torch.float64)
    keys = torch.randn(WIDTH, REQUESTS, generator=generator)
    residual = torch.randn(OUT, REQUESTS, generator=generator)
    return samples @ samples.T / 40, keys, residual


@pytest.mark.parametrize("seed", range(3))
def test_memit_satisfies_its_normal_equations(seed: int) -> None:
    moment, keys, residual = problem(seed)
    solver = Memit(WEIGHT)
    solver.prepare({7: moment})
    update = solver.solve(7, keys, residual)
    # d/dW of sum ||W k - r||^2 + lambda tr(W C W^T) at dW: dW (lambda C + K K^T) = R K^T.
    keys, residual = keys.double(), residual.double()
    torch.testing.assert_close(
        update @ (WEIGHT * moment + keys @ keys.T), residual @ keys.T, rtol=1e-10, atol=1e-10
    )


def test_memit_names_the_mend_for_a_singular_second_moment() -> None:
    with pytest.raises(SphereBenchError, match=r"layer 2.*statistics\.tokens"):
        Memit(WEIGHT).prepare({2: torch.zeros(WIDTH, WIDTH)})
