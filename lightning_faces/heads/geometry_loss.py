"""The geometry loss (Richardson et al. 2016, eq. 3) in the space of coefficients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_faces.heads.base import autocast_off
from lightning_faces.heads.terms import full_precision
from lightning_faces.morphable import MorphableModel


class GeometryLoss(nn.Module):
    """Mean squared distance of corresponding vertices, without making a vertex.

    ``|A x - A y|^2 = (x - y)' A'A (x - y)``: the Gram matrix of the modes holds all that the vertices would say.

    Args:
        model: The face model; its modes times their standard deviations are the columns of A.
        num_identity: How many identity modes are predicted.
        num_expression: How many expression modes are predicted.
    """

    gram: Tensor

    def __init__(self, model: MorphableModel, num_identity: int, num_expression: int) -> None:
        super().__init__()
        identity = (model.identity_basis * model.identity_std[:, None, None])[:num_identity]
        expression = (model.expression_basis * model.expression_std[:, None, None])[:num_expression]
        modes = torch.cat((identity, expression)).flatten(1).double()
        self.register_buffer("gram", (modes @ modes.T / model.num_vertices).float(), persistent=False)

    def forward(self, coefficients: Tensor, target: Tensor) -> Tensor:
        """Coefficients ``[B, K]`` against others, in standard deviations, to squared millimetres ``[B]``."""
        difference = full_precision(coefficients) - full_precision(target)
        # bfloat16 would round the products to a hundredth.
        with autocast_off(difference.device):
            return torch.einsum("bi,ij,bj->b", difference, self.gram.to(difference.dtype), difference)
