"""Position maps in UV space (Feng et al. 2018, PRNet): decoder, loss, and faces read from a map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.alignment import similarity_transform
from lightning_faces.geometry.camera import Camera
from lightning_faces.geometry.rotation import matrix_to_euler
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term, full_precision, masked_term
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import UVGrid

SIGMOID_RANGE = 1.1
"""The published network multiplies its sigmoid by 281.6 = 1.1 * 256: it reaches 0 to 1.1 image sides."""
EPSILON = 1e-3
"""Of all batch norms, as published."""


def position_map_loss(maps: Tensor, target: Tensor, weights: Tensor, squared: bool = False) -> Tensor:
    """Equation 1, ``sum |P - P~| W``, over ``sum W``: the weighted mean distance of a face's points.

    Args:
        maps: Predicted position maps ``[B, 3, U, U]``.
        target: True position maps, same shape and unit.
        weights: Weight mask ``[U, U]``.
        squared: Squared distances instead of the distances of the printed equation.

    Returns:
        ``[B]``, in the maps' unit (squared).
    """
    difference = maps - target
    distance = difference.square().sum(dim=1) if squared else torch.linalg.vector_norm(difference, dim=1)
    return (distance * weights).sum(dim=(1, 2)) / weights.sum()


def depth_from_minimum(maps: Tensor, mask: Tensor) -> Tensor:
    """PRNet's z rule: the rearmost point of each face's map gets z = 0.

    Args:
        maps: Position maps ``[B, 3, U, U]``.
        mask: Bool ``[U, U]``, the texels on the face.

    Returns:
        The maps with ``z - min z`` for z.
    """
    lowest = maps[:, 2].masked_fill(~mask, float("inf")).amin(dim=(1, 2))
    return torch.cat((maps[:, :2], (maps[:, 2] - lowest[:, None, None])[:, None]), dim=1)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with kernel 4 and SAME padding: of the whole result, (1, 2) or at stride 2 (1, 1) go."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride, padding=1, bias=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', stride H, stride W]``."""
        y = super().forward(x, output_size)
        return y[..., :-1, :-1].contiguous() if self.stride == (1, 1) else y


def norm_relu(channels: int) -> list[nn.Module]:
    """Batch norm and ReLU. Its running averages follow torch's 0.1, not TensorFlow's 0.001, which takes many epochs."""
    return [nn.BatchNorm2d(channels, eps=EPSILON), nn.ReLU(inplace=True)]


def decoder(in_channels: int, width: int, doublings: int) -> nn.Sequential:
    """Transposed convolutions that double the side ``doublings`` times; five make the paper's 17.

    Args:
        in_channels: Channels of the encoder's last feature map.
        width: Channels at full size; the first layer has 32 times as many.
        doublings: How often the side is doubled, 1 to 5.

    Returns:
        Layers from ``[B, in_channels, s, s]`` to ``[B, 3, s 2^doublings, s 2^doublings]``; the last are a convolution
        and a batch norm.
    """
    channels, strides = [32 * width], [1]
    for level in range(1, doublings + 1):
        repeats = 3 if level <= 3 else 2
        channels += [32 * width // 2**level] * repeats
        strides += [2] + [1] * (repeats - 1)
    channels, strides = [*channels, 3, 3, 3], [*strides, 1, 1, 1]
    layers: list[nn.Module] = []
    for number, (out, stride) in enumerate(zip(channels, strides)):
        layers.append(SameConvTranspose2d(in_channels, out, stride))
        if number < len(channels) - 1:
            layers += norm_relu(out)
        in_channels = out
    return nn.Sequential(*layers, nn.BatchNorm2d(3, eps=EPSILON))


class PositionMapHead(Head):
    """The image-frame coordinates of every point of a face, hidden ones included, from the coarsest feature map.

    Its output is ``[B, 3, U, U]`` in units of the image's side; z is 0 at the rearmost point of the face. Outside the
    face and on a neck without weight the values mean nothing. The face model serves as the mesh that the map unwraps
    and as the canonical face of the pose.

    Args:
        shape: What the backbone gives.
        map_size: Side of the map in texels: that of the coarsest feature map doubled one to five times; None for the
            side of the image.
        width: Channels at full size, 16 in the paper.
        output: "linear" reaches every target; "sigmoid", as published, only 0 to 1.1 image sides.
        face_model: Name or path of the morphable model of the data.
        weight_ratios: Weights in the loss of the 68 landmarks, of eyes, nose and mouth, of the other face and of the
            neck (section 3.2).
        squared: Squared distances in equation 1; it is printed without.

    Raises:
        ConfigurationError: If the backbone gives no maps or none of a fitting side, or a weight is negative.
    """

    requires = frozenset({"position_map"})
    weights: Tensor
    face: Tensor
    face_vertices: Tensor
    learnt: Tensor
    learnt_vertices: Tensor

    def __init__(
        self,
        shape: FeatureShape,
        map_size: int | None = None,
        width: int = 16,
        output: Literal["linear", "sigmoid"] = "linear",
        face_model: str = "embedded",
        weight_ratios: tuple[float, float, float, float] = (16.0, 4.0, 3.0, 0.0),
        squared: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.squared = shape.image_size, squared
        self.map_size = shape.image_size if map_size is None else map_size
        if width < 1:
            raise ConfigurationError(f"Option width of the position map is {width}; it must be at least 1.")
        if min(weight_ratios) < 0 or max(weight_ratios) == 0:
            raise ConfigurationError(
                f"Option weight_ratios is {list(weight_ratios)}: give four weights, none negative, not all 0."
            )
        if not shape.channels:
            raise ConfigurationError("PositionMapHead reads feature maps, which the backbone was not asked for.")
        sizes = [shape.sides[-1] * 2**doublings for doublings in range(1, 6)]
        if self.map_size not in sizes:
            raise ConfigurationError(
                f"Option map_size is {self.map_size}; at image_size {shape.image_size} it can be "
                f"{', '.join(map(str, sizes))}."
            )
        self.decoder = decoder(shape.channels[-1], width, sizes.index(self.map_size) + 1)
        if output == "sigmoid":
            self.decoder.append(nn.Sigmoid())
        self.scale = SIGMOID_RANGE if output == "sigmoid" else 1.0
        self._initialise(output)
        self.face_model = MorphableModel.load(face_model)
        self.uv = UVGrid(self.face_model, self.map_size)
        self.register_buffer("weights", self.uv.weights(weight_ratios), persistent=False)
        face = torch.ones(len(self.uv.vertex_ids), dtype=torch.bool)
        if "neck" in self.face_model.region_masks:
            face = ~self.face_model.region_masks["neck"][self.uv.vertex_ids]
        # What has no weight is not learnt, so no pose is fitted to it.
        learnt = face if weight_ratios[3] == 0 else torch.ones_like(face)
        for name, rows in (("face", face), ("learnt", learnt)):
            self.register_buffer(name, rows.nonzero()[:, 0], persistent=False)
            self.register_buffer(f"{name}_vertices", self.uv.vertex_ids[rows], persistent=False)

    def _initialise(self, output: Literal["linear", "sigmoid"]) -> None:
        for module in self.decoder:
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
        if output == "linear":
            norms = [module for module in self.decoder if isinstance(module, nn.BatchNorm2d)]
            # A face in the middle of the image, as the sigmoid starts with.
            nn.init.constant_(norms[-1].bias, 0.5)
            nn.init.constant_(norms[-1].weight, 0.25)
            # Three channels carry the three coordinates through two more ReLUs, which would cut off half of each: a
            # training begins far faster where they cut off little.
            for norm in norms[-3:-1]:
                nn.init.constant_(norm.bias, 2.0)

    def forward(self, features: Features) -> Tensor:
        """The coarsest map to position maps ``[B, 3, U, U]`` in units of the image's side."""
        split = len(self.decoder) - (2 if self.scale == 1.0 else 3)
        return last_layer(self.decoder[split:], self.decoder[:split](features.maps[-1])) * self.scale

    @without_autocast
    def terms(self, output: Tensor, batch: FaceBatch) -> dict[str, Term]:
        """``position_map``: equation 1 as a weighted mean, in units of the image's side."""
        target = depth_from_minimum(full_precision(batch["position_map"]), self.uv.mask) / self.image_size
        per_face = position_map_loss(output, target, full_precision(self.weights), self.squared)
        return {"position_map": masked_term(per_face[:, None], batch["has"]["position_map"][:, None])}

    @without_autocast
    def read(self, output: Tensor, batch: FaceBatch) -> FacePrediction:
        """Faces from position maps; see :meth:`read_maps`."""
        return self.read_maps(output * self.image_size)

    def read_maps(self, maps: Tensor) -> FacePrediction:
        """Faces from position maps.

        Args:
            maps: ``[B, 3, U, U]``, image frame.

        Returns:
            Landmarks and the vertices of the face, without the neck (figures 7 to 10), as :class:`.UVGrid` reads them;
            the weak perspective camera of the canonical face (the model's mean) that fits them best; and the map.
        """
        points = self.uv.vertices(maps)
        return FacePrediction(
            landmarks=self.uv.landmarks(maps),
            vertices=points[:, self.face],
            vertex_ids=self.face_vertices,
            camera=Camera.from_pose(self.fit_pose(points[:, self.learnt])),
            dense={"position_map": maps},
        )

    def vertices(self, maps: Tensor) -> Tensor:
        """Vertices ``face_vertices`` ``[B, V, 3]`` of position maps ``[B, 3, U, U]``."""
        return self.uv.vertices(maps)[:, self.face]

    def fit_pose(self, points: Tensor) -> Tensor:
        """Pose of the canonical face by the least-squares similarity.

        Args:
            points: Vertices ``learnt_vertices`` ``[B, N, 3]``, image frame.

        Returns:
            Pose ``[B, 6]`` as in ``FaceBatch``.
        """
        upright = points * points.new_tensor((1.0, -1.0, 1.0))
        canonical = self.face_model.mean[self.learnt_vertices].to(points.dtype).expand_as(points)
        scale, rotation, translation = similarity_transform(canonical, upright)
        return torch.cat((scale[:, None], matrix_to_euler(rotation), translation[:, :1], -translation[:, 1:2]), dim=1)

    def triangles(self) -> Tensor:
        """Triangles int64 ``[F, 3]`` among the vertices of a prediction."""
        place = torch.full((self.face_model.num_vertices,), -1, device=self.face_vertices.device)
        place[self.face_vertices] = torch.arange(len(self.face_vertices), device=place.device)
        corners = place[self.face_model.faces]
        return corners[(corners >= 0).all(dim=1)]
