"""Resampling images by a 2x3 matrix: one in a loader process (OpenCV), or a batch on its device (torch)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_faces.geometry import camera

SMOOTHED_FROM = 1.5
"""Where the result is this many times smaller, the source is smoothed first, so that fine detail does not alias."""
HALVED_FROM = 16.0
"""Where it is this many times smaller, the source is halved first, as often as it takes."""
LONGEST = 32_000
"""OpenCV's ``warpAffine`` takes sides below 2^15 pixels."""


def warp_image(
    image: NDArray[Any], matrix: NDArray[np.float64], image_size: int, nearest: bool = False
) -> NDArray[Any]:
    """Resample an image ``[H, W, C]`` by a 2x3 matrix from its pixels to a square of ``image_size``; outside is 0.

    Only the part that the crop shows is touched, and it is smoothed first where the crop is smaller.
    """
    inverse = cv2.invertAffineTransform(matrix)
    last = image_size - 1
    corners = np.array([[0, 0, 1], [last, 0, 1], [0, last, 1], [last, last, 1]], dtype=np.float64) @ inverse.T
    shrink = float(np.sqrt(abs(np.linalg.det(inverse[:, :2]))))
    pad = int(np.ceil(3 * shrink)) + 2
    height, width, channels = image.shape
    x0, y0 = np.clip(np.floor(corners.min(axis=0)) - pad, 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)) + pad, 0, (width, height)).astype(int)
    part = image[y0 : max(y1, y0), x0 : max(x1, x0)]
    if part.size == 0:
        return np.zeros((image_size, image_size, channels), dtype=image.dtype)
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (x0, y0)
    while not nearest and (shrink > HALVED_FROM or max(part.shape) > LONGEST) and min(part.shape[:2]) > 1:
        part, shifted, shrink = _halved(part, shifted, shrink)
    if max(part.shape) > LONGEST:
        return _warp_by_index(part, shifted, image_size)
    if shrink > SMOOTHED_FROM and not nearest:
        part = cv2.GaussianBlur(part, (0, 0), sigmaX=0.4 * shrink, borderType=cv2.BORDER_REPLICATE)
    flags = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    warped = cv2.warpAffine(np.ascontiguousarray(part), shifted, (image_size, image_size), flags=flags)
    crop: NDArray[Any] = warped.reshape(image_size, image_size, channels)
    return crop


def _halved(
    part: NDArray[Any], matrix: NDArray[np.float64], shrink: float
) -> tuple[NDArray[Any], NDArray[np.float64], float]:
    """An image of half the size (means of 2x2 pixels), and the matrix and shrinkage that go with it."""
    height, width, channels = part.shape
    half = cv2.resize(
        part[: height // 2 * 2, : width // 2 * 2], (width // 2, height // 2), interpolation=cv2.INTER_AREA
    )
    # Pixel c of the half shows 2c and 2c + 1, whose middle is at 2c + 0.5.
    to_part = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
    return half.reshape(height // 2, width // 2, channels), matrix @ to_part, shrink / 2


def _warp_by_index(part: NDArray[Any], matrix: NDArray[np.float64], image_size: int) -> NDArray[Any]:
    """The nearest pixels of an image that is too long for OpenCV."""
    inverse = cv2.invertAffineTransform(matrix)
    rows, columns = np.mgrid[0:image_size, 0:image_size]
    x, y = np.rint(np.tensordot(inverse, np.stack((columns, rows, np.ones_like(rows))), axes=1)).astype(int)
    shown = (x >= 0) & (y >= 0) & (x < part.shape[1]) & (y < part.shape[0])
    crop = np.zeros((image_size, image_size, part.shape[2]), dtype=part.dtype)
    crop[shown] = part[y[shown], x[shown]]
    return crop


def warp_images(images: Tensor, matrix: Tensor, image_size: int, nearest: bool = False) -> Tensor:
    """Resample images ``[B, C, H, W]`` by matrices ``[B, 2, 3]`` from their pixels to squares; outside is 0.

    Where the result is more than 1.5 times smaller, it is smoothed first, as in :func:`warp_image`.
    """
    inverse = camera.invert_affine(matrix)
    shrink = camera.scale_of(inverse)
    if not nearest and bool((shrink > SMOOTHED_FROM).any()):
        from lightning_faces.rendering.synthesis.photograph import gaussian_blur

        sigma = torch.where(shrink > SMOOTHED_FROM, 0.4 * shrink, 0.0).to(images.dtype)
        images = gaussian_blur(images, sigma[:, None].expand(-1, 2))
    height, width = images.shape[-2:]
    steps = torch.arange(image_size, dtype=inverse.dtype, device=inverse.device)
    across = inverse[:, :, 0, None, None] * steps + inverse[:, :, 2, None, None]
    places = across + inverse[:, :, 1, None, None] * steps[:, None]
    # From pixels, whose centres are integers, to grid_sample's -1 and 1 at the centres of the outermost.
    last = inverse.new_tensor([width - 1.0, height - 1.0])
    grid = (places.permute(0, 2, 3, 1) * (2.0 / last) - 1.0).to(images.dtype)
    mode = "nearest" if nearest else "bilinear"
    return nn.functional.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=True)
