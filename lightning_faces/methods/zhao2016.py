"""Zhao, Wang, Benitez-Quiroz, Liu, Martinez: Fast and Precise Face Alignment and 3D Shape Reconstruction (2016).

A convolutional network finds 2D landmarks, and a small fully connected one adds their depth from their standardised
coordinates alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.heads import DepthHead, Features, FeatureShape, LandmarkHead
from lightning_faces.methods.base import FaceMethod, Term, full_precision
from lightning_faces.methods.checkpoint import read_checkpoint, take_weights


class PaperBackbone(nn.Module):
    """The convolutions of the paper's 2D network: four, and two max-pools (section 4.2).

    After each convolution come normalisation, ReLU and dropout; a pool follows the second and the fourth. The paper
    gives no widths or kernel sizes. The pooled features are the flattened last map, as the paper's fully connected
    layers read it.

    Args:
        image_size: Side of the input in pixels.
        channels: Output channels of the four convolutions.
        kernel_size: Side of their kernels.
        stride: Stride of the first convolution.
        dropout: Probability of dropping a channel after a convolution.
    """

    def __init__(
        self, image_size: int, channels: tuple[int, int, int, int], kernel_size: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        side = image_size
        for number, out in enumerate(channels):
            step = stride if number == 0 else 1
            layers += [
                nn.Conv2d(width, out, kernel_size, stride=step, padding=kernel_size // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
            ]
            side = (side - 1) // step + 1
            if number in (1, 3):
                layers.append(nn.MaxPool2d(2))
                side //= 2
            width = out
        self.layers = nn.Sequential(*layers)
        self.shape = FeatureShape(image_size, width * side * side, (width,), (side,))

    def extract(self, image: Tensor) -> Features:
        """Features of images ``[B, 3, S, S]`` in [0, 1]."""
        features = self.layers(image.to(next(self.parameters()).dtype) - 0.5)
        return Features(features.flatten(1), (features,))


class Zhao2016(FaceMethod):
    """2D landmarks from the image, then their depth from the landmarks.

    The 2D network is ``backbone`` and ``landmark_head``, the depth network ``depth_head``. Samples without depth train
    the 2D network only (the n2 samples of section 3).

    Args:
        image_size: Side of the input in pixels.
        landmark_scheme: "68" or "66" (the paper's).
        encoder: "paper", the 2D network that the next five options shape, or the name of a timm model in its place.
        encoder_args: Further arguments of ``timm.create_model``, such as ``channels`` of a ResNet or ``pretrained``.
        channels: Output channels of the four convolutions.
        kernel_size: Side of their kernels.
        stride: Stride of the first convolution.
        hidden: Width of the first fully connected layer.
        dropout: Probability of dropping a channel after a convolution.
        squared: Squared distances in eq. 2, as printed.
        pairwise: Which second term the 2D loss has: "distances" (eq. 4), "errors" (eq. 3) or "none".
        pairwise_weight: Its weight beside the local term (eq. 2); the paper gives none.
        pairwise_norm: The b of eq. 4.
        error_exponent: The c of eq. 3.
        depth_output: "linear", or "tanh" as printed.
        depth_weight: Weight of the depth term.
        view_angles: Standard deviations in degrees of the pitch, yaw and roll by which the 3D landmarks are turned to
            make new views for the depth network (section 5.1); zeros keep the views as they are.
        stage: Which part is trained: "joint" (each network on true targets), "landmarks" (2D alone), "depth" (depth
            alone, from true 2D landmarks in crops of any size, which it also predicts and is scored on) or
            "end_to_end" (depth from the predicted landmarks, gradients through both networks).
        start_from: Checkpoint of an earlier stage whose weights the training starts from.
        optimizer: Makes the optimizer; the paper trains the depth network by RMSProp at 0.01.
        lr_scheduler: Makes the learning-rate schedule.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.

    Example:
        >>> method = Zhao2016(image_size=64).eval()
        >>> method(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 68, 3])
    """

    requires = frozenset({"landmarks"})

    def __init__(
        self,
        image_size: int = 96,
        landmark_scheme: str = "68",
        encoder: str = "paper",
        encoder_args: dict[str, Any] | None = None,
        channels: tuple[int, int, int, int] = (32, 64, 64, 128),
        kernel_size: int = 3,
        stride: int = 1,
        hidden: int = 512,
        dropout: float = 0.1,
        squared: bool = True,
        pairwise: Literal["distances", "errors", "none"] = "distances",
        pairwise_weight: float = 1.0,
        pairwise_norm: float = 2.0,
        error_exponent: float = 2.0,
        depth_output: Literal["linear", "tanh"] = "linear",
        depth_weight: float = 0.1,
        view_angles: tuple[float, float, float] = (10.0, 20.0, 10.0),
        stage: Literal["joint", "landmarks", "depth", "end_to_end"] = "joint",
        start_from: str | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        if error_exponent < 1:
            raise ConfigurationError(f"Zhao2016 option error_exponent is {error_exponent}; eq. 3 needs at least 1.")
        if encoder == "paper" and encoder_args:
            raise ConfigurationError(
                f"Zhao2016 option encoder_args is {encoder_args}, but the encoder is the paper's: name a timm model."
            )
        self.image_size, self.landmark_scheme, self.stage = image_size, landmark_scheme, stage
        points = num_landmarks(landmark_scheme)
        self.backbone: PaperBackbone | Backbone
        if encoder == "paper":
            widths: Any = tuple(channels)
            self.backbone = PaperBackbone(image_size, widths, kernel_size, stride, dropout)
            # The regression had a layer more, which flattened.
            regression = {f"regression.{n}.": f"landmark_head.layers.{n - 1}." for n in (1, 2, 4)}
            parts = {"convolutions.": "backbone.layers.", **regression}
        else:
            option = "Zhao2016 option encoder"
            self.backbone = Backbone(option, encoder, image_size, own="paper", **(encoder_args or {}))
            parts = {"features.": "backbone.", "regression.": "landmark_head.layers.0."}
        self.renamed = {f"landmark_network.{old}": new for old, new in parts.items()} | {
            "depth_network.": "depth_head."
        }
        self.landmark_head = LandmarkHead(
            self.backbone.shape, points, hidden if encoder == "paper" else None,
            squared, pairwise, pairwise_weight, pairwise_norm, error_exponent,
        )  # fmt: skip
        pitch, yaw, roll = (math.radians(angle) for angle in view_angles)
        self.depth_head = DepthHead(
            points, image_size, depth_output, stage == "end_to_end", (pitch, yaw, roll), depth_weight
        )
        if stage == "depth":
            self.backbone.requires_grad_(False)
            self.landmark_head.requires_grad_(False)
            self.monitor = "val/gte"
            self.protocol = {"input": "true 2D landmarks"}
        if stage == "landmarks":
            self.depth_head.requires_grad_(False)
        if start_from is not None:
            self._start_from(Path(start_from).expanduser())

    def _start_from(self, path: Path) -> None:
        try:
            take_weights(self, read_checkpoint(path)["state_dict"], path)
        except (ConfigurationError, DataError) as error:
            raise ConfigurationError(
                f"Zhao2016 option start_from is {path}, which is no checkpoint of these networks: {error}"
            ) from error

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size``, which the stage "depth" does not look at, with landmarks of ``landmark_scheme``."""
        image_size = None if self.stage == "depth" else self.image_size
        return FaceSpec(image_size=image_size, landmark_scheme=self.landmark_scheme)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to landmarks ``[B, l, 3]``, image frame; the depth has mean 0."""
        return self.predict_faces({"image": image}).landmarks  # type: ignore[typeddict-item]

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``local`` (eq. 2), ``pairwise`` (eq. 3 or 4) and ``depth`` (eq. 11), as far as the stage has them."""
        if self.stage == "depth":
            return self.depth_head.terms(None, batch)
        points = self.landmark_head(self.backbone.extract(batch["image"]))
        terms = self.landmark_head.terms(points, batch)
        if self.stage == "landmarks":
            return terms
        with_depth = self.depth_head(points) if self.stage == "end_to_end" else None
        return {**terms, **self.depth_head.terms(with_depth, batch)}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """Landmarks with depths of mean 0; in the stage "depth" the true 2D landmarks, which the batch must have.

        Raises:
            ConfigurationError: If the stage is "depth" and the batch has none.
        """
        if self.stage != "depth":
            points = self.landmark_head(self.backbone.extract(batch["image"]))
            return self.depth_head.read(self.depth_head(points), batch)
        if "landmarks" not in batch:
            raise ConfigurationError(
                'Zhao2016 was trained in the stage "depth", which adds depth to true 2D landmarks, and these data have '
                "none: use a checkpoint of another stage."
            )
        return FacePrediction(landmarks=self.depth_head(full_precision(batch["landmarks"])[..., :2]).joined())
