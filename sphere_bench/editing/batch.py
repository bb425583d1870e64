"""A batch of edits: what an editor gets, and the report of what happened."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.numerics import (
    NonfiniteError,
    Numerics,
    requests_problem,
    update_problem,
)
from sphere_bench.editing.stages import STAGES, Stage
from sphere_bench.editing.transforms import EditedWeight, Transform
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError, check_choice
from sphere_bench.geometry.energy import as_double
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)

# When updates are transformed: at each write, or once the editor has written every layer.
Apply = Literal["in_loop", "after"]

#: Is given the share of the batch's work that is done, from 0 to 1.
Advance = Callable[[float], None]


@dataclass
class LayerReport:
    """What happened to one layer in a batch.

    Attributes:
        residual_norm: mean over requests of ||z - hidden state|| before this layer's write; NaN
            with editors that have no z.
        update_norm: ||dW||, dW the sum of what the editor wrote; NaN if it wrote nothing.
        applied_norm: norm of the change of the deployed weight.
        rank: number r of principal directions that SPHERE suppressed, ``None`` without SPHERE.
    """

    residual_norm: float = float("nan")
    update_norm: float = float("nan")
    applied_norm: float = float("nan")
    rank: int | None = None


@dataclass
class BatchReport:
    """What happened in a batch.

    Attributes:
        layers: edited layer to its report.
        losses: of the value solver: each request's loss at every iteration that it took part in.
        seconds: how long each stage took.
        nonfinite: a number was not finite, or an update exceeded ``numerics.largest_update``.
        skipped: the batch was left out: model and editor are as they were before it.
    """

    layers: dict[int, LayerReport] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    nonfinite: bool = False
    skipped: bool = False


class Batch:
    """What an editor gets: requests to edit, and the one way to write into the model.

    Args:
        requests: the edits of this batch.
        loaded: the model.
        weights: the weights under edit.
        transforms: applied to every update, in order.
        apply: ``in_loop`` writes each update transformed; ``after`` writes it as proposed, and
            :meth:`settle` transforms it.
        numerics: what to do about numbers that are not sound.
        advance: is given the share of the batch's work that is done, for a progress bar.

    Attributes:
        requests, weights, advance: as given.
        report: the editor may set ``losses`` and a layer's ``residual_norm``.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        loaded: LoadedModel,
        weights: EditedWeights,
        transforms: Sequence[Transform] = (),
        apply: Apply = "in_loop",
        numerics: Numerics | None = None,
        advance: Advance | None = None,
    ) -> None:
        self.requests = requests
        self.advance = advance or (lambda share: None)
        self.weights = weights
        self.report = BatchReport({layer: LayerReport() for layer in weights.layers})
        self._loaded = loaded
        self._transforms = transforms
        self._apply = apply
        self._numerics = numerics or Numerics()
        self._proposed: dict[int, Tensor] = {}
        # With ``after``: the weight before the layer's first write, and the sum of its updates.
        self._deferred: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to ``stage``; waits until the device has finished it."""
        check_choice("the stage", stage, STAGES)
        start = perf_counter()
        yield
        if self._loaded.device.type == "cuda":
            for device in {self._loaded.device, *map(self._loaded.device_of, self.weights.layers)}:
                torch.cuda.synchronize(device)
        self.report.seconds[stage] += perf_counter() - start

    def untransformed(self) -> "Batch":
        """The same batch with the same report, for an editor inside an editor.

        What that one writes is checked, but neither transformed nor counted as an update.
        """
        inner = Batch(
            self.requests, self._loaded, self.weights, numerics=self._numerics, advance=self.advance
        )
        inner.report = self.report
        return inner

    def check(self, what: str, rows: Tensor, requests: Sequence[EditRequest] | None = None) -> None:
        """Check that ``rows`` [n, ...] are finite.

        Args:
            what: name of a row, such as "key".
            rows: one for each of ``requests``.
            requests: n of them; the batch's by default.

        Raises:
            NonfiniteError: a row is not finite, unless the run records such numbers.
            SphereBenchError: there is not one row for each request.
        """
        owners = self.requests if requests is None else requests
        if len(rows) != len(owners):
            raise SphereBenchError(
                f"batch.check({what!r}, ...): {len(rows)} rows for {len(owners)} requests: give "
                "one for each"
            )
        self._handle(requests_problem(what, rows, owners))

    def write(self, layer: int, update: Tensor) -> None:
        """Add ``update`` [d_out, d_in] to the weight of ``layer``, transformed and checked.

        Several writes of a layer add up.

        Raises:
            NonfiniteError: the result must not be written.
            SphereBenchError: the layer is not edited, or the update has the wrong shape.
        """
        if layer not in self.weights.layers:
            raise SphereBenchError(
                f"layer {layer} is not edited: add it to editor.layers={self.weights.layers}"
            )
        # The editor may go on to use its tensor for something else.
        before, update = self.weights.current[layer], update.detach().clone()
        _check_shape("the update", layer, update, before)
        self._proposed[layer] = _sum(self._proposed.get(layer), update)
        if self._apply == "in_loop":
            self.put(layer, before, self.transformed(self._transforms, layer, before, update))
            return
        if layer in self._deferred:
            before, earlier = self._deferred[layer]
            update = earlier + update
        self._deferred[layer] = before, update
        self.put(layer, before, update)

    def settle(self) -> bool:
        """Apply the transforms that ``editor.apply=after`` defers; called at the end in any case.

        An editor calls it to measure the model as it will be deployed.

        Returns:
            Whether weights may have changed.

        Raises:
            NonfiniteError: the result must not be written.
        """
        deferred, self._deferred = self._deferred, {}
        for layer, (before, update) in deferred.items():
            self.put(layer, before, self.transformed(self._transforms, layer, before, update))
        return bool(deferred)

    def put(self, layer: int, before: Tensor, update: Tensor) -> None:
        """Replace the weight by ``before + update``, both [d_out, d_in], without transforms.

        For the pipeline: an editor uses :meth:`write`.

        Raises:
            NonfiniteError: the result must not be written.
        """
        after = (as_double(before) + update).float()
        self._handle(update_problem(layer, before, after, self._numerics, self._loaded.dtype))
        self.weights.write(layer, after)

    def transformed(
        self, transforms: Sequence[Transform], layer: int, before: Tensor, update: Tensor
    ) -> Tensor:
        """``update`` of the weight ``before``, both [d_out, d_in], after the transforms.

        For the pipeline, as :meth:`put`.
        """
        weight = EditedWeight(layer, self.weights.pretrained[layer], before)
        with self.timed("transform"):
            # Decompositions raise errors on numbers that are not finite.
            finite = torch.isfinite(before).all().to(update.device)
            if finite & torch.isfinite(update).all():
                for transform in transforms:
                    update = transform(update, weight)
                    _check_shape(f"what {type(transform).__name__} returns", layer, update, before)
        return update

    def errors(self, before: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What was deployed less what the editor wrote, dW' - dW [d_out, d_in], of written layers.

        Args:
            before: layer to its weight as it was deployed before the batch.
        """
        current = self.weights.current
        return {
            layer: as_double(current[layer]) - as_double(before[layer]) - update
            for layer, update in self._proposed.items()
        }

    def note_update_norms(self) -> None:
        """Fill in the report's ``update_norm`` of every layer that was written."""
        for layer, proposed in self._proposed.items():
            self.report.layers[layer].update_norm = proposed.norm().item()

    def _handle(self, problem: str | None) -> None:
        """Raise ``problem``, or note it where the run records such numbers."""
        if problem is None:
            return
        if self._numerics.on_nonfinite != "record":
            raise NonfiniteError(problem)
        logger.warning("%s: recorded and written as it is", problem)
        self.report.nonfinite = True


def _check_shape(what: str, layer: int, update: Tensor, weight: Tensor) -> None:
    """Raise unless the shapes are equal: broadcasting would hide the mistake."""
    if update.shape != weight.shape:
        raise SphereBenchError(
            f"{what} for layer {layer} has the shape {list(update.shape)}: it must have the "
            f"weight's, {list(weight.shape)}"
        )


def _sum(earlier: Tensor | None, update: Tensor) -> Tensor:
    return update if earlier is None else earlier + update
