"""Which records are looked at after which step."""

import heapq
import random
from collections.abc import Iterable


class Scopes:
    """The sets of records that a step's scores are means over.

    ``batch`` is the batch just edited, ``seen`` a sample of all edits so far, ``first`` the first
    batch, for retention, and ``all``, at milestones, all edits so far. At step 0, on the unedited
    model, the first batch stands for each of them, and the whole run for ``all``. ``seen`` stays
    the same from step to step as far as it can: each record has a random priority of its own, and
    the smallest priorities among the edited records make the sample.

    Args:
        records: number of records of the run.
        batch_size: records in a batch; the last one may be smaller.
        seen: size of the scope ``seen``; 0 leaves it out.
        first: size of the scope ``first``, at most a batch; 0 leaves it out.
        milestones: numbers of edits at which there is ``all``, 0 for the unedited model.
        seed: decides the sample.
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
    ) -> None:
        self.records = records
        self.batch_size = batch_size
        self.seen = seen
        self.first = first
        self.milestones = frozenset(milestones)
        draw = random.Random(f"seen {seed}")
        self._priorities = [draw.random() for _ in range(records)]

    def of(self, step: int) -> dict[str, list[int]]:
        """Scope to the indices of its records; a scope without any is left out."""
        done = self.edits(step) if step else self.edits(1)
        previous = self.edits(step - 1) if step else 0
        scopes = {
            "batch": list(range(previous, done)),
            "seen": sorted(heapq.nsmallest(self.seen, range(done), self._priorities.__getitem__)),
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
