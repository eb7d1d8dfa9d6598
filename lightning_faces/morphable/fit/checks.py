"""What every fit asks of its input, and how it says per face that the answer is no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = 1e6
"""Coordinates beyond this (a kilometre, or a million pixels) count as missing, as NaN does."""

FLAT = 1e-3
"""Spread across a line or a plane, over the spread along it, below which points lie in it."""


class Verdict:
    """Which faces of a batch are good so far, and the first reason against each that is not.

    Args:
        batch: Number of faces.
        device: Where ``valid`` lies.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.valid = torch.ones(batch, dtype=torch.bool, device=device)
        self.reason = [""] * batch

    def refuse(self, bad: Tensor, reason: str | Sequence[str]) -> None:
        """Mark the faces of ``bad`` (bool ``[B]``) that are still valid, with one reason or with each its own."""
        new = bad & self.valid
        for face in torch.nonzero(new).flatten().tolist():
            self.reason[face] = reason if isinstance(reason, str) else reason[face]
        self.valid = self.valid & ~new


def as_points(points: Any) -> Tensor:
    """A tensor of float32 or float64 from numbers of any kind."""
    tensor = torch.as_tensor(points)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def usable(*points: Tensor) -> Tensor:
    """Bool ``[B, N]``: where all of the point sets ``[B, N, D]`` have numbers that can be computed with."""
    good = [(values.isfinite() & (values.abs() < LARGEST)).all(dim=-1) for values in points]
    return torch.stack(good).all(dim=0)


def weighted_mean(points: Tensor, weights: Tensor) -> Tensor:
    """Mean ``[B, 1, D]`` of points ``[B, N, D]`` by weights ``[B, N]``; 0 where all weights are."""
    total = weights.sum(dim=1).clamp_min(torch.finfo(points.dtype).tiny)
    return (weights[..., None] * points).sum(dim=1, keepdim=True) / total[:, None, None]


def spread(points: Tensor, weights: Tensor) -> Tensor:
    """Standard deviations ``[B, D]`` of points ``[B, N, D]`` along their principal axes, the largest first."""
    centred = (points - weighted_mean(points, weights)) * weights.sqrt()[..., None]
    covariance = centred.transpose(1, 2) @ centred / weights.sum(dim=1).clamp_min(1.0)[:, None, None]
    return torch.linalg.eigvalsh(covariance).clamp_min(0.0).sqrt().flip(-1)
