"""What holds for all tests: one thread a worker, no network, no caches of the user's."""

import logging
import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

_caches: pytest.StashKey[TemporaryDirectory[str]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Libraries read these when they are imported, and child processes inherit them."""
    caches = config.stash[_caches] = TemporaryDirectory(prefix="sphere-bench-tests-")
    os.environ["HF_HOME"] = f"{caches.name}/huggingface"
    os.environ["SPHERE_BENCH_CACHE"] = f"{caches.name}/sphere-bench"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # The workers of pytest-xdist share the cores already.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("SPHERE_BENCH_DEBUG", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_caches].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in for_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A run in this process leaves a log file open, in a folder that is gone by the next test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
