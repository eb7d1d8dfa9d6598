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
    u, singular, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., -1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ (sign[..., None] * vt)
    if with_scale:
        variance = (weights * source_centred.square()).sum(dim=(-1, -2))
        scale = (singular * sign).sum(dim=-1) / variance
    else:
        scale = torch.ones_like(singular[..., 0])
    translation = target_mean[..., 0, :] - scale[..., None] * (rotation @ source_mean.transpose(-1, -2))[..., 0]
    return scale, rotation, translation


def apply_similarity(points: Tensor, scale: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """``c R x + t`` for points ``[..., N, D]``, scale ``[...]``, rotation ``[..., D, D]``, translation ``[..., D]``."""
    return scale[..., None, None] * (points @ rotation.transpose(-1, -2)) + translation[..., None, :]
