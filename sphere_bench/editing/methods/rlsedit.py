"""RLSEdit: recursive least squares over all edits so far."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit, ValueTransform
from sphere_bench.editing.solvers import UpdateSolver, factor_second_moment
from sphere_bench.errors import SphereBenchError, check_at_least, check_choice
from sphere_bench.geometry.energy import as_double

Variant = Literal["paper", "published-code", "as-run"]


class RlsEdit(LocateThenEdit):
    """RLSEdit (github.com/Euphoria040201/RLSEdit): recursive least squares over all edits so far.

    P = (lambda_reg^2 I + mu_reg^2 w C)^-1 at first. A batch with the keys K [d_in, n] makes it
    P' = P - P K (I + K^T P K)^-1 K^T P, and dW = R K^T P'.

    ``paper`` is the textbook's recursion: R is what each layer shall add, as in MEMIT, and P is
    carried from batch to batch. Given the same keys that is MEMIT-seq with its lambda = mu_reg^2 w.
    In ``published-code`` R is less by W K, the layer's present output, so that the layer is driven
    towards putting out the residual alone. ``as-run`` is that with P made anew in every batch: the
    published driver does not hand it on.

    Args:
        setup: the run's model, weights and settings.
        second_moment_weight: w.
        lambda_reg: its square is the weight of the identity.
        mu_reg: its square is the weight of w C.
        variant: which of the three.
        value_transform: maps the target values.

    Raises:
        SphereBenchError: a number is out of its range, or C is singular.
    """

    def __init__(
        self,
        setup: EditingSetup,
        second_moment_weight: float,
        lambda_reg: float = 0.0,
        mu_reg: float = 1.0,
        variant: Variant = "paper",
        value_transform: ValueTransform | None = None,
    ) -> None:
        check_choice("editor.method.variant", variant, get_args(Variant))
        for name, value in (("lambda_reg", lambda_reg), ("mu_reg", mu_reg)):
            check_at_least(f"editor.method.{name}", value, 0)
        if not lambda_reg and not mu_reg:
            raise SphereBenchError(
                "editor.method.lambda_reg=0 and editor.method.mu_reg=0: raise one of them"
            )
        self.variant = variant
        recursion = RecursiveLeastSquares(
            ordinary=mu_reg**2 * second_moment_weight,
            ridge=lambda_reg**2,
            carried=variant != "as-run",
        )
        super().__init__(setup, recursion, value_transform)

    def _residual(self, layer: int, keys: Tensor, missing: Tensor, remaining: int) -> Tensor:
        if self.variant != "paper":
            output = as_double(self.setup.weights.current[layer]) @ as_double(keys)
            missing = as_double(missing) - output
        return super()._residual(layer, keys, missing, remaining)


class RecursiveLeastSquares(UpdateSolver):
    """dW = R K^T P', P' the inverse of ordinary * C + ridge * I + K K^T, in d_in^2 n operations.

    Args:
        ordinary: weight of C.
        ridge: weight of the identity.
        carried: P' takes P's place, so that K K^T of all earlier batches is in it.
    """

    def __init__(self, ordinary: float, ridge: float, carried: bool) -> None:
        self.ordinary = ordinary
        self.ridge = ridge
        self.carried = carried
        self._inverses: dict[int, Tensor] = {}

    def prepare(self, second_moments: Mapping[int, Tensor]) -> None:
        for layer, moment in second_moments.items():
            system = self.ordinary * as_double(moment)
            system.diagonal().add_(self.ridge)
            self._inverses[layer] = torch.cholesky_inverse(factor_second_moment(system, layer))

    def solve(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        keys, inverse = as_double(keys), self._inverses[layer]
        weighted = inverse @ keys
        inner = keys.T @ weighted
        inner.diagonal().add_(1)
        gain = torch.linalg.solve(inner, weighted.T)  # K^T P', [n, d_in]
        if self.carried:
            self._inverses[layer] = inverse - weighted @ gain
        update: Tensor = as_double(residual) @ gain
        return update

    def remember(self, layer: int, keys: Tensor) -> None:
        """Nothing: :meth:`solve` has done it."""

    def state_dict(self) -> dict[str, Tensor]:
        carried = self._inverses if self.carried else {}
        return {str(layer): inverse for layer, inverse in carried.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for layer, inverse in state.items():
            self._inverses[int(layer)] = inverse.to(self._inverses[int(layer)])
