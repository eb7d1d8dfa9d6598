"""PRNet as a method: training on position maps, and faces read from predicted ones."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.frames import image_to_unit
from lightning_faces.heads import PositionMapHead
from lightning_faces.methods.base import FaceMethod, Term
from lightning_faces.methods.prnet.network import PaperBackbone


class PRNet(FaceMethod):
    """A position map from one image: the image-frame coordinates of every point of the face, hidden ones included.

    Targets and predictions have the rearmost point of the map at z = 0 (the paper's rule); x and y may be negative or
    beyond the image where the face is, and are never clipped. The face model serves as the mesh that the map unwraps
    and as the canonical face of the pose; the network itself knows no shape space.

    Predicted are the vertices of the face without the neck (figures 7 to 10), whatever the weights; tests score them
    where the data has vertices.

    Args:
        image_size: Side of the input in pixels.
        map_size: Side of the position map in texels; None for ``image_size``.
        width: Channels at full size, 16 in the paper.
        encoder: "resfcn", the paper's, or the name of a timm model.
        pretrained: Whether a timm encoder starts from its published weights.
        output: "linear" reaches every target; "sigmoid", as published, only 0 to 1.1 image sides.
        face_model: Name or path of the morphable model of the data.
        weight_ratios: Weights in the loss of the 68 landmarks, of eyes, nose and mouth, of the other face and of the
            neck (section 3.2; table 3 compares 1:1:1:1, 1:1:1:0 and 16:4:3:0).
        squared: Squared distances in equation 1; it is printed without.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the learning-rate schedule; halved every 5 epochs in the paper.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.

    Example:
        >>> method = PRNet(image_size=64, width=2).eval()
        >>> method(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    requires = frozenset({"landmarks", "position_map"})
    scores = frozenset({"vertices"})

    def __init__(
        self,
        image_size: int = 256,
        map_size: int | None = None,
        width: int = 16,
        encoder: str = "resfcn",
        pretrained: bool = False,
        output: Literal["linear", "sigmoid"] = "linear",
        face_model: str = "embedded",
        weight_ratios: tuple[float, float, float, float] = (16.0, 4.0, 3.0, 0.0),
        squared: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = lambda optimizer: torch.optim.lr_scheduler.StepLR(
            optimizer, step_size=5, gamma=0.5
        ),
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        self.image_size = image_size
        self.backbone: PaperBackbone | Backbone
        if width < 1:
            raise ConfigurationError(f"PRNet option width is {width}; it must be at least 1.")
        if encoder == "resfcn":
            _check_multiple(image_size, encoder, 32)
            self.backbone = PaperBackbone(image_size, width)
        else:
            self.backbone = Backbone(
                "PRNet option encoder", encoder, image_size, pretrained, pooled=False, maps=True, own="resfcn"
            )
            _check_multiple(image_size, encoder, round(image_size / self.backbone.shape.sides[-1]))
        self.head = PositionMapHead(self.backbone.shape, map_size, width, output, face_model, weight_ratios, squared)
        encoder_now = "backbone.layers." if encoder == "resfcn" else "backbone."
        self.renamed = {"network.encoder.": encoder_now, "network.decoder.": "head.decoder."}

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size`` with position maps of ``map_size`` of the same face model."""
        face_model = self.head.face_model
        return FaceSpec(
            image_size=self.image_size,
            landmark_scheme="68",
            face_model=face_model.name,
            face_model_hash=face_model.hash,
            num_vertices=face_model.num_vertices,
            position_map_size=self.head.map_size,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` to position maps ``[B, 3, U, U]``, image frame; z is 0 at the rearmost point.

        Outside the face and on a neck without weight the values mean nothing.
        """
        maps: Tensor = self.head(self.backbone.extract(image))
        return maps * self.image_size

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``position_map``: equation 1 as a weighted mean, in units of the image's side."""
        return self.head.terms(self.head(self.backbone.extract(batch["image"])), batch)

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """Landmarks, vertices of the face, camera and position map; see :meth:`.PositionMapHead.read_maps`."""
        return self.head.read(self.head(self.backbone.extract(batch["image"])), batch)

    def network_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """All but the camera, whose fit has a singular value decomposition."""
        maps = self(image)
        return {"landmarks": self.head.uv.landmarks(maps), "vertices": self.head.vertices(maps), "position_map": maps}

    def texture(self, image: Tensor, maps: Tensor) -> Tensor:
        """Colours of the image at the points of position maps (hidden points show what covers them).

        Args:
            image: ``[B, 3, S, S]``.
            maps: ``[B, 3, U, U]``, image frame.

        Returns:
            ``[B, 3, U, U]``, 0 outside the face and for points outside the image.
        """
        grid = image_to_unit(maps[:, :2].permute(0, 2, 3, 1), self.image_size)
        return nn.functional.grid_sample(image, grid, align_corners=False) * self.head.uv.mask

    def depth_image(self, vertices: Tensor) -> Tensor:
        """Depth image of the predicted face, without gradients.

        Args:
            vertices: ``[B, V, 3]`` of a prediction.

        Returns:
            ``[B, 1, S, S]`` pixels above the rearmost of these vertices, 0 where the face is not.
        """
        # The renderer needs PyTorch3D, which training does not.
        from lightning_faces.rendering.renderer import rasterize_image

        triangles = self.head.triangles()
        with torch.no_grad():
            raster = rasterize_image(vertices, triangles, self.image_size)
            depth = vertices[..., 2:] - vertices[..., 2].amin(dim=1)[:, None, None]
            return raster.to_image(raster.interpolate(depth, triangles))


def _check_multiple(image_size: int, encoder: str, reduction: int) -> None:
    if image_size % reduction:
        raise ConfigurationError(
            f"PRNet option image_size is {image_size}; encoder {encoder!r} needs a multiple of {reduction}."
        )
