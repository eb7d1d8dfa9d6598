"""The baseline of every leaderboard: the mean landmarks of the training split, placed in the crop."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.geometry.frames import image_to_unit, unit_to_image
from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.heads.terms import Term, full_precision, masked_term
from lightning_faces.methods.base import FaceMethod


class MeanLandmarks(FaceMethod):
    """Predicts the same landmarks for every image: their mean over the training crops, in units of the image.

    It says what the crop alone gives away, and what a method must beat. Step n of gradient descent on half the squared
    distance with rate 1 / n is the running mean, so that one epoch of equal batches is exact, on any number of ranks.

    Args:
        landmark_scheme: Landmark scheme of the data.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 64, 64), "index": torch.tensor([0])}
        >>> MeanLandmarks().predict_faces(batch).landmarks.shape
        torch.Size([1, 68, 3])
    """

    def __init__(self, landmark_scheme: str = "68") -> None:
        super().__init__(
            lambda params: torch.optim.SGD(params, lr=1.0),
            lambda optimizer: LambdaLR(optimizer, lambda step: 1.0 / (step + 1)),
            "step",
        )
        self.save_hyperparameters()
        self.landmark_scheme = landmark_scheme
        self.mean = nn.Parameter(torch.zeros(num_landmarks(landmark_scheme), 3))

    @property
    def spec(self) -> FaceSpec:
        """Any data of the same landmark scheme."""
        return FaceSpec(landmark_scheme=self.landmark_scheme)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``distance``: half the squared distance to the mean, in units of the image."""
        error = full_precision(self.mean) - image_to_unit(full_precision(batch["landmarks"]), batch["image"].shape[-1])
        known = batch["has"]["landmarks"]
        return {"distance": masked_term((error.square().sum(dim=(1, 2)) / 2)[:, None], known[:, None])}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The mean landmarks, once per image."""
        points = unit_to_image(full_precision(self.mean), batch["image"].shape[-1])
        return FacePrediction(landmarks=points.expand(batch["image"].shape[0], -1, -1).contiguous())
