"""The baseline of every leaderboard: the mean landmarks of the training split, placed in the crop."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.methods.base import FaceMethod, image_to_unit, unit_to_image


class MeanLandmarks(FaceMethod):
    """Predicts the same landmarks for every image: their mean over the training crops, in units of the image.

    One epoch of training is exact. It says what the crop alone gives away, and what a method must beat.

    Args:
        landmark_scheme: Landmark scheme of the data.
    """

    def __init__(self, landmark_scheme: str = "68") -> None:
        super().__init__(torch.optim.SGD, None, "epoch")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.landmark_scheme = landmark_scheme
        self.register_buffer("sum", torch.zeros(num_landmarks(landmark_scheme), 3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.sum: Tensor
        self.count: Tensor

    @property
    def spec(self) -> FaceSpec:
        """Any data of the same landmark scheme."""
        return FaceSpec(landmark_scheme=self.landmark_scheme)

    def on_train_start(self) -> None:
        """Forget earlier samples."""
        self.sum.zero_()
        self.count.zero_()

    def losses(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Mean squared distance to the current mean, in units of the image."""
        unit = image_to_unit(batch["landmarks"], batch["image"].shape[-1])[batch["has"]["landmarks"]]
        mean = (self.sum / self.count.clamp(min=1)).to(unit.dtype)
        return {"total": (unit - mean).square().sum(dim=-1).mean()}

    def training_step(self, batch: FaceBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Add one batch to the mean."""
        unit = image_to_unit(batch["landmarks"].double(), batch["image"].shape[-1])[batch["has"]["landmarks"]]
        self.sum += unit.sum(dim=0)
        self.count += len(unit)

    def on_train_epoch_end(self) -> None:
        """Add up the ranks' samples, each of which was seen once."""
        if self.trainer.world_size > 1:
            self.sum.copy_(self.trainer.strategy.reduce(self.sum, reduce_op="sum"))
            self.count.copy_(self.trainer.strategy.reduce(self.count, reduce_op="sum"))

    def configure_optimizers(self) -> None:
        """Nothing to optimise."""

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The mean landmarks, once per image."""
        mean = (self.sum / self.count.clamp(min=1)).to(batch["image"].dtype)
        points = unit_to_image(mean, batch["image"].shape[-1])
        return FacePrediction(landmarks=points.expand(len(batch["index"]), -1, -1).contiguous())
