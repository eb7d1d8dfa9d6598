"""A cascade that is fitted stage by stage, in closed form: what PARM's kind of method needs of the platform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.geometry.frames import image_to_unit, unit_to_image
from lightning_faces.methods.base import FaceMethod


class Cascade(FaceMethod):
    """Stage k adds to the landmarks a linear function of the image at ``4 k`` squared pixels; an epoch fits one stage.

    Args:
        stages: Number of stages.
        ridge: Weight of the regressor's squared norm.
    """

    every_sample_once = True
    grown = ("regressors",)

    def __init__(self, stages: int = 3, ridge: float = 1.0) -> None:
        super().__init__(optimizer=None)
        self.prediction_names = tuple(f"stage_{number}" for number in range(1, stages + 1))
        self.stages, self.ridge = stages, ridge
        self.register_buffer("regressors", torch.zeros(0, 1 + 3 * (4 * stages) ** 2, 204))
        self.regressors: Tensor
        self.seen: list[tuple[Tensor, Tensor]] = []

    def _inputs(self, image: Tensor, stage: int) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(image.float(), 4 * (stage + 1)).flatten(1)
        return torch.cat((torch.ones_like(small[:, :1]), small), dim=1)

    def _points(self, image: Tensor) -> list[Tensor]:
        points, found = image.new_zeros(len(image), 204, dtype=torch.float32), []
        for stage in range(self.stages):
            if stage < len(self.regressors):
                inputs = self._inputs(image, stage)
                points = points + inputs @ self.regressors[stage, : inputs.shape[1]].float()
            found.append(points)
        return found

    def start_pass(self) -> None:
        size = 1 + 3 * (4 * (min(len(self.regressors), self.stages - 1) + 1)) ** 2
        self.gram = torch.eye(size, dtype=torch.float64, device=self.device) * self.ridge
        self.moment = torch.zeros(size, 204, dtype=torch.float64, device=self.device)
        if self.global_rank > 0:  # the penalty counts once in the sum over the ranks
            self.gram.zero_()

    def fit_batch(self, batch: FaceBatch) -> None:
        stage, known = len(self.regressors), batch["has"]["landmarks"]
        if stage < self.stages:
            target = image_to_unit(batch["landmarks"], batch["image"].shape[-1]).flatten(1)
            inputs = self._inputs(batch["image"], stage).double() * known[:, None]
            self.gram += inputs.T @ inputs
            self.moment += inputs.T @ (target - self._points(batch["image"])[-1]).double()

    def end_pass(self) -> None:
        if not self.converged:
            gram, moment = (self.trainer.strategy.reduce(x, reduce_op="sum") for x in (self.gram, self.moment))
            solved = torch.linalg.solve(gram, moment).float()
            grown = nn.functional.pad(solved, (0, 0, 0, self.regressors.shape[1] - len(solved)))
            self.regressors = torch.cat((self.regressors, grown[None].to(self.regressors)))

    def num_parameters(self) -> int:
        return sum(204 * (1 + 3 * (4 * stage) ** 2) for stage in range(1, len(self.regressors) + 1))

    @property
    def converged(self) -> bool:
        return len(self.regressors) == self.stages

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        size = batch["image"].shape[-1]
        points = [unit_to_image(found.unflatten(1, (68, 3)), size) for found in self._points(batch["image"])]
        return {name: FacePrediction(landmarks=found) for name, found in zip(self.prediction_names, points)}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        return self.predict_named(batch)[self.prediction_names[-1]]
