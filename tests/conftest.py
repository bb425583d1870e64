"""What holds for all tests: one thread a worker, no network, no caches of the user's."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.fast import hurry, hurry_loading

if TYPE_CHECKING:
    from tests.children import Nursery

# Only `pytest -m gpu` sees the GPUs. This names another device for its tests, such as `cpu`, to see
# that they are sound where there is no GPU.
GPU_TESTS_ON = "SPHERE_BENCH_GPU_TESTS_ON"

# Here what a folder's own conftest may need before pytest is configured: one thread, since the
# workers of pytest-xdist share the cores already, and a folder for caches, which workers share too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_caches = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _caches = TemporaryDirectory(prefix="sphere-bench-tests-")
    os.environ["HF_HOME"] = f"{_caches.name}/huggingface"
    os.environ["SPHERE_BENCH_CACHE"] = f"{_caches.name}/sphere-bench"


def pytest_configure(config: pytest.Config) -> None:
    """Libraries read these when they are imported, and child processes inherit them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.pop("SPHERE_BENCH_DEBUG", None)
    os.environ["MATPLOTLIBRC"] = str(Path(__file__).with_name("matplotlibrc"))
    hurry()
    # A shell may have started the tests in the background, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _for_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure() -> None:
    if _caches is not None:
        _caches.cleanup()


def pytest_collection_finish() -> None:
    if "transformers" in sys.modules:
        hurry_loading()
    # What the imports left is here to stay: collections of garbage need not look at it.
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = _no_gpu(config) if for_gpu else None
    if reason is not None:
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def _for_gpus(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "gpu")


def _no_gpu(config: pytest.Config) -> str | None:
    """Why the tests for GPUs cannot run."""
    if not _for_gpus(config):
        return "for a GPU: pytest -m gpu"
    if GPU_TESTS_ON in os.environ:
        return None
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


@contextmanager
def _logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A run in this process leaves a log file open, in a folder that is gone by the next test."""
    with _logging_kept():
        yield


@pytest.fixture(autouse=True, scope="module")
def logging_as_before_the_module() -> Iterator[None]:
    """The same for a run that a module's tests share."""
    with _logging_kept():
        yield


@pytest.fixture(scope="session")
def nursery() -> "Iterator[Nursery]":
    from tests.children import Nursery  # whose settings need the folder for caches

    if not hasattr(os, "fork"):
        pytest.skip("no os.fork on this system")
    nursery = Nursery()
    yield nursery
    assert nursery.process.stdin
    nursery.process.stdin.close()
    nursery.process.wait()
