"""Depth of landmarks from their 2D places alone (Zhao et al. 2016, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.geometry.frames import image_to_unit, unit_to_image
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.heads.base import Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term, full_precision, masked_term


def standardize(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the mean and divide by the mean of the standard deviations of x and y (eq. 9 and 12).

    Args:
        points: ``[B, l, 2]`` or ``[B, l, 3]``.

    Returns:
        Standardised points, the means ``[B, 1, D]`` and the scales ``[B, 1, 1]``.
    """
    mean = points.mean(dim=1, keepdim=True)
    scale = points[..., :2].std(dim=1, correction=0, keepdim=True).mean(dim=-1, keepdim=True)
    # A sample without landmarks has all of them at 0.
    return (points - mean) / scale.clamp(min=torch.finfo(scale.dtype).tiny), mean, scale


def depth_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Term:
    """Euclidean distance of the standardised depths of a face, un-squared (eq. 11), mean over faces.

    Args:
        depth: ``[B, l]``.
        target: ``[B, l]``.
        mask: Bool ``[B]``, faces whose depth is known.
    """
    return masked_term(torch.linalg.vector_norm(depth - target, dim=1)[:, None], mask[:, None])


class PointsWithDepth(NamedTuple):
    """Output of :class:`DepthHead`.

    Attributes:
        points: The landmarks ``[B, l, 2]`` that it was given.
        depth: Their standardised depths ``[B, l]`` (eq. 8).
        scale: ``[B, 1, 1]``, what they are multiplied by.
    """

    points: Tensor
    depth: Tensor
    scale: Tensor

    def joined(self) -> Tensor:
        """``[B, l, 3]`` in the unit of ``points``; the depth has mean 0."""
        return torch.cat((self.points, self.depth[..., None] * self.scale), dim=-1)


class DepthHead(Head):
    """Six fully connected layers, 2l five times and then l, tanh after each (eq. 10), from landmarks to their depth.

    It works on the output of a landmark head, or on true 2D landmarks, in units in which the image spans [-1, 1].

    Args:
        points: Number of landmarks l.
        image_size: Side of the image in pixels.
        output: "tanh" as printed, whose range leaves out the depths beyond +-1 that 18-30% of real points have, or
            "linear" for the last layer.
        on_predictions: Train on the predicted landmarks, gradients through them; without, on true ones in new views.
        view_angles: Standard deviations in radians of the pitch, yaw and roll by which true 3D landmarks are turned to
            make new views in training; zeros keep the views as they are.
        weight: Weight of the term ``depth``.
    """

    requires = frozenset({"landmarks"})

    def __init__(
        self,
        points: int = 68,
        image_size: int = 96,
        output: Literal["linear", "tanh"] = "linear",
        on_predictions: bool = False,
        view_angles: tuple[float, float, float] = (math.radians(10), math.radians(20), math.radians(10)),
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.image_size, self.weight = image_size, weight
        self.on_predictions, self.view_angles = on_predictions, view_angles
        layers: list[nn.Module] = []
        for _ in range(5):
            layers += [nn.Linear(2 * points, 2 * points), nn.Tanh()]
        layers.append(nn.Linear(2 * points, points))
        if output == "tanh":
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)

    def standard_depth(self, points: Tensor) -> Tensor:
        """Standardised landmarks ``[B, l, 2]`` to standardised depths ``[B, l]`` (eq. 8)."""
        return last_layer(self.layers, points.transpose(1, 2).flatten(1))

    def forward(self, points: Tensor) -> PointsWithDepth:
        """Landmarks ``[B, l, 2]`` in a unit of any size, and their depths."""
        standard, _, scale = standardize(points)
        return PointsWithDepth(points, self.standard_depth(standard), scale)

    @without_autocast
    def terms(self, output: PointsWithDepth | None, batch: FaceBatch) -> dict[str, Term]:
        """``depth`` (eq. 11) of faces whose depth is known at all landmarks.

        Args:
            output: What :meth:`forward` made of predicted landmarks; not looked at unless ``on_predictions``.
            batch: With ``landmarks``.
        """
        target = image_to_unit(full_precision(batch["landmarks"]), self.image_size)
        known = (batch["landmark_mask"][..., 2] & batch["has"]["landmarks"][:, None]).all(dim=1)
        if self.on_predictions and output is not None:
            term = depth_loss(output.depth, standardize(target)[0][..., 2], known)
        else:
            standard = standardize(self.new_views(target) if self.training else target)[0]
            term = depth_loss(self.standard_depth(standard[..., :2]), standard[..., 2], known)
        return {"depth": replace(term, weight=self.weight)}

    @without_autocast
    def read(self, output: PointsWithDepth, batch: FaceBatch) -> FacePrediction:
        """Landmarks with depths of mean 0."""
        return FacePrediction(landmarks=unit_to_image(output.joined(), self.image_size))

    def new_views(self, points: Tensor) -> Tensor:
        """Turn 3D landmarks ``[B, l, 3]`` at random; scale and translation are undone by the standardisation."""
        deviation = points.new_tensor(self.view_angles)
        rotation = euler_to_matrix(torch.randn(len(points), 3, device=points.device, dtype=points.dtype) * deviation)
        centred = points - points.mean(dim=1, keepdim=True)
        # Image frame to object frame and back, which both turn y round: the rotation is seen through F on both sides.
        flip = points.new_tensor([1.0, -1.0, 1.0])
        return (centred * flip) @ rotation.transpose(1, 2) * flip
