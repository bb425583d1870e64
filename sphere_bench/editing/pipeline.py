"""From a proposed update to the deployed weights, the same for every editor."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.numerics import (
    NonfiniteError,
    Numerics,
    requests_problem,
    update_problem,
)
from sphere_bench.editing.transforms import EditedWeight, Sphere, Transform
from sphere_bench.editing.values import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import check_choice
from sphere_bench.geometry.energy import as_double
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)

Stage = Literal["values", "keys", "update", "transform"]


@dataclass(frozen=True)
class EditingSetup:
    """What a run gives to whichever editor it has.

    Attributes:
        loaded: the model.
        weights: the weights under edit.
        values: numbers of the value solver.
        contexts: templates with one ``{}``, the bare prompt first.
        second_moments: gives each edited layer's C [d_in, d_in]; computed or read when called.
        stream: all requests of the run, in their order.
        sphere: the projection that ends the list of transforms, or ``None``.
        apply: ``in_loop`` writes a layer's transformed update before the next layer is measured;
            ``after`` transforms all layers' updates once the last is found.
        tokens_per_batch: tokens in one forward.
        numerics: what becomes of a batch whose numbers are not finite.
    """

    loaded: LoadedModel
    weights: EditedWeights
    values: ValueSettings
    contexts: Sequence[str]
    second_moments: Callable[[], Mapping[int, Tensor]]
    stream: Sequence[EditRequest]
    sphere: Sphere | None
    apply: Literal["in_loop", "after"]
    tokens_per_batch: int
    numerics: Numerics = field(default_factory=Numerics)


class Stateful(Protocol):
    """What an editor remembers between batches, to be put back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class LayerReport:
    """What happened to one layer in a batch.

    Attributes:
        residual_norm: mean over requests of ||z - hidden state|| before this layer's write.
        update_norm: ||dW|| as proposed.
        applied_norm: norm of the change of the deployed weight.
        rank: number r of principal directions that SPHERE suppressed, ``None`` without it.
    """

    residual_norm: float = float("nan")
    update_norm: float = float("nan")
    applied_norm: float = float("nan")
    rank: int | None = None


@dataclass
class BatchReport:
    """What happened in a batch.

    Attributes:
        layers: per layer.
        losses: of the value solver: each request's loss at every iteration that it took part in.
        seconds: how long each stage took.
        nonfinite: a number was not finite, or an update beyond ``numerics.largest_update``.
        skipped: the batch was left out: model and editor are as they were before it.
    """

    layers: dict[int, LayerReport] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"values": 0.0, "keys": 0.0, "update": 0.0, "transform": 0.0}
    )
    nonfinite: bool = False
    skipped: bool = False

    @contextmanager
    def timed(self, stage: Stage, device: torch.device) -> Iterator[None]:
        """Add the block's time to ``stage``, waiting for the device to finish it."""
        start = perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[stage] += perf_counter() - start


class UpdatePipeline:
    """Transforms of a proposed update, the write, and what a batch leaves deployed.

    Args:
        setup: the run's weights, and SPHERE, which comes behind all other transforms.
        transforms: maps of the proposed update, in order.
        conditioner: maps the whole change since the pretrained weight once a batch is done
            (PRUNE): evaluation and deployment see its result.
        continue_from: what the next batch starts from, the ``deployed`` weights or, as the
            published code of PRUNE does, the ``unconditioned`` ones.
    """

    def __init__(
        self,
        setup: EditingSetup,
        transforms: Sequence[Transform] = (),
        conditioner: Transform | None = None,
        continue_from: Literal["unconditioned", "deployed"] = "unconditioned",
    ) -> None:
        self.setup = setup
        self.weights = setup.weights
        self.transforms = [*transforms, *([setup.sphere] if setup.sphere else [])]
        self.conditioner = conditioner
        check_choice("continue_from", continue_from, ("unconditioned", "deployed"))
        self.continue_from = continue_from
        self._unconditioned: dict[int, Tensor] = {}

    @contextmanager
    def batch(self, editor: Stateful) -> Iterator[BatchReport]:
        """The frame of a batch; an error inside leaves the weights deployed before it.

        Args:
            editor: whose memory is put back, too, where a batch is skipped.

        Yields:
            The report, to be filled by the editor.

        Raises:
            NonfiniteError: the batch's numbers are not sound, and the run is to stop at that.
        """
        weights = self.weights
        deployed, remembered = dict(weights.current), editor.state_dict()
        report = BatchReport({layer: LayerReport() for layer in weights.layers})
        try:
            for layer, weight in self._unconditioned.items():
                weights.write(layer, weight)
            yield report
            if self.conditioner is not None:
                self._condition(self.conditioner, report)
        except BaseException as error:
            for layer, weight in deployed.items():
                weights.write(layer, weight)
            if not isinstance(error, NonfiniteError | torch.linalg.LinAlgError):
                raise
            self._skip(error, report)
            editor.load_state_dict(remembered)
        for layer, done in report.layers.items():
            done.applied_norm = (weights.current[layer] - deployed[layer]).norm().item()
            if self.setup.sphere:
                done.rank = self.setup.sphere.ranks.get(layer)

    def _skip(self, error: NonfiniteError | torch.linalg.LinAlgError, report: BatchReport) -> None:
        """Note that the batch is left out, unless the run is to stop."""
        if isinstance(error, torch.linalg.LinAlgError):
            error = NonfiniteError(f"the update cannot be computed ({error})")
        if self.setup.numerics.on_nonfinite == "stop":
            raise error
        logger.warning("a batch is left out: %s", error.problem)
        report.nonfinite = report.skipped = True

    def check_requests(
        self, what: str, rows: Tensor, requests: Sequence[EditRequest], report: BatchReport
    ) -> None:
        """Heed ``rows`` [n, ...] that are not finite; see :func:`requests_problem`."""
        self._heed(requests_problem(what, rows, requests), report)

    def write(self, layer: int, before: Tensor, update: Tensor, report: BatchReport) -> None:
        """Put ``before`` plus the transformed update into the model."""
        weight = EditedWeight(layer, self.weights.pretrained[layer], before)
        with report.timed("transform", self.setup.loaded.device):
            # Decompositions refuse what is not finite.
            if torch.isfinite(update).all() and torch.isfinite(before).all():
                for transform in self.transforms:
                    update = transform(update, weight)
        self.put(layer, before, update, report)

    def put(self, layer: int, before: Tensor, update: Tensor, report: BatchReport) -> None:
        """Put ``before`` plus ``update`` into the model: whatever an editor writes goes this way.

        Raises:
            NonfiniteError: the result must not be written.
        """
        after = (as_double(before) + update).float()
        numerics, dtype = self.setup.numerics, self.setup.loaded.dtype
        self._heed(update_problem(layer, before, after, numerics, dtype), report)
        self.weights.write(layer, after)

    def _heed(self, problem: str | None, report: BatchReport) -> None:
        if problem is None:
            return
        if self.setup.numerics.on_nonfinite != "record":
            raise NonfiniteError(problem)
        logger.warning("%s: recorded and written as it is", problem)
        report.nonfinite = True

    def _condition(self, conditioner: Transform, report: BatchReport) -> None:
        weights = self.weights
        for layer in weights.layers:
            current = weights.current[layer]
            if self.continue_from == "unconditioned":
                self._unconditioned[layer] = current
            if not torch.isfinite(current).all():
                continue
            with report.timed("transform", self.setup.loaded.device):
                weight = EditedWeight(layer, weights.pretrained[layer], current)
                change = conditioner(torch.zeros_like(as_double(current)), weight)
            self.put(layer, current, change, report)

    def state_dict(self) -> dict[str, Any]:
        """The weights that the next batch starts from, where they are not the deployed ones."""
        return {str(layer): weight for layer, weight in self._unconditioned.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._unconditioned = {
            int(layer): weight.to(self.weights.current[int(layer)].device)
            for layer, weight in state.items()
        }
