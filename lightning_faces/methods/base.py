"""The one base class of all methods."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.metrics import landmark_arguments, landmark_metrics


class FaceMethod(LightningModule, ABC):
    """A method: a network, its losses, and how its output becomes a ``FacePrediction``.

    A subclass implements ``losses`` and ``predict_faces`` and says what data it needs in ``requires`` and ``spec``.
    Logged are ``train/loss`` and its terms, ``val/loss``, and the metrics as ``val/...`` and ``test/...``.

    Args:
        optimizer: Makes the optimizer of the trainable parameters.
        lr_scheduler: Makes the learning-rate schedule; None keeps the rate.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.
    """

    requires: frozenset[str] = frozenset({"landmarks"})
    """Target keys of the batch that the method trains on."""
    scores: frozenset[str] = frozenset()
    """Further target keys that a test scores where the data has them."""
    protocol: Mapping[str, str] = {}
    """What a record of this method must say beside the usual, such as another input than the image."""
    monitor = "val/nme"
    """The metric that decides which checkpoint is best, and that plateau schedules follow."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_scheduler_interval: Literal["epoch", "step"],
    ) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.val_metrics = landmark_metrics().clone(prefix="val/")
        self.test_metrics = landmark_metrics(yaw_bins=True).clone(prefix="test/")
        self.val_loss = MeanMetric()

    def __deepcopy__(self, memo: dict[int, Any]) -> FaceMethod:
        """A copy with weights of its own, as weight averaging makes, that shares the optimizer's factory.

        The factories that the command line makes hold the whole program, so that copying them would copy the data set.
        """
        for factory in (self.make_optimizer, self.make_lr_scheduler):
            memo[id(factory)] = factory
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied

    @property
    def spec(self) -> FaceSpec:
        """What the method needs of its data; any data will do by default."""
        return FaceSpec()

    @abstractmethod
    def losses(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The named terms of the training loss and their weighted sum ``total``, scalars."""

    @abstractmethod
    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The faces of a batch, in the image frame."""

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch; logs every term."""
        losses = self.losses(batch)
        total = losses["total"]
        logged = {f"train/{name}": value.detach() for name, value in losses.items() if name != "total"}
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch["index"]))
        self.log_dict(logged, batch_size=len(batch["index"]))
        return total

    def validation_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, FacePrediction]:
        """Score one batch; its prediction goes to callbacks as ``prediction``."""
        self.val_loss.update(self.losses(batch)["total"], weight=len(batch["index"]))
        self.log("val/loss", self.val_loss, batch_size=len(batch["index"]))
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, FacePrediction]:
        """Score one batch; its prediction goes to callbacks as ``prediction``."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: FaceBatch, batch_idx: int) -> FacePrediction:
        """The faces of a batch in the pixels of their files."""
        return self.predict_faces(batch).to_file(batch["crop_to_file"])

    def _evaluate(self, batch: FaceBatch, metrics: MetricCollection) -> dict[str, FacePrediction]:
        prediction = self.predict_faces(batch)
        metrics.update(**landmark_arguments(prediction.landmarks, batch))
        # Metric objects, not values: Lightning computes them once, over all ranks.
        self.log_dict(metrics, batch_size=len(batch["index"]), prog_bar=True)
        return {"prediction": prediction}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule over the parameters that require a gradient."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


def image_to_unit(points: Tensor, image_size: int) -> Tensor:
    """Image-frame pixels to coordinates in which the image spans [-1, 1]; a depth is scaled alike, not moved."""
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return (points - centre) * (2 / image_size)


def unit_to_image(points: Tensor, image_size: int) -> Tensor:
    """Inverse of :func:`image_to_unit`."""
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return points * (image_size / 2) + centre


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` (broadcast) is true; 0 where nothing is marked, never NaN."""
    weight = mask.expand_as(values).to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(values.dtype).tiny)
