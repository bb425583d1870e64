"""Which records are looked at after which step."""

import heapq
import random
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sphere_bench.errors import check_at_least


class Sample:
    """A sample of records that stays the same as records come and go, as far as it can.

    Each record has a random priority of its own, and the smallest priorities make the sample.

    Args:
        records: number of records of the run.
        size: of the sample, at most; ``None`` takes all records.
        seed: decides the priorities; a longer run's first records have the same ones.
    """

    def __init__(self, records: int, size: int | None, seed: int) -> None:
        self.size = size
        draw = random.Random(f"seen {seed}")
        self._priorities = [draw.random() for _ in range(records)]

    def of(self, indices: Iterable[int]) -> list[int]:
        """The sample of some records, in their order."""
        if self.size is None:
            return list(indices)
        return sorted(heapq.nsmallest(self.size, indices, key=self._priorities.__getitem__))

    def of_each(self, scopes: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
        """The sample of each scope's records."""
        return {scope: self.of(indices) for scope, indices in scopes.items()}


def check_sizes(key: str, **sizes: int | None) -> None:
    """Raise unless each of a probe's sizes, by its name below ``key``, is above 0 or ``None``."""
    for name, size in sizes.items():
        if size is not None:
            check_at_least(f"{key}.{name}", size, 1)


class Scopes:
    """The sets of records that a step's scores are means over.

    ``batch`` is the batch just edited, ``seen`` a sample of all edits so far, ``first`` the first
    batch, for retention, and ``all``, at milestones, all edits so far. At step 0, on the unedited
    model, the first batch stands for each of them, and the whole run for ``all``. ``seen`` stays
    the same from step to step as far as it can, see :class:`Sample`.

    A record is superseded once a later edit has given its fact another target: from that step on
    it is left out of the means, whatever comes after.

    Args:
        records: number of records of the run.
        batch_size: records in a batch; the last one may be smaller.
        seen: size of the scope ``seen``; 0 leaves it out.
        first: size of the scope ``first``, at most a batch; 0 leaves it out.
        milestones: numbers of edits at which there is ``all``, 0 for the unedited model.
        seed: decides the sample.
        overwritten_by: index of a record to that of the edit that gives its fact another target.
        score_superseded: count superseded records like the others, as published code does.
    """

    def __init__(
        self,
        records: int,
        batch_size: int,
        *,
        seen: int = 200,
        first: int = 100,
        milestones: Iterable[int] = (),
        seed: int = 0,
        overwritten_by: Mapping[int, int] = MappingProxyType({}),
        score_superseded: bool = False,
    ) -> None:
        self.records = records
        self.batch_size = batch_size
        self.first = first
        self.milestones = frozenset(milestones)
        self.score_superseded = score_superseded
        self._overwritten_by = overwritten_by
        self._seen = Sample(records, seen, seed)

    def of(self, step: int) -> dict[str, list[int]]:
        """Scope to the indices of the records that count in it; a scope without any is left out."""
        left_out = frozenset() if self.score_superseded else self.superseded(step)
        counted = {
            scope: [index for index in indices if index not in left_out]
            for scope, indices in self.members(step).items()
        }
        return {scope: indices for scope, indices in counted.items() if indices}

    def superseded(self, step: int) -> frozenset[int]:
        """The records whose fact has another target by the end of ``step``."""
        done = self.edits(step)
        return frozenset(index for index, later in self._overwritten_by.items() if later < done)

    def members(self, step: int) -> dict[str, list[int]]:
        """Scope to the indices of its records, superseded ones among them; never an empty one."""
        done = self.edits(step) if step else self.edits(1)
        previous = self.edits(step - 1) if step else 0
        scopes = {
            "batch": list(range(previous, done)),
            "seen": self._seen.of(range(done)),
            "first": list(range(min(self.first, self.batch_size, done))),
        }
        if self.is_milestone(step):
            scopes["all"] = list(range(done if step else self.records))
        return {scope: indices for scope, indices in scopes.items() if indices}

    def edits(self, step: int) -> int:
        """Records edited by the end of ``step``."""
        return min(max(step, 0) * self.batch_size, self.records)

    def is_milestone(self, step: int) -> bool:
        """Whether the step reaches one of the milestones."""
        if step == 0:
            return 0 in self.milestones
        return any(
            self.edits(step - 1) < milestone <= self.edits(step) for milestone in self.milestones
        )
