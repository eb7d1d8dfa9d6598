"""Passes that each look at the geometry found so far: what Richardson's kind of method needs of the platform."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.geometry.camera import Camera
from lightning_faces.heads.base import last_layer
from lightning_faces.heads.terms import Term, full_precision, masked_term
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.geometry_view import geometry_view


class Passes(FaceMethod):
    """Each pass renders the coefficients of the one before, and corrects them and the pose."""

    requires = frozenset({"landmarks", "coefficients"})
    scores = frozenset({"vertices"})
    prediction_names = ("pass_1", "pass_2", "pass_3")

    def __init__(self, image_size: int = 32) -> None:
        super().__init__(functools.partial(torch.optim.AdamW, lr=0.001))
        self.image_size, self.model = image_size, MorphableModel.load("embedded")
        self.backbone = Backbone("option encoder", "test_resnet", image_size, in_chans=2)
        self.correction = nn.Linear(self.backbone.num_features, self.model.num_coefficients + 6)
        nn.init.zeros_(self.correction.weight)
        self.register_buffer("step", torch.tensor([0.1 / 250, 1, 1, 1, 9, 9]) * image_size / 32, persistent=False)
        self.step: Tensor

    @property
    def spec(self) -> FaceSpec:
        return FaceSpec(
            image_size=self.image_size, landmark_scheme="68", face_model=self.model.name,
            face_model_hash=self.model.hash, num_identity=self.model.num_identity,
            num_expression=self.model.num_expression, num_vertices=self.model.num_vertices,
        )  # fmt: skip

    def _passes(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        half = (self.image_size - 1) / 2
        pose = image.new_tensor([self.image_size / 250, 0, 0, 0, half, half], dtype=torch.float32).expand(len(image), 6)
        coefficients, found = pose.new_zeros(len(image), self.model.num_coefficients), []
        for _ in self.prediction_names:
            mask, shading = geometry_view(self.model, coefficients, pose.detach(), self.image_size)
            seen = torch.cat((image.mean(dim=1, keepdim=True) * mask, shading), dim=1)
            change = last_layer(self.correction, self.backbone(seen))
            coefficients = coefficients.detach() + change[:, :-6]
            pose = pose.detach() + change[:, -6:] * full_precision(self.step)
            found.append((coefficients, pose))
        return found

    def _read(self, coefficients: Tensor, pose: Tensor) -> FacePrediction:
        with torch.autocast(pose.device.type, enabled=False):
            split = [self.model.num_identity, self.model.num_expression]
            camera = Camera.from_pose(pose)
            shape = full_precision(self.model.vertices(*coefficients.to(self.model.mean.dtype).split(split, dim=1)))
            vertices = camera.project(shape.to(pose.dtype))
            landmarks = self.model.landmarks(vertices)
        return FacePrediction(landmarks, vertices, coefficients=coefficients, camera=camera)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        terms = {}
        for name, (coefficients, pose) in zip(self.prediction_names, self._passes(batch["image"])):
            distance = (self._read(coefficients, pose).landmarks - full_precision(batch["landmarks"]))[..., :2].norm(
                dim=-1
            )
            error = (coefficients - full_precision(batch["coefficients"])).square()
            known = batch["has"]["landmarks"][:, None].expand_as(distance)
            terms[f"{name}_landmarks"] = masked_term(distance / self.image_size, known)
            terms[f"{name}_coefficients"] = masked_term(
                error, batch["has"]["coefficients"][:, None].expand_as(error), 0.01
            )
        return terms

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        return {name: self._read(*found) for name, found in zip(self.prediction_names, self._passes(batch["image"]))}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        return self.predict_named(batch)[self.prediction_names[-1]]
