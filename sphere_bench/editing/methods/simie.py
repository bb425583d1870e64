"""SimIE: around any editor, what that editor would do if all facts came at once."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from sphere_bench.config.target_arguments import find_target
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.keys import token_keys
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.editing.state import restore_state, state_of
from sphere_bench.errors import SphereBenchError, check_above, check_choice
from sphere_bench.geometry.energy import as_double


class SimIE:
    """SimIE (Guo et al., ICML 2025): W' = W + (W~ - W) K K^T P^-1.

    P is ridge I + K K^T of all batches so far, this one included. W~ is what the wrapped editor
    makes of the weights that it starts from. K [d_in, m] holds the inputs of the projection at all
    m tokens of the batch's prompts with their new targets, before the wrapped editor has written.
    The published code edits one request at a time; here a batch is edited together, which is the
    same with ``edits.batch_size=1``.

    Transforms, the conditioner and SPHERE see W' - W, not what the wrapped editor writes.

    Args:
        setup: the run's model, weights and settings.
        wraps: class of the wrapped editor, by its dotted name.
        ridge: of P; the published code calls it lambda.
        start: the wrapped editor edits, and K is read on, the ``pretrained`` weights in every batch
            (EasyEdit), or the ``current`` ones (the default of the paper's own code).
        own: the wrapped editor's own keys. What it remembers, it keeps from batch to batch.

    Raises:
        SphereBenchError: there is no such editor, it does not take these keys, or the ridge is not
            above 0.
    """

    def __init__(
        self,
        setup: EditingSetup,
        wraps: str,
        ridge: float = 10.0,
        start: Literal["pretrained", "current"] = "pretrained",
        **own: Any,
    ) -> None:
        check_above("editor.method.ridge", ridge, 0)
        check_choice("editor.method.start", start, ("pretrained", "current"))
        self.setup = setup
        self.start = start
        self.wrapped = _made(wraps, setup, own)
        # (W~ - W) K K^T P^-1 is the least-squares update with K as keys and (W~ - W) K as residual.
        self.solver = LeastSquares(ridge=ridge, remember="solved")
        self.solver.prepare(
            {
                layer: as_double(weight).new_zeros(weight.shape[1], weight.shape[1])
                for layer, weight in setup.weights.pretrained.items()
            }
        )

    def edit(self, batch: Batch) -> None:
        weights = batch.weights
        before = dict(weights.current)
        if self.start == "pretrained":
            for layer, pretrained in weights.pretrained.items():
                weights.write(layer, pretrained)
        keys = self._keys(batch)
        self.wrapped.edit(batch.untransformed())
        edited = dict(weights.current)
        for layer, weight in before.items():
            weights.write(layer, weight)
        for layer, weight in before.items():
            with batch.timed("update"):
                residual = (as_double(edited[layer]) - as_double(weight)) @ keys[layer]
                update = self.solver.solve(layer, keys[layer], residual)
            batch.write(layer, update)

    def _keys(self, batch: Batch) -> dict[int, Tensor]:
        """K [d_in, m] of every layer, in double precision."""
        setup = self.setup
        with batch.timed("keys"):
            found = token_keys(
                setup.loaded, batch.requests, setup.weights.layers, setup.tokens_per_batch
            )
        owners = [batch.requests[index] for index in found.owners]
        for rows in found.layers.values():
            batch.check("key", rows, owners)
        return {layer: as_double(rows).T for layer, rows in found.layers.items()}

    def facts(self) -> dict[str, Any]:
        facts = getattr(self.wrapped, "facts", None)
        return dict(facts()) if callable(facts) else {}

    def state_dict(self) -> dict[str, Any]:
        return {"solver": self.solver.state_dict(), "wrapped": state_of(self.wrapped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solver.load_state_dict(state.get("solver", {}))
        restore_state(self.wrapped, state.get("wrapped", {}))


def _made(wraps: str, setup: EditingSetup, own: Mapping[str, Any]) -> Editor:
    """The wrapped editor.

    Raises:
        SphereBenchError: there is none of this name, or it does not take these keys.
    """
    try:
        target = find_target(wraps)
    except Exception as error:
        said = " ".join(str(error).split())
        raise SphereBenchError(f"editor.method.wraps={wraps}: {said}") from error
    try:
        inspect.signature(target).bind(setup, **own)
    except TypeError as error:
        raise SphereBenchError(f"editor.method.wraps={wraps}: {error}") from error
    editor: Editor = target(setup, **own)
    return editor
