"""The image frame in pixels, and in units in which the image spans [-1, 1]."""

from __future__ import annotations

from torch import Tensor


def image_to_unit(points: Tensor, image_size: int) -> Tensor:
    """Image-frame pixels to coordinates in which the image spans [-1, 1]; a depth is scaled alike, not moved.

    Args:
        points: ``[..., 2]`` or ``[..., 3]``.
        image_size: Side of the image in pixels.

    Example:
        >>> import torch
        >>> image_to_unit(torch.tensor([31.5, 63.5, 16.0]), 64)
        tensor([0.0000, 1.0000, 0.5000])
    """
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return (points - centre) * (2 / image_size)


def unit_to_image(points: Tensor, image_size: int) -> Tensor:
    """Inverse of :func:`image_to_unit`."""
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return points * (image_size / 2) + centre
