"""What a fit of a face model gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_faces.geometry import Camera
from lightning_faces.morphable.model import MorphableModel


@dataclass(eq=False)
class LandmarkFit:
    """Cameras and landmarks of a batch of faces.

    Of a face that is not valid all numbers are 0, and ``reason`` says why.

    Attributes:
        camera: From the object frame (millimetres) to the frame of the points, or of the image, that were given.
        depth: ``[B]`` pixels to add to the camera's depths: where the origin of 3D points' z lies; else 0.
        landmarks: ``[B, L, 3]``, in that frame.
        residual: ``[B]``, root mean square distance between the points given and those of the fit, in pixels.
        valid: Bool ``[B]``.
        reason: Why a face is not valid, "" where it is.
    """

    camera: Camera
    depth: Tensor
    landmarks: Tensor
    residual: Tensor
    valid: Tensor
    reason: list[str]


@dataclass(eq=False)
class FaceFit(LandmarkFit):
    """Face models fitted to a batch of faces.

    Attributes:
        coefficients: ``[B, K]`` identity then expression, in standard deviations.
        face_model: The model.
    """

    coefficients: Tensor
    face_model: MorphableModel

    @cached_property
    def shapes(self) -> Tensor:
        """``[B, V, 3]`` vertices in millimetres, object frame; of a face that is not valid, the mean face."""
        return shapes_of(self.face_model, self.coefficients)

    @cached_property
    def vertices(self) -> Tensor:
        """``[B, V, 3]`` vertices in the frame of the points, computed when first asked for."""
        return place(self.camera, self.shapes, self.depth, self.valid)


def shapes_of(face_model: MorphableModel, coefficients: Tensor) -> Tensor:
    """Vertices ``[B, V, 3]`` (mm, object frame) of coefficients ``[B, K]``, in their type and on their device."""
    mean, modes = vertex_modes(face_model)
    shape = mean.to(coefficients).flatten() + coefficients @ modes.to(coefficients).flatten(1)
    return shape.reshape(-1, face_model.num_vertices, 3)


def vertex_modes(face_model: MorphableModel) -> tuple[Tensor, Tensor]:
    """The mean ``[V, 3]``, and for one unit of each coefficient what it adds, ``[K, V, 3]``, in millimetres."""
    identity = face_model.identity_basis * face_model.identity_std[:, None, None]
    expression = face_model.expression_basis * face_model.expression_std[:, None, None]
    return face_model.mean, torch.cat((identity, expression))


def place(camera: Camera, points: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Points ``[B, N, 3]`` of the object frame in that of the image; 0 for faces that are not valid."""
    projected = camera.project(points)
    projected = torch.cat((projected[..., :2], projected[..., 2:] + depth[:, None, None]), dim=-1)
    return torch.where(valid[:, None, None], projected, 0.0)


def kept_cameras(camera: Camera, valid: Tensor) -> Camera:
    """The cameras of valid faces; those of the others map all points to 0."""
    nothing = torch.zeros_like(camera.matrix)
    nothing[:, 2, 3] = 1.0
    matrix = torch.where(valid[:, None, None], camera.matrix, nothing)
    return Camera(camera.kind, matrix, torch.where(valid[:, None], camera.pose, 0.0))
