"""Faces whose geometry and cameras are known, for the tests of fitting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_faces.geometry import Camera, euler_to_matrix
from lightning_faces.morphable import MorphableModel


@dataclass
class Faces:
    """Random faces of a model under weak perspective."""

    coefficients: Tensor
    shapes: Tensor
    camera: Camera
    landmarks: Tensor
    """``[B, 68, 3]`` image frame."""


def random_faces(model: MorphableModel, count: int, seed: int = 0, yaw: float = 1.0, scale: float = 1.2) -> Faces:
    """Identities and a few facial actions each, yaw within +-``yaw`` radians."""
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(count, model.num_identity, generator=generator)
    active = torch.rand(count, model.num_expression, generator=generator) < 0.15
    expression = active * torch.rand(count, model.num_expression, generator=generator)
    angles = torch.randn(count, 3, generator=generator) * 0.2
    angles[:, 1] = (torch.rand(count, generator=generator) * 2 - 1) * yaw
    size = scale * (1 + 0.2 * torch.rand(count, 1, generator=generator))
    pose = torch.cat((size, angles, 100 + 5 * torch.randn(count, 2, generator=generator)), dim=1)
    camera, shapes = Camera.from_pose(pose), model.vertices(identity, expression)
    return Faces(torch.cat((identity, expression), dim=1), shapes, camera, camera.project(model.landmarks(shapes)))


def degrees_between(pose: Tensor, other: Tensor) -> Tensor:
    """Angle ``[B]`` of the rotation that leads from one pose to the other."""
    turn = euler_to_matrix(pose[:, 1:4].double()) @ euler_to_matrix(other[:, 1:4].double()).transpose(1, 2)
    # By the skew part: the cosine of a small angle has lost it to rounding.
    skew = torch.stack((turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]))
    trace = turn.diagonal(dim1=1, dim2=2).sum(dim=1)
    return torch.rad2deg(torch.atan2(skew.norm(dim=0), trace - 1))


def rms(shapes: Tensor, other: Tensor) -> Tensor:
    """Root mean square distance ``[B]`` of corresponding vertices."""
    return (shapes - other).square().sum(dim=2).mean(dim=1).sqrt()
