"""ENCORE: MEMIT with a ridge and a memory, and target values that stop at the argmax."""

from dataclasses import replace
from functools import partial
from typing import Literal

from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit, ValueTransform
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.values.stopping import ArgmaxHits
from sphere_bench.errors import SphereBenchError, check_at_least, check_choice


class Encore(LocateThenEdit):
    """ENCORE (arXiv 2502.01636): target values stop early, once they have been the argmax.

    An iteration of the value solver counts when the target is the argmax in the contexts besides
    the bare prompt. A request is finished after ``argmax_hits`` of them, in a row or not, or by
    MEMIT's threshold on the loss. The paper counts an iteration when all target tokens are right.
    The published code counts it when exactly as many tokens are right as there are contexts: of a
    target of T tokens, one token in T has to be right, and if more are, it does not count.

    Args:
        setup: the run's model, weights and settings.
        solver: turns keys and residuals into an update.
        argmax_hits: how many iterations; null leaves MEMIT's threshold alone.
        variant: which iterations count, as in the ``paper`` or as in the ``published-code``; for
            targets of one token that is the same.
        value_transform: maps the target values.

    Raises:
        SphereBenchError: there is no context besides the bare prompt.
    """

    def __init__(
        self,
        setup: EditingSetup,
        solver: UpdateSolver,
        argmax_hits: int | None = 2,
        variant: Literal["paper", "published-code"] = "paper",
        value_transform: ValueTransform | None = None,
    ) -> None:
        check_choice("editor.method.variant", variant, ("paper", "published-code"))
        if argmax_hits is not None:
            check_at_least("editor.method.argmax_hits", argmax_hits, 1)
            others = len(setup.contexts) - 1
            if not others:
                raise SphereBenchError(
                    "editor.method.argmax_hits counts in the contexts besides the bare prompt, and "
                    "there is none: add one to values.contexts, or set it to null"
                )
            exactly = others if variant == "published-code" else None
            stopping = partial(ArgmaxHits, needed=argmax_hits, exactly=exactly)
            setup = replace(setup, values=replace(setup.values, stopping=stopping))
        super().__init__(setup, solver, value_transform)
