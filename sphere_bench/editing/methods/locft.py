"""LocFT-BF on a stream: fine-tuning breadth first, with a replay of earlier edits."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from sphere_bench.data.facts import fact_of
from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.training import Training
from sphere_bench.errors import check_at_least


class LocFTReplay:
    """LocFT-BF (arXiv 2509.22072) over a batch and a sample of the earlier edits.

    Adam on the edited weights, breadth first: every epoch goes through all texts in a new order, in
    chunks. A chunk with a loss below the threshold is left out; the batch ends when an epoch's mean
    loss is below it. As published it has all edits of a run before it. On a stream it has this
    batch's, and with them up to ``replay`` earlier ones, whatever their number. So it costs the
    same however many edits were made before.

    Args:
        setup: the run's model, weights and settings.
        steps: epochs.
        learning_rate: Adam's.
        replay: how many earlier edits are remembered, and trained again with every batch.
        chunk: texts in one step.
        loss_threshold: of a chunk and of an epoch, nats.
        end_of_text: whether EOS stands behind every target.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    def __init__(
        self,
        setup: EditingSetup,
        steps: int = 25,
        learning_rate: float = 5e-4,
        replay: int = 100,
        chunk: int = 100,
        loss_threshold: float = 1e-2,
        end_of_text: bool = True,
    ) -> None:
        self.training = Training(setup.loaded, steps, learning_rate, chunk, loss_threshold)
        check_at_least("editor.method.replay", replay, 0)
        self.end_of_text = end_of_text
        self.earlier = Sample(replay)
        self.generator = torch.Generator().manual_seed(setup.seed)

    def edit(self, batch: Batch) -> None:
        # A fact that is edited again must not be trained with its earlier target.
        latest = {fact_of(request): request for request in batch.requests}
        self.earlier.drop(latest)
        texts = self.training.texts(
            [*latest.values(), *self.earlier.requests], end_of_text=self.end_of_text
        )
        self.training.tune(
            batch,
            texts,
            order=lambda count: torch.randperm(count, generator=self.generator).tolist(),
        )
        self.earlier.add(latest.values(), self.generator)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), **self.earlier.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.earlier.load_state_dict(state)


class Sample:
    """A random sample of all requests so far, each equally likely to be in it (reservoir).

    Where requests were dropped, the next ones fill their places.

    Attributes:
        size: the most that it holds.
        count: how many requests there were.
        requests: the sample.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self.requests: list[EditRequest] = []

    def drop(self, facts: Collection[str]) -> None:
        """Forget the requests of ``facts``."""
        self.requests = [each for each in self.requests if fact_of(each) not in facts]

    def add(self, requests: Iterable[EditRequest], generator: torch.Generator) -> None:
        """Let ``requests`` take part in the draw."""
        for request in requests:
            self.count += 1
            if len(self.requests) < self.size:
                self.requests.append(request)
                continue
            place = int(torch.randint(self.count, (), generator=generator))
            if place < self.size:
                self.requests[place] = request

    def state_dict(self) -> dict[str, Tensor]:
        """The requests as JSON in bytes, since a state holds tensors."""
        text = json.dumps([asdict(request) for request in self.requests])
        return {
            "count": torch.tensor(self.count),
            "requests": torch.tensor(list(text.encode()), dtype=torch.uint8),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count = int(state["count"])
        text = bytes(state["requests"].tolist()).decode()
        self.requests = [EditRequest(**fields) for fields in json.loads(text)]
