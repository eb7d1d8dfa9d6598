"""Least-squares similarity alignment of point sets."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_transform(
    source: Tensor, target: Tensor, with_scale: bool = True, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, rotation and translation that bring ``source`` onto ``target`` in the least-squares sense.

    Minimises ``sum_n w_n |c R s_n + t - g_n|^2`` over proper rotations (Umeyama 1991).

    Args:
        source: Points ``[..., N, D]``.
        target: Corresponding points ``[..., N, D]``.
        with_scale: If false, c = 1 (rigid alignment).
        weights: Non-negative weights ``[..., N]``.

    Returns:
        Scale ``[...]``, rotation ``[..., D, D]`` and translation ``[..., D]``; see :func:`apply_similarity`.
    """
    if weights is None:
        weights = torch.ones(source.shape[:-1], dtype=source.dtype, device=source.device)
    weights = (weights / weights.sum(dim=-1, keepdim=True))[..., None]
    source_mean = (weights * source).sum(dim=-2, keepdim=True)
    target_mean = (weights * target).sum(dim=-2, keepdim=True)
    source_centred = source - source_mean
    covariance = (weights * (target - target_mean)).transpose(-1, -2) @ source_centred
    rotation, stretch = _plane_rotation(covariance) if source.shape[-1] == 2 else _rotation(covariance)
    if with_scale:
        variance = (weights * source_centred.square()).sum(dim=(-1, -2))
        scale = stretch / variance
    else:
        scale = torch.ones_like(stretch)
    translation = target_mean[..., 0, :] - scale[..., None] * (rotation @ source_mean.transpose(-1, -2))[..., 0]
    return scale, rotation, translation


def _rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The proper rotation R of the largest ``trace(R^T C)``, and that trace, of ``[..., D, D]``."""
    u, singular, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., -1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    return u @ (sign[..., None] * vt), (singular * sign).sum(dim=-1)


def _plane_rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The same in the plane, where it is an angle: ``a cos + b sin`` is largest. ONNX has no decomposition."""
    along = covariance[..., 0, 0] + covariance[..., 1, 1]
    across = covariance[..., 1, 0] - covariance[..., 0, 1]
    stretch = torch.linalg.vector_norm(torch.stack((along, across), dim=-1), dim=-1)
    turned = stretch > 0
    length = torch.where(turned, stretch, 1.0)
    cos, sin = torch.where(turned, along / length, 1.0), across / length
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)), stretch


def apply_similarity(points: Tensor, scale: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """``c R x + t`` for points ``[..., N, D]``, scale ``[...]``, rotation ``[..., D, D]``, translation ``[..., D]``."""
    return scale[..., None, None] * (points @ rotation.transpose(-1, -2)) + translation[..., None, :]
