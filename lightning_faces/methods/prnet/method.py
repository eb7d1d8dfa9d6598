"""PRNet as a method: training on position maps, and faces read from predicted ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.alignment import similarity_transform
from lightning_faces.geometry.camera import Camera, weak_perspective
from lightning_faces.geometry.rotation import matrix_to_euler
from lightning_faces.methods.base import FaceMethod, Term, image_to_unit, masked_term
from lightning_faces.methods.prnet.loss import depth_from_minimum, position_map_loss
from lightning_faces.methods.prnet.network import PositionMapNetwork
from lightning_faces.metrics import NormalizedMeanError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import UVGrid


class PRNet(FaceMethod):
    """A position map from one image: the image-frame coordinates of every point of the face, hidden ones included.

    Targets and predictions have the rearmost point of the map at z = 0 (the paper's rule); x and y may be negative or
    beyond the image where the face is, and are never clipped. The face model serves as the mesh that the map unwraps
    and as the canonical face of the pose; the network itself knows no shape space.

    Where the data has vertices, tests score those of the face without the neck (figures 7 to 10), whatever the weights:
    ``test/dense_nme`` and ``test/dense_nme_3d`` beyond the metrics of every method, and the same vertices in records.

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
        if min(weight_ratios) < 0 or max(weight_ratios) == 0:
            raise ConfigurationError(
                f"PRNet option weight_ratios is {list(weight_ratios)}: give four weights, none negative, not all 0."
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.image_size, self.map_size = image_size, image_size if map_size is None else map_size
        self.squared = squared
        self.network = PositionMapNetwork(image_size, self.map_size, width, encoder, pretrained, output)
        self.face_model = MorphableModel.load(face_model)
        self.uv = UVGrid(self.face_model, self.map_size)
        weights = self.uv.weights(weight_ratios)
        self.register_buffer("weights", weights, persistent=False)
        face = torch.ones(len(self.uv.vertex_ids), dtype=torch.bool)
        if "neck" in self.face_model.region_masks:
            face = ~self.face_model.region_masks["neck"][self.uv.vertex_ids]
        # What has no weight is not learnt, so no vertex is read from it.
        learnt = face if weight_ratios[3] == 0 else torch.ones_like(face)
        self.register_buffer("learnt", learnt.nonzero()[:, 0], persistent=False)
        self.register_buffer("learnt_vertices", self.uv.vertex_ids[learnt], persistent=False)
        self.register_buffer("face_vertices", self.uv.vertex_ids[face], persistent=False)
        self.weights: Tensor
        self.learnt: Tensor
        self.learnt_vertices: Tensor
        self.face_vertices: Tensor
        self.dense_metrics = MetricCollection(
            {"test/dense_nme": NormalizedMeanError(), "test/dense_nme_3d": NormalizedMeanError(dimensions=3)},
            compute_groups=False,
        )

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size`` with position maps of ``map_size`` of the same face model."""
        return FaceSpec(
            image_size=self.image_size,
            landmark_scheme="68",
            face_model=self.face_model.name,
            face_model_hash=self.face_model.hash,
            num_vertices=self.face_model.num_vertices,
            position_map_size=self.map_size,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` to position maps ``[B, 3, U, U]``, image frame; z is 0 at the rearmost point.

        Outside the face and on a neck without weight the values mean nothing.
        """
        return self.network(image).float() * self.image_size  # type: ignore[no-any-return]

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``position_map``: equation 1 as a weighted mean, in units of the image's side."""
        target = depth_from_minimum(batch["position_map"], self.uv.mask) / self.image_size
        per_face = position_map_loss(self.network(batch["image"]), target, self.weights, self.squared)
        return {"position_map": masked_term(per_face[:, None], batch["has"]["position_map"][:, None])}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """Landmarks, vertices and pose; see :meth:`read_faces`."""
        return self.read_faces(self(batch["image"]))

    def read_faces(self, maps: Tensor) -> FacePrediction:
        """Faces from position maps.

        Args:
            maps: ``[B, 3, U, U]``, image frame.

        Returns:
            Landmarks and vertices as :class:`.UVGrid` reads them, and the pose of the canonical face (the model's mean)
            that fits the vertices best. Vertices that the map lacks, the back of the head and a neck without weight,
            are those of the canonical face in this pose.
        """
        points = self.uv.vertices(maps)[:, self.learnt]
        pose, depth = self.fit_pose(points)
        vertices = weak_perspective(self.face_model.mean.to(maps.dtype), pose)
        vertices[..., 2] += depth[:, None]
        vertices = vertices.index_copy(1, self.learnt_vertices, points)
        return FacePrediction(landmarks=self.uv.landmarks(maps), vertices=vertices, camera=Camera.from_pose(pose))

    def fit_pose(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pose of the canonical face by the least-squares similarity.

        Args:
            points: Vertices ``learnt_vertices`` ``[B, N, 3]``, image frame.

        Returns:
            Pose ``[B, 6]`` as in ``FaceBatch`` and the depth ``[B]`` of the object frame's origin, pixels.
        """
        upright = points * points.new_tensor((1.0, -1.0, 1.0))
        canonical = self.face_model.mean[self.learnt_vertices].to(points.dtype).expand_as(points)
        scale, rotation, translation = similarity_transform(canonical, upright)
        pose = torch.cat((scale[:, None], matrix_to_euler(rotation), translation[:, :1], -translation[:, 1:2]), dim=1)
        return pose, translation[:, 2]

    def texture(self, image: Tensor, maps: Tensor) -> Tensor:
        """Colours of the image at the points of position maps (hidden points show what covers them).

        Args:
            image: ``[B, 3, S, S]``.
            maps: ``[B, 3, U, U]``, image frame.

        Returns:
            ``[B, 3, U, U]``, 0 outside the face and for points outside the image.
        """
        grid = image_to_unit(maps[:, :2].permute(0, 2, 3, 1), self.image_size)
        return nn.functional.grid_sample(image, grid, align_corners=False) * self.uv.mask

    def mesh_faces(self) -> Tensor:
        """Triangles int64 ``[F, 3]`` of the mesh whose corners are all read from the map."""
        learnt = torch.zeros(self.face_model.num_vertices, dtype=torch.bool, device=self.learnt.device)
        learnt[self.learnt_vertices] = True
        return self.face_model.faces[learnt[self.face_model.faces].all(dim=1)]

    def depth_image(self, vertices: Tensor) -> Tensor:
        """Depth image of the predicted face, without gradients.

        Args:
            vertices: ``[B, V, 3]`` from :meth:`read_faces`.

        Returns:
            ``[B, 1, S, S]`` pixels above the rearmost vertex read from the map, 0 where the face is not.
        """
        # The renderer needs PyTorch3D, which training does not.
        from lightning_faces.rendering.renderer import rasterize_image

        faces = self.mesh_faces()
        with torch.no_grad():
            raster = rasterize_image(vertices, faces, self.image_size)
            depth = vertices[..., 2:] - vertices[:, self.learnt_vertices, 2].amin(dim=1)[:, None, None]
            return raster.to_image(raster.interpolate(depth, faces))

    def test_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """Score one batch, sparse and dense; ``vertex_ids`` tells records which vertices are the face's."""
        result: dict[str, Any] = super().test_step(batch, batch_idx)
        has = batch["has"]
        rows = has["landmarks"] & has.get("vertices", torch.zeros_like(has["landmarks"]))
        if bool(rows.any()):
            self.dense_metrics.update(
                preds=result["prediction"].vertices[rows][:, self.face_vertices],
                target=batch["vertices"][rows][:, self.face_vertices],
                index=batch["index"][rows],
                reference=batch["landmarks"][rows],
            )
            self.log_dict(self.dense_metrics, batch_size=len(batch["index"]))
        return {**result, "vertex_ids": self.face_vertices}
