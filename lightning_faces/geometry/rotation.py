"""Rotations in the Euler order and signs of 300W-LP and AFLW2000-3D.

With the object frame (x to the image right of a frontal face, y up, z towards the viewer) and angles in radians:
+pitch looks up, +yaw moves the nose to the image left, +roll turns the face clockwise in the image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrix ``R = Rx(pitch) Ry(yaw) Rz(roll)`` as the 300W-LP code writes its three factors.

    Each factor is the transpose of the usual right-handed rotation (300W-LP ``main_show_with_BFM.m``), so that this is
    the transpose of the common ``Rz Ry Rx``.

    Args:
        angles: Pitch, yaw and roll in radians ``[..., 3]``.

    Returns:
        Rotation matrices ``[..., 3, 3]``.
    """
    cosine, sine = angles.cos(), angles.sin()
    cx, cy, cz = cosine.unbind(-1)
    sx, sy, sz = sine.unbind(-1)
    rows = (
        (cy * cz, cy * sz, -sy),
        (sx * sy * cz - cx * sz, sx * sy * sz + cx * cz, sx * cy),
        (cx * sy * cz + sx * sz, cx * sy * sz - sx * cz, cx * cy),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """Pitch, yaw and roll of a rotation: the exact inverse of :func:`euler_to_matrix` for ``|yaw| < 90`` degrees.

    The ``matrix2angle`` that circulates with PRNet and 3DDFA belongs to another order and differs by degrees.

    Args:
        matrix: Rotation matrices ``[..., 3, 3]``.

    Returns:
        Pitch, yaw and roll in radians ``[..., 3]``; yaw lies in [-pi/2, pi/2].
    """
    pitch = torch.atan2(matrix[..., 1, 2], matrix[..., 2, 2])
    yaw = -torch.asin(matrix[..., 0, 2].clamp(-1.0, 1.0))
    roll = torch.atan2(matrix[..., 0, 1], matrix[..., 0, 0])
    return torch.stack((pitch, yaw, roll), dim=-1)


def vectors_to_matrix(vectors: Tensor) -> Tensor:
    """The rotation whose first two rows two vectors make, by Gram and Schmidt (Zhou et al. 2019, section 4).

    Unlike angles it has no place at which it jumps, so a network can give it for every rotation.

    Args:
        vectors: ``[..., 6]``, two vectors that are not parallel, one after the other.

    Returns:
        Rotation matrices ``[..., 3, 3]``.

    Example:
        >>> angles = torch.tensor([0.3, -0.7, 0.1])
        >>> rows = euler_to_matrix(angles)[:2]
        >>> matrix_to_euler(vectors_to_matrix((rows * torch.tensor([[2.0], [3.0]])).flatten()))
        tensor([ 0.3000, -0.7000,  0.1000])
    """
    first = torch.nn.functional.normalize(vectors[..., :3], dim=-1)
    second = vectors[..., 3:] - (first * vectors[..., 3:]).sum(dim=-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second)), dim=-2)
