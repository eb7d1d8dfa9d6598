"""A method that needs no training: it lays the landmarks of a face into the bright rectangle of a crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.methods import MeanLandmarks
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable import MorphableModel
from lightning_faces.predict.detection import Detections
from lightning_faces.targets import FaceSpec


def unit_face() -> Tensor:
    """The mean face's landmarks ``[68, 3]``, image frame, whose box is from 0 to 1."""
    model = MorphableModel.load("embedded")
    points = model.landmarks(model.mean[None])[0] * torch.tensor([1.0, -1.0, 1.0])
    x0, y0, x1, y1 = box_of_points(points)
    return (points - torch.stack((x0, y0, points[:, 2].mean()))) / torch.stack((x1 - x0, y1 - y0, x1 - x0))


class BlobMethod(FaceMethod):
    """Landmarks in the box of the pixels that are brighter than half."""

    def __init__(self, image_size: int = 64, doubt: float = 0.0) -> None:
        super().__init__(lambda params: torch.optim.SGD(params, lr=1.0))
        self.image_size, self.doubt = image_size, doubt
        self.face = nn.Parameter(unit_face())

    @property
    def spec(self) -> FaceSpec:
        return FaceSpec(image_size=self.image_size, landmark_scheme="68")

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        bright = batch["image"].mean(dim=1)
        points = []
        for image in bright:
            # Edges to a part of a pixel: how much of the row and of the column is bright.
            rows, columns = image.amax(dim=1), image.amax(dim=0)
            box = [_edges(columns), _edges(rows)]
            low, high = torch.tensor([side[0] for side in box]), torch.tensor([side[1] for side in box])
            place = self.face.detach().clone()
            place[:, :2] = low + place[:, :2] * (high - low)
            place[:, 2] *= high[0] - low[0]
            points.append(place)
        landmarks = torch.stack(points)
        return FacePrediction(landmarks, uncertainty=torch.full(landmarks.shape[:2], self.doubt))


def _edges(profile: Tensor) -> tuple[float, float]:
    shown = (profile > 0.5).nonzero()[:, 0]
    if not len(shown):
        return 0.0, 0.0
    first, last = int(shown[0]), int(shown[-1])
    before = float(profile[first - 1]) if first > 0 else 0.0
    after = float(profile[last + 1]) if last + 1 < len(profile) else 0.0
    return first - before, last + after


def photograph(box: tuple[int, int, int, int], width: int = 160, height: int = 120) -> NDArray[np.uint8]:
    """A dark picture with a bright rectangle, of the pixels from (x0, y0) to (x1, y1) inclusive."""
    image = np.full((height, width, 3), 20, dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0 : y1 + 1, x0 : x1 + 1] = (250, 255, 245)
    return image


class RoughDetector:
    """Finds the bright rectangle with an error."""

    def __init__(self, shift: float = 0.1, scale: float = 1.15) -> None:
        self.shift, self.scale = shift, scale

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        bright = image.min(axis=2) > 150
        if not bright.any():
            return Detections(np.zeros((0, 4)), np.zeros(0))
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        low = np.array([columns[0], rows[0]], dtype=np.float64)
        high = np.array([columns[-1], rows[-1]], dtype=np.float64)
        centre, half = (low + high) / 2 + self.shift * (high - low), self.scale * (high - low) / 2
        return Detections(np.concatenate((centre - half, centre + half))[None], np.array([0.9]))


def save_checkpoint(path: Path | str = "mean.ckpt") -> Path:
    """A checkpoint whose method predicts the mean face in the middle of every crop."""
    method = MeanLandmarks()
    face = unit_face() - torch.tensor([0.5, 0.5, 0.0])
    method.mean.data = face * 2 / 1.3
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(method)
    trainer.save_checkpoint(path)
    return Path(path)
