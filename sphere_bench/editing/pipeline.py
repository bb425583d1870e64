"""The frame around every editor: transforms, conditioner, and batches that must not count."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Advance, Batch, BatchReport
from sphere_bench.editing.compensation import compensate as compensated
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.numerics import NonfiniteError, Numerics
from sphere_bench.editing.state import check_state, copied_state, restore_state, state_of
from sphere_bench.editing.transforms import Sphere, Transform
from sphere_bench.errors import SphereBenchError, check_choice
from sphere_bench.geometry.energy import as_double

logger = logging.getLogger(__name__)

_UNCONDITIONED = "unconditioned"

#: What transforms are applied to, and when; see :class:`EditingPipeline`.
Apply = Literal["in_loop", "after", "deployed"]


class EditingPipeline:
    """An editor with the transforms of its updates and the conditioner of the deployed weights.

    Args:
        editor: proposes updates.
        setup: the run's model and weights.
        transforms: applied to every update, in order.
        conditioner: transforms the whole change since the pretrained weight at the end of a batch
            (PRUNE); the result is evaluated and deployed.
        continue_from: what the next batch starts from: the ``deployed`` weights, or, like PRUNE's
            published code, the ``unconditioned`` ones, as the editor wrote them.
        sphere: SPHERE's projection, the last transform, or ``None``.
        apply: ``in_loop`` transforms a layer's update before the next layer is measured; ``after``
            transforms all updates once the editor has written them; ``deployed`` leaves updates as
            they are and transforms, behind the conditioner, the whole change since the pretrained
            weight, as an update of that weight.
        compensate: the editor's next batch makes up for what the transforms and the conditioner
            changed in what was deployed.
        numerics: what to do about a batch with numbers that are not sound.

    Raises:
        SphereBenchError: the editor or a transform is none, what it remembers cannot be saved, or
            the editor cannot compensate.
    """

    def __init__(
        self,
        editor: Editor,
        setup: EditingSetup,
        transforms: Sequence[Transform] = (),
        conditioner: Transform | None = None,
        continue_from: Literal["unconditioned", "deployed"] = "unconditioned",
        *,
        sphere: Sphere | None = None,
        apply: Apply = "in_loop",
        compensate: bool = False,
        numerics: Numerics | None = None,
    ) -> None:
        check_choice("editor.method.continue_from", continue_from, ("unconditioned", "deployed"))
        self.editor = editor
        self.loaded, self.weights = setup.loaded, setup.weights
        self.transforms = list(transforms)
        self.conditioner = conditioner
        self.continue_from = continue_from
        self.sphere = sphere
        self.apply = apply
        every = [*self.transforms, sphere] if sphere else self.transforms
        self._of_updates, self._of_changes = ([], every) if apply == "deployed" else (every, [])
        self.numerics = numerics or Numerics()
        self._unconditioned: dict[int, Tensor] = {}
        for name, component in self._components():
            _check_component(name, component)
        # Without transforms there is nothing to make up for, and the run is as one without this.
        acts = compensate and (bool(every) or conditioner is not None)
        self._compensated = compensated(editor) if acts else None

    def edit(self, requests: Sequence[EditRequest], advance: Advance | None = None) -> BatchReport:
        """Edit the model as earlier batches left it; an error leaves the weights as they were.

        Args:
            requests: the batch.
            advance: is given the share of the batch's work that is done.

        Raises:
            NonfiniteError: the batch's numbers are not sound, and the run stops at that.
        """
        weights = self.weights
        deployed, unconditioned = dict(weights.current), dict(self._unconditioned)
        memory = self._memory_to_restore()
        batch = Batch(
            requests,
            self.loaded,
            weights,
            self._of_updates,
            "after" if self.apply == "after" else "in_loop",
            self.numerics,
            advance,
        )
        try:
            for layer, weight in unconditioned.items():
                weights.write(layer, weight)
            self.editor.edit(batch)
            batch.settle()
            if self.conditioner is not None or self._of_changes:
                self._deploy(batch)
            if self._compensated is not None:
                for layer, error in batch.errors(deployed).items():
                    self._compensated.carry(layer, error)
        except BaseException as error:
            for layer, weight in deployed.items():
                weights.write(layer, weight)
            self._unconditioned = unconditioned
            if not isinstance(error, NonfiniteError | torch.linalg.LinAlgError):
                raise
            self._skip(error, batch.report)
            for name, component in self._components():
                restore_state(component, memory[name])
        batch.note_update_norms()
        for layer, done in batch.report.layers.items():
            done.applied_norm = (weights.current[layer] - deployed[layer]).norm().item()
            if self.sphere and not batch.report.skipped:
                done.rank = self.sphere.ranks.get(layer)
        return batch.report

    def facts(self) -> dict[str, Any]:
        """What the editor found out when it was made, as plain values by name."""
        facts = getattr(self.editor, "facts", None)
        return dict(facts()) if callable(facts) else {}

    def state_dict(self) -> dict[str, Any]:
        """What the components remember, and the weights that the next batch starts from.

        The latter only where they are not the deployed ones. Values are tensors in nested dicts.
        """
        state: dict[str, Any] = {name: state_of(each) for name, each in self._components()}
        state[_UNCONDITIONED] = {
            str(layer): weight for layer, weight in self._unconditioned.items()
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the deployed weights are written by the caller."""
        for name, component in self._components():
            restore_state(component, state.get(name, {}))
        self._unconditioned = {
            int(layer): weight.to(self.weights.current[int(layer)].device)
            for layer, weight in state.get(_UNCONDITIONED, {}).items()
        }

    def _components(self) -> Iterator[tuple[str, object]]:
        """Whatever may have a memory, by the name of its part of the state."""
        yield "editor", self.editor
        for position, transform in enumerate(self.transforms):
            yield f"transforms.{position}", transform
        if self.conditioner is not None:
            yield "conditioner", self.conditioner

    def _memory_to_restore(self) -> dict[str, Any]:
        """A copy of what the components remember, unless no batch of this run is skipped."""
        if self.numerics.on_nonfinite == "stop":
            return {}
        return {name: copied_state(state_of(each)) for name, each in self._components()}

    def _skip(self, error: NonfiniteError | torch.linalg.LinAlgError, report: BatchReport) -> None:
        """Note that the batch is left out, or raise the error if the run is to stop."""
        if isinstance(error, torch.linalg.LinAlgError):
            error = NonfiniteError(f"the update cannot be computed ({error})")
        if self.numerics.on_nonfinite == "stop":
            raise error
        logger.warning("a batch is left out: %s", error.problem)
        report.nonfinite = report.skipped = True

    def _deploy(self, batch: Batch) -> None:
        """Deploy the changed weights, and keep the others for the next batch if wanted."""
        weights = self.weights
        for layer in weights.layers:
            current, pretrained = weights.current[layer], weights.pretrained[layer]
            if self.continue_from == "unconditioned":
                self._unconditioned[layer] = current
            if not torch.isfinite(current).all():
                continue
            update = torch.zeros_like(as_double(current))
            if self.conditioner is not None:
                update = batch.transformed([self.conditioner], layer, current, update)
            if self._of_changes:
                earlier = as_double(current) - as_double(pretrained)
                change = batch.transformed(self._of_changes, layer, pretrained, earlier + update)
                update = change - earlier
            batch.put(layer, current, update)


def _check_component(name: str, component: object) -> None:
    """Raise unless a component has the methods that are called, and a memory that can be saved."""
    if name == "editor":
        key, method = "editor.method", "edit"
    else:
        key, method = f"editor.method.{name}", "__call__"
    if not callable(getattr(component, method, None)):
        raise SphereBenchError(f"{key}: {type(component).__name__} has no method {method}")
    check_state(component, key)
