"""K-FAC: the curvature of the loss in a weight, as a Kronecker product of two moments."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.geometry.subspace import rank_for_share


class FlatDirections(NamedTuple):
    """The directions of a weight in which the loss hardly curves.

    Attributes:
        inputs: U_a [d_in, d_in], eigenvectors of A in columns.
        outputs: U_b [d_out, d_out], eigenvectors of B.
        kept: M [d_out, d_in], 1 where the direction u_b u_a^T is flat, otherwise 0.
    """

    inputs: Tensor
    outputs: Tensor
    kept: Tensor

    def project(self, change: Tensor) -> Tensor:
        """U_b ((U_b^T G U_a) o M) U_a^T of a change G [d_out, d_in] of the weight."""
        inputs, outputs = self.inputs.to(change), self.outputs.to(change)
        within = (outputs.T @ change @ inputs) * self.kept.to(change)
        return outputs @ within @ inputs.T


class KroneckerFactors:
    """A = E[h h^T] and B = E[g g^T] of a weight over all tokens so far (arXiv 1503.05671).

    h is the input of the projection where a token is predicted, g the gradient of that token's NLL,
    and of those behind it in its text, at the projection's output.
    """

    def __init__(self) -> None:
        self.tokens = torch.zeros((), dtype=torch.float64)
        self.inputs = torch.zeros((), dtype=torch.float64)  # sum of h h^T, [d_in, d_in]
        self.gradients = torch.zeros((), dtype=torch.float64)  # sum of g g^T, [d_out, d_out]

    def add(self, hidden: Tensor, gradients: Tensor) -> None:
        """Add the rows of ``hidden`` [m, d_in] and ``gradients`` [m, d_out], double precision."""
        self.tokens = self.tokens + len(hidden)
        self.inputs = self.inputs.to(hidden) + hidden.T @ hidden
        self.gradients = self.gradients.to(gradients) + gradients.T @ gradients

    def flat_directions(self, energy: float) -> FlatDirections:
        """All but the strongest directions u_b u_a^T, which make up ``energy``.

        The curvature along a direction is the product of its eigenvalues of A and B. Those are left
        out whose curvature reaches that of the last of the strongest ones, which together have the
        share ``energy`` of the sum.

        Args:
            energy: in (0, 1].
        """
        count = self.tokens.item()
        inputs, input_vectors = torch.linalg.eigh(self.inputs / count)
        outputs, output_vectors = torch.linalg.eigh(self.gradients / count)
        curvatures = torch.outer(outputs, inputs)
        strongest = curvatures.flatten().sort(descending=True).values
        threshold = strongest[max(rank_for_share(strongest, energy), 1) - 1]
        return FlatDirections(input_vectors.float(), output_vectors.float(), curvatures < threshold)

    def state_dict(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens, "inputs": self.inputs, "gradients": self.gradients}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.tokens = state["tokens"]
        self.inputs, self.gradients = state["inputs"], state["gradients"]
