"""What the tests on a GPU share. With SPHERE_BENCH_GPU_TESTS_ON=cpu they run on the CPU instead.

The largest errors are shown at the end: tolerances are about ten times what an H200 reached.
"""

import os
from collections.abc import Callable

import pytest
import torch

from tests.conftest import GPU_TESTS_ON

Hold = Callable[[str, float, float], None]

_reached: pytest.StashKey[dict[str, tuple[float, float]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get(GPU_TESTS_ON, "cuda"))


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """For what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Hold:
    """``hold(what, error, tolerance)`` asserts, and notes the error for the end of the report."""
    reached = request.config.stash.setdefault(_reached, {})

    def check(what: str, error: float, tolerance: float) -> None:
        reached[what] = max(reached.get(what, (0.0, tolerance)), (error, tolerance))
        assert error <= tolerance, what

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reached = terminalreporter.config.stash.get(_reached, {})
    if reached:
        terminalreporter.section("errors reached, and what is allowed")
    for what, (error, tolerance) in sorted(reached.items()):
        terminalreporter.line(f"{what:<50} {error:.1e} of {tolerance:.0e}")
