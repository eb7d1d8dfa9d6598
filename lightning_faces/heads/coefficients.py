"""Coefficients of a face model, with the pose: shape, facial actions and camera of a face from the pooled features."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera, weak_perspective
from lightning_faces.geometry.frames import unit_to_image
from lightning_faces.geometry.rotation import euler_to_matrix, matrix_to_euler, vectors_to_matrix
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.geometry_loss import GeometryLoss
from lightning_faces.heads.terms import Term, full_precision, masked_term
from lightning_faces.morphable import MorphableModel

FACE_MM = 260.0
"""What the image's side spans where nothing is known yet, millimetres: a head in a usual crop."""
LEAST_MM = 0.01
"""Added to geometry errors in square, since the root has no derivative at 0."""


class PosedCoefficients(NamedTuple):
    """Output of :class:`CoefficientHead`.

    Attributes:
        coefficients: ``[B, K]``, identity then expression, in standard deviations, as the last layer gives them.
        pose: ``[B, 6]`` as in ``FaceBatch``.
        rotation: ``[B, 3, 3]``, that of the pose, with a derivative everywhere.
    """

    coefficients: Tensor
    pose: Tensor
    rotation: Tensor


class CoefficientHead(Head):
    """Identity, expression and pose of a face, by one linear layer on the pooled features.

    Expressions that are facial actions (blendshapes) lie in [0, 1] by construction: what the layer gives is cut off
    there. Identity has no bounds. The terms are

    - ``geometry``: root mean square distance of corresponding vertices, millimetres; it needs true coefficients;
    - ``actions``: mean absolute error of the facial actions, where the model's expressions are such, of what the layer
      gives before it is cut off, so that it finds back from outside;
    - ``pose``: angle between the rotations, as ``2 sin(angle / 2)``; a pose without coefficients does not count, as it
      may place another face model;
    - ``reprojection``: mean distance of the projected 68 landmarks in pixels; photographs with landmarks train it too.

    Args:
        shape: What the backbone gives.
        face_model: The face model of the data, or its name or path.
        weights: Weights of geometry (per millimetre), actions, pose (per radian) and reprojection, whose unit is half
            the image's side.

    Raises:
        ConfigurationError: If the backbone gives no pooled features, or a weight is negative.

    Example:
        >>> head = CoefficientHead(FeatureShape(64, pooled=8))
        >>> output = head(Features(torch.zeros(2, 8)))
        >>> head.read(output, {"image": torch.zeros(2, 3, 64, 64)}).landmarks.shape
        torch.Size([2, 68, 3])
    """

    requires = frozenset({"landmarks", "coefficients", "pose"})
    mean_landmarks: Tensor
    landmark_modes: Tensor

    def __init__(
        self,
        shape: FeatureShape,
        face_model: MorphableModel | str = "embedded",
        weights: tuple[float, float, float, float] = (0.1, 10.0, 0.2, 1.0),
    ) -> None:
        super().__init__()
        if shape.pooled == 0:
            raise ConfigurationError("CoefficientHead reads pooled features, which the backbone was not asked for.")
        if len(weights) != 4 or min(weights) < 0:
            raise ConfigurationError(
                f"CoefficientHead option weights is {list(weights)}: give four numbers, none negative, for geometry, "
                "actions, pose and reprojection."
            )
        self.image_size, self.term_weights = shape.image_size, tuple(weights)
        model = MorphableModel.load(face_model) if isinstance(face_model, str) else face_model
        self.face_model = model
        self.bounded = model.expression_kind == "blendshapes"
        self.layer = nn.Linear(shape.pooled, model.num_coefficients + 9)
        # A training begins with the mean face, seen from the front, in the middle of the image.
        nn.init.zeros_(self.layer.bias)
        with torch.no_grad():
            self.layer.weight.mul_(0.1)
        self.distance = GeometryLoss(model, model.num_identity, model.num_expression)
        modes = torch.cat(
            (
                model.identity_basis * model.identity_std[:, None, None],
                model.expression_basis * model.expression_std[:, None, None],
            )
        )
        self.register_buffer("mean_landmarks", model.landmarks(model.mean[None])[0], persistent=False)
        self.register_buffer("landmark_modes", model.landmarks(modes).flatten(1), persistent=False)

    def forward(self, features: Features) -> PosedCoefficients:
        """Pooled features ``[B, pooled]`` to coefficients and pose."""
        assert features.pooled is not None
        values = last_layer(self.layer, features.pooled)
        coefficients, vectors, scale, place = torch.split(values, [values.shape[1] - 9, 6, 1, 2], dim=1)
        rotation = vectors_to_matrix(vectors + vectors.new_tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        pose = torch.cat(
            (
                scale.exp() * (self.image_size / FACE_MM),
                matrix_to_euler(rotation.detach()),
                unit_to_image(place, self.image_size),
            ),
            dim=1,
        )
        return PosedCoefficients(coefficients, pose, rotation)

    def in_range(self, coefficients: Tensor) -> Tensor:
        """Coefficients ``[B, K]`` with facial actions cut off at 0 and 1."""
        if not self.bounded:
            return coefficients
        identity = self.face_model.num_identity
        return torch.cat((coefficients[:, :identity], coefficients[:, identity:].clamp(0.0, 1.0)), dim=1)

    def landmarks(self, output: PosedCoefficients) -> Tensor:
        """Projected landmarks ``[B, 68, 2]``, image frame."""
        modes = self.landmark_modes.to(output.coefficients.dtype)
        moved = (self.in_range(output.coefficients) @ modes).reshape(-1, *self.mean_landmarks.shape)
        shape = self.mean_landmarks.to(modes.dtype) + moved
        rows = output.rotation[:, :2] * output.pose[:, :1, None] * modes.new_tensor([[1.0], [-1.0]])
        return shape @ rows.transpose(1, 2) + output.pose[:, None, 4:]

    @without_autocast
    def terms(self, output: PosedCoefficients, batch: FaceBatch) -> dict[str, Term]:
        """``geometry``, ``actions``, ``pose`` and ``reprojection``; see the class."""
        known = batch["has"]["coefficients"]
        target = full_precision(batch["coefficients"])
        found = self.in_range(output.coefficients)
        geometry = (self.distance(found, target) + LEAST_MM**2).sqrt()
        terms = {"geometry": masked_term(geometry[:, None], known[:, None])}
        if self.bounded:
            identity = self.face_model.num_identity
            actions = (output.coefficients - target)[:, identity:].abs().mean(dim=1)
            terms["actions"] = masked_term(actions[:, None], known[:, None])
        turned = output.rotation - euler_to_matrix(full_precision(batch["pose"])[:, 1:4])
        # |R - S| = 2 sqrt(2) sin(angle / 2)
        angle = (turned.square().sum(dim=(1, 2)) / 2 + 1e-8).sqrt()
        terms["pose"] = masked_term(angle[:, None], (known & batch["has"]["pose"])[:, None])
        annotated = batch["landmark_mask"][..., 0] & batch["landmark_mask"][..., 1]
        distance = self.landmarks(output) - full_precision(batch["landmarks"])[..., :2]
        distance = torch.linalg.vector_norm(distance, dim=-1)
        terms["reprojection"] = masked_term(distance, annotated & batch["has"]["landmarks"][:, None])
        geometry_weight, action_weight, pose_weight, reprojection_weight = self.term_weights
        factors = {
            "geometry": geometry_weight, "actions": action_weight, "pose": pose_weight,
            "reprojection": reprojection_weight * 2 / self.image_size,
        }  # fmt: skip
        return {name: replace(term, weight=factors[name]) for name, term in terms.items()}

    @without_autocast
    def read(self, output: PosedCoefficients, batch: FaceBatch) -> FacePrediction:
        """Coefficients, camera, mesh and landmarks."""
        coefficients = self.in_range(output.coefficients)
        identity = self.face_model.num_identity
        shapes = self.face_model.vertices(coefficients[:, :identity], coefficients[:, identity:])
        vertices = weak_perspective(shapes, output.pose)
        return FacePrediction(
            landmarks=self.face_model.landmarks(vertices),
            vertices=vertices,
            coefficients=coefficients,
            camera=Camera.from_pose(output.pose),
        )
