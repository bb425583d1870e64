"""EMMET: MEMIT with equality constraints."""

from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit, ValueTransform
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.errors import check_above, check_at_least


class Emmet(LocateThenEdit):
    """EMMET (arXiv 2403.14236): the least change of ordinary outputs that puts every value in.

    dW = R G^-1 K^T A^-1 with A = w C and G = K^T A^-1 K, where K [d_in, n] holds the keys and
    R [d_out, n] the residuals. In a batch of several requests, as in the published code,
    ``emmet_lambda`` times the identity is added to G, since keys that resemble each other make it
    singular; a single request is put in exactly. So w and ``emmet_lambda`` count by their product
    alone, and not at all in batches of one. Nothing is remembered from batch to batch.

    Args:
        setup: the run's model, weights and settings.
        second_moment_weight: w.
        emmet_lambda: softens the constraints.
        value_transform: maps the target values.

    Raises:
        SphereBenchError: a number is out of its range, or C is singular.
    """

    def __init__(
        self,
        setup: EditingSetup,
        second_moment_weight: float,
        emmet_lambda: float = 0.1,
        value_transform: ValueTransform | None = None,
    ) -> None:
        check_above("editor.method.second_moment_weight", second_moment_weight, 0)
        check_at_least("editor.method.emmet_lambda", emmet_lambda, 0)
        constraints = EqualityConstraints(second_moment_weight, emmet_lambda)
        super().__init__(setup, constraints, value_transform)


class EqualityConstraints(LeastSquares):
    """dW = R (K^T A^-1 K + s I)^-1 K^T A^-1 with A = w C, s = 0 for a single request.

    Args:
        second_moment_weight: w.
        emmet_lambda: s of several requests.
    """

    def __init__(self, second_moment_weight: float, emmet_lambda: float) -> None:
        super().__init__(second_moment_weight)
        self.emmet_lambda = emmet_lambda

    def _slack(self, requests: int) -> float:
        return self.emmet_lambda if requests > 1 else 0.0
