"""Numbers that must not reach a model: not finite ones, and updates that are too large."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.errors import SphereBenchError
from sphere_bench.geometry.energy import as_double

# How many cases a message names.
_NAMED = 5
_ADVICE = (
    "make another run with a lower model.values.learning_rate, a higher "
    "model.second_moment_weight, or numerics.on_nonfinite=skip (leaves such a batch out) or "
    "record (writes it all the same)"
)


@dataclass(frozen=True)
class Numerics:
    """What to do about a batch with numbers that are not finite, or with too large an update.

    Attributes:
        on_nonfinite: ``stop`` ends the run, ``skip`` leaves the batch out, ``record`` goes on with
            the numbers as they are.
        largest_update: bound on ||dW|| / ||W|| of one write; ``None`` is no bound.
    """

    on_nonfinite: Literal["stop", "skip", "record"] = "stop"
    largest_update: float | None = None


class NonfiniteError(SphereBenchError):
    """Numbers of a batch must not be written; the model is as it was before the batch.

    Attributes:
        problem: what is wrong, without the advice.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}, and the batch was not written: {_ADVICE}")


def requests_problem(what: str, rows: Tensor, requests: Sequence[EditRequest]) -> str | None:
    """Says for which requests ``rows`` [n, ...] are not finite; ``None`` if all rows are finite.

    Args:
        what: name of a row, such as "key".
        requests: the request of each row, n; one that occurs several times is named once.
    """
    finite = torch.isfinite(rows).flatten(1).all(dim=1).tolist()
    pairs = zip(requests, finite, strict=True)
    cases = list(dict.fromkeys(request.case_id for request, sound in pairs if not sound))
    if not cases:
        return None
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return f"the {what} of case {', '.join(cases[:_NAMED])}{more} is not finite"


def update_problem(
    layer: int, before: Tensor, after: Tensor, numerics: Numerics, dtype: torch.dtype
) -> str | None:
    """Says why ``after`` must not replace ``before``, both [d_out, d_in]; ``None`` if it may.

    Args:
        layer: of the weight.
        dtype: of the model; a number that it cannot hold counts as not finite.
    """
    wide = as_double(before)
    numbers = [as_double(torch.isfinite(after.to(dtype)).all())]
    if numerics.largest_update is not None:
        numbers += [wide.norm(), (as_double(after) - wide).norm()]
    # One wait for the device, not one for each number.
    is_finite, *norms = torch.stack(numbers).tolist()
    if not is_finite:
        return f"the update of layer {layer} is not finite"
    if numerics.largest_update is None:
        return None
    own, update = norms
    if update <= numerics.largest_update * own:
        return None
    return (
        f"the update of layer {layer} has the norm {update:.3g}, over "
        f"numerics.largest_update={numerics.largest_update:g} times the weight's {own:.3g}"
    )
