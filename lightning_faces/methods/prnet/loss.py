"""The weighted position-map loss (Feng et al. 2018, eq. 1) and the z rule of its targets."""

from __future__ import annotations

import torch
from torch import Tensor


def position_map_loss(maps: Tensor, target: Tensor, weights: Tensor, squared: bool = False) -> Tensor:
    """Equation 1, ``sum |P - P~| W``, over ``sum W``: the weighted mean distance of a face's points.

    Args:
        maps: Predicted position maps ``[B, 3, U, U]``.
        target: True position maps, same shape and unit.
        weights: Weight mask ``[U, U]``.
        squared: Squared distances instead of the distances of the printed equation.

    Returns:
        ``[B]``, in the maps' unit (squared).
    """
    difference = maps - target
    distance = difference.square().sum(dim=1) if squared else torch.linalg.vector_norm(difference, dim=1)
    return (distance * weights).sum(dim=(1, 2)) / weights.sum()


def depth_from_minimum(maps: Tensor, mask: Tensor) -> Tensor:
    """PRNet's z rule: the rearmost point of each face's map gets z = 0.

    Args:
        maps: Position maps ``[B, 3, U, U]``.
        mask: Bool ``[U, U]``, the texels on the face.

    Returns:
        The maps with ``z - min z`` for z.
    """
    lowest = maps[:, 2].masked_fill(~mask, float("inf")).amin(dim=(1, 2))
    return torch.cat((maps[:, :2], (maps[:, 2] - lowest[:, None, None])[:, None]), dim=1)
