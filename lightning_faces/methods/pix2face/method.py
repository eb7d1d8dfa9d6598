"""Pix2face as a method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.geometry_images import GeometryImageHead, GeometryImages
from lightning_faces.heads.terms import Term
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.pix2face.network import UNetEncoder
from lightning_faces.morphable import MorphableModel

DECAY = (2.1e-5 / 1e-3) ** (1 / 59)
"""Per epoch, from 0.001 to 2.1e-5 in the paper's 60 (section 3.2.1)."""


class Pix2Face(FaceMethod):
    """The 3D point that each pixel of an image shows, from which camera and face model are fitted.

    Args:
        image_size: Side of the input in pixels; 256 in the paper's code.
        encoder: "unet", the paper's, or the name of a timm model.
        encoder_args: Further arguments of ``timm.create_model``.
        pretrained: Whether a timm encoder starts from its published weights.
        width: Channels of the first map of the paper's encoder.
        depth: Number of its maps.
        upsampling: How the decoder grows: "bilinear" upsampling and a convolution, or "transposed" convolutions.
        offset_range: The largest offset from the mean face in millimetres.
        camera: What is fitted to the images: an "affine" camera, or a "perspective" one from it (section 3.4.1).
        face_model: Name or path of the morphable model of the data.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the learning-rate schedule.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.

    Example:
        >>> method = Pix2Face(image_size=32, width=4, depth=3).eval()
        >>> method(torch.zeros(1, 3, 32, 32)).pncc.shape
        torch.Size([1, 3, 32, 32])
    """

    requires = frozenset({"landmarks", "pncc", "offsets", "face_mask"})
    scores = frozenset({"vertices", "coefficients", "pose"})

    def __init__(
        self,
        image_size: int = 256,
        encoder: str = "unet",
        encoder_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        width: int = 64,
        depth: int = 8,
        upsampling: Literal["bilinear", "transposed"] = "bilinear",
        offset_range: float = 25.0,
        camera: Literal["affine", "perspective"] = "affine",
        face_model: str = "embedded",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3, betas=(0.5, 0.9)),
        lr_scheduler: LRSchedulerCallable | None = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(
            optimizer, gamma=DECAY
        ),
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        if encoder == "unet" and (encoder_args or pretrained):
            raise ConfigurationError(
                "Pix2Face options encoder_args and pretrained are for timm encoders, but the encoder is 'unet': name a "
                "timm model."
            )
        self.image_size = image_size
        self.face_model = MorphableModel.load(face_model)
        self.encoder: UNetEncoder | Backbone
        if encoder == "unet":
            self.encoder = UNetEncoder(image_size, width, depth)
        else:
            self.encoder = Backbone(
                "Pix2Face option encoder", encoder, image_size, pretrained, pooled=False, maps=True, own="unet",
                **(encoder_args or {}),
            )  # fmt: skip
        self.head = GeometryImageHead(self.encoder.shape, self.face_model, upsampling, offset_range, camera)

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size`` of the same face model."""
        return FaceSpec(
            image_size=self.image_size,
            landmark_scheme="68",
            face_model=self.face_model.name,
            face_model_hash=self.face_model.hash,
        )

    def forward(self, image: Tensor) -> GeometryImages:
        """Images ``[B, 3, S, S]`` in [0, 1] to PNCC and offsets."""
        output: GeometryImages = self.head(self.encoder.extract(image))
        return output

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``pncc`` and ``offsets``: L1 of the six planes."""
        return self.head.terms(self(batch["image"]), batch)

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """Images in millimetres, camera, coefficients, mesh and landmarks; a face without valid pixels is not valid."""
        return self.head.read(self(batch["image"]), batch)

    def network_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """The images; :func:`~lightning_faces.morphable.fit.fit_dense` finds camera, coefficients and landmarks."""
        pncc, offsets, mask = self.head.millimetres(self(image))
        return {"pncc": pncc, "offsets": offsets, "dense_mask": mask}
