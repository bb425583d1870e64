"""A batch of MEMIT with SPHERE as published: dense systems of d_in unknowns, anew every batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch, BatchReport
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.transforms import Sphere
from tests.reference.keys import hidden_at, keys_at
from tests.reference.values import target_value


def edit(
    setup: EditingSetup,
    requests: Sequence[EditRequest],
    second_moments: Mapping[int, Tensor],
    second_moment_weight: float,
    sphere: Sphere | None = None,
) -> BatchReport:
    """Write a batch into the model; all layers' updates are found before SPHERE projects them."""
    loaded, weights = setup.loaded, setup.weights
    last = weights.layers[-1]
    batch = Batch(requests, loaded, weights)
    with batch.timed("values"):
        solved = [
            target_value(loaded, request, last, setup.contexts, setup.values)
            for request in requests
        ]
        values = torch.stack([each.value for each in solved], dim=1)
    batch.report.losses = [each.losses for each in solved]
    before = dict(weights.current)
    updates = {}
    for index, layer in enumerate(weights.layers):
        with batch.timed("keys"):
            keys = keys_at(loaded, requests, layer, setup.contexts)
            hidden = hidden_at(loaded, requests, last)
        with batch.timed("update"):
            residual = (values - hidden) / (len(weights.layers) - index)
            system = second_moment_weight * second_moments[layer].double()
            updates[layer] = least_squares(keys.double(), residual.double(), system)
        weights.write(layer, before[layer] + updates[layer])
    if sphere is not None:
        for layer in weights.layers:
            with batch.timed("transform"):
                updates[layer] = project(updates[layer], before[layer], sphere.alpha, sphere.eta)
            weights.write(layer, before[layer] + updates[layer])
    return batch.report


def least_squares(keys: Tensor, residual: Tensor, system: Tensor) -> Tensor:
    """dW = R K^T (A + K K^T)^-1 [d_out, d_in]."""
    return residual @ torch.linalg.solve(system + keys @ keys.T, keys).T


def project(update: Tensor, weight: Tensor, alpha: float, eta: float) -> Tensor:
    """SPHERE's published code (arXiv 2510.01172): U from the rows of W divided by their norms.

    r is one more than the number of eigenvalues whose cumulative share is at most eta.
    """
    rows = weight / weight.norm(dim=1, keepdim=True)
    eigenvalues, vectors = torch.linalg.eigh(rows.T @ rows)
    shares = eigenvalues.flip(0).cumsum(0) / eigenvalues.sum()
    rank = int((shares <= eta).sum()) + 1
    directions = vectors[:, -rank:].to(update)
    projector = torch.eye(len(directions)).to(update) - alpha * directions @ directions.T
    return update @ projector
