"""Processes that share work, here as threads: torch's collectives are replaced by lists."""

import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import distributed

from sphere_bench.models.batching import Budget, backing_off
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.team import Team

# As much as fits, by piece: the second process has the odd ones.
ROOM = (100, 30)


class Collectives:
    """Those of torch.distributed that a team uses, for two threads.

    Attributes:
        rank: of the thread.
    """

    def __init__(self) -> None:
        self.rank = threading.local()
        self._here = threading.Barrier(2, timeout=30)
        self._given: list[bytes] = [b"", b""]

    def all_gather_object(self, gathered: list[Any], given: object) -> None:
        self._given[self.rank.value] = pickle.dumps(given)
        self._here.wait()
        gathered[:] = map(pickle.loads, self._given)
        self._here.wait()

    def broadcast_object_list(self, box: list[Any]) -> None:
        gathered = [None, None]
        self.all_gather_object(gathered, box[0])
        box[0] = gathered[0]


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> Collectives:
    made = Collectives()
    for name in ("all_gather_object", "broadcast_object_list"):
        monkeypatch.setattr(distributed, name, getattr(made, name))
    return made


def sizes_tried(loaded: LoadedModel, pieces: Sequence[int], budget: Budget) -> list[list[int]]:
    tried: list[list[int]] = []
    for piece in pieces:
        tried.append([])

        def work(size: int, piece: int = piece) -> None:
            tried[-1].append(size)
            if size > ROOM[piece % 2]:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        backing_off(work, budget)
    return tried


def test_what_memory_allows_in_one_process_is_remembered_for_all(collectives: Collectives) -> None:
    loaded = cast(LoadedModel, SimpleNamespace(layout=SimpleNamespace(written=set())))

    def help_it() -> None:
        collectives.rank.value = 1
        Team(2, 1).help(loaded)

    collectives.rank.value = 0
    with ThreadPoolExecutor(1) as others:
        helper = others.submit(help_it)
        team, budget = Team(2, 0), Budget(200)
        first = team.map(loaded, sizes_tried, [0, 1, 2], budget)
        second = team.map(loaded, sizes_tried, [0, 1, 2], budget)
        team.dismiss()
        helper.result()
    assert first == [[200, 100], [200, 100, 50, 25], [100]]
    assert second == [[25], [25], [25]]
    assert budget.size == 25
