"""From vertices in the image frame to pixels: rasterising, interpolation and Phong shading, all differentiable.

Image frame: pixels, x right, y down, the centre of the top-left pixel is (0, 0), z in pixels and larger towards the
viewer. View frame: the image frame with y up (right-handed); normals and light directions are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.scanline import visible_faces

SHININESS = 10.0
"""Exponent of the highlight (Richardson 2016, section 6.1)."""
_OFF_GRID = (1.7e-4, 2.3e-4)
"""Pixels by which pictures are shifted, so that an edge of a symmetric mesh never runs through pixel centres, which the
rasteriser leaves uncovered."""


@dataclass(frozen=True)
class Raster:
    """The covered pixels of a batch of images, packed into P rows: by image and, on the CPU, there by triangle.

    Attributes:
        image: Int64 ``[P]``, the image in the batch.
        pixel: Int64 ``[P]``, row times width plus column.
        face: Int64 ``[P]``, the triangle seen there.
        weights: ``[P, 3]`` its barycentric coordinates.
        shape: Batch size, height and width.
        faces: Int64 ``[F, 3]``, all triangles, as they were given.
        corners: ``[P, 3]`` the corners of ``face`` among the vertices of all B images.
    """

    image: Tensor
    pixel: Tensor
    face: Tensor
    weights: Tensor
    shape: tuple[int, int, int]
    faces: Tensor
    corners: Tensor

    def take(self, rows: Tensor) -> Raster:
        """Some of the pixels, or all in another order; ``rows`` int64 ``[Q]``."""
        image, pixel, face = (value.index_select(0, rows) for value in (self.image, self.pixel, self.face))
        weights, corners = self.weights.index_select(0, rows), self.corners.index_select(0, rows)
        return Raster(image, pixel, face, weights, self.shape, self.faces, corners)

    def interpolate(self, attributes: Tensor, faces: Tensor) -> Tensor:
        """Values at the covered pixels of what is given at the corners.

        Args:
            attributes: ``[B, N, C]``, or ``[N, C]`` where it is the same in all images.
            faces: Int64 ``[F, 3]`` into N, one row per rasterised triangle.

        Returns:
            ``[P, C]``, a view of memory that has the channels first.
        """
        if faces is self.faces and attributes.ndim == 3:
            corners = self.corners
        else:
            corners = faces.index_select(0, self.face)
            if attributes.ndim == 3:
                corners = corners + (self.image * attributes.shape[1])[:, None]
        return self.corner_sum(attributes.reshape(-1, attributes.shape[-1]), corners)

    def corner_sum(self, attributes: Tensor, corners: Tensor) -> Tensor:
        """Weighted sums ``[P, C]`` of attributes ``[N, C]`` at corners ``[P, 3]`` that have been looked up already."""
        weights = self.weights.to(attributes.dtype)
        values = nn.functional.embedding_bag(corners, attributes, per_sample_weights=weights, mode="sum")
        return _transposed(values).T

    def to_image(self, values: Tensor, background: float | Tensor = 0.0) -> Tensor:
        """Spread packed values over images.

        Args:
            values: ``[P, C]``.
            background: A number, or images ``[B, C, H, W]``.

        Returns:
            ``[B, C, H, W]``.
        """
        batch, height, width = self.shape
        channels, size = values.shape[1], batch * height * width
        if isinstance(background, Tensor):
            planes = background.transpose(0, 1).reshape(channels, size)
        else:
            planes = values.new_full((channels, size), background)
        place = self.pixel if batch == 1 else self.image * (height * width) + self.pixel
        planes = planes.scatter(1, place.expand(channels, -1), values.T)
        return planes.reshape(channels, batch, height, width).transpose(0, 1)


def _transposed(values: Tensor) -> Tensor:
    """``[C, P]`` of ``[P, C]``, moved in memory; OpenCV does it several times faster."""
    if values.dtype == torch.float32 and values.device.type == "cpu" and not values.requires_grad and values.numel():
        return torch.from_numpy(cv2.transpose(values.numpy())).reshape(values.shape[1], -1)
    return values.T.contiguous()


def sample_images(images: Tensor, place: Tensor, image: Tensor) -> Tensor:
    """Bilinear values of images at points, clamped to the outermost texels.

    Args:
        images: ``[B, C, H, W]``.
        place: ``[P, 2]``, u right, v down in [0, 1]; the centre of texel (i, j) is ``((j + 0.5) / W, (i + 0.5) / H)``.
        image: Int64 ``[P]``, which image.

    Returns:
        ``[P, C]``.
    """
    _, channels, height, width = images.shape
    corners, weights = bilinear_taps(place[:, 0], place[:, 1], height, width)
    corners = corners + (image * (height * width))[:, None]
    texels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return nn.functional.embedding_bag(corners, texels, per_sample_weights=weights, mode="sum")


def bilinear_taps(u: Tensor, v: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four texels (row times width plus column) around points ``[P]`` and their weights, ``[P, 4]`` each."""
    x = (u * width - 0.5).clamp(0.0, width - 1.0)
    y = (v * height - 0.5).clamp(0.0, height - 1.0)
    x0 = x.detach().floor().clamp_max(max(width - 2, 0))
    y0 = y.detach().floor().clamp_max(max(height - 2, 0))
    fx, fy = x - x0, y - y0
    first = (y0 * width + x0).long()
    right, down = min(width - 1, 1), width * min(height - 1, 1)
    corners = torch.stack((first, first + right, first + down, first + down + right), dim=1)
    gx, gy = 1 - fx, 1 - fy
    return corners, torch.stack((gx * gy, fx * gy, gx * fy, fx * fy), dim=1)


def rasterize_image(
    vertices: Tensor, faces: Tensor, image_size: int | tuple[int, int], cull_backfaces: bool = False
) -> Raster:
    """Which triangle each pixel shows.

    Args:
        vertices: ``[B, V, 3]`` image frame.
        faces: Int64 ``[F, 3]``, counter-clockwise seen from outside.
        image_size: Side, or height and width, in pixels.
        cull_backfaces: Leave out triangles seen from behind; only for closed surfaces.

    Returns:
        The covered pixels, differentiable in the vertices through the barycentric coordinates.
    """
    return rasterize_together([(vertices, faces)], image_size, cull_backfaces)[0]


def rasterize_together(
    meshes: Sequence[tuple[Tensor, Tensor]], image_size: int | tuple[int, int], cull_backfaces: bool = False
) -> list[Raster]:
    """:func:`rasterize_image` of several meshes, each in pictures of its own; on the CPU faster than one by one.

    Args:
        meshes: Vertices ``[B, V, 3]`` and faces ``[F, 3]`` of each.
        image_size: Side, or height and width, in pixels.
        cull_backfaces: Leave out triangles seen from behind; only for closed surfaces.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if meshes[0][0].device.type != "cpu":
        return [_rasterize_on_device(vertices, faces, size, cull_backfaces) for vertices, faces in meshes]
    points, ids, images = [], [], []
    vertex_count = image_count = 0
    for vertices, faces in meshes:
        batch, count, _ = vertices.shape
        steps = torch.arange(batch, dtype=torch.int32)[:, None]
        # Half precision is too coarse for pixels.
        points.append(vertices.reshape(-1, 3).T.to(torch.promote_types(vertices.dtype, torch.float32)))
        ids.append((faces.T.int()[:, None] + (vertex_count + count * steps)).reshape(3, -1))
        images.append((image_count + steps).expand(-1, faces.shape[0]).reshape(-1))
        vertex_count, image_count = vertex_count + batch * count, image_count + batch
    planes, corner_ids = torch.cat(points, dim=1), torch.cat(ids, dim=1)
    planes = planes - planes.new_tensor([[_OFF_GRID[0]], [_OFF_GRID[1]], [0.0]])
    with torch.no_grad():
        shown, place, row, column = visible_faces(
            planes.detach().float(), corner_ids, torch.cat(images), (image_count, *size), cull_backfaces
        )
    corners = corner_ids.index_select(1, shown)
    ends = torch.tensor([vertices.shape[0] * faces.shape[0] for vertices, faces in meshes]).cumsum(0)
    part_ends: list[int] = torch.searchsorted(shown, ends).tolist()
    found = []
    start = vertex_count = face_count = image_count = 0
    for (vertices, faces), end in zip(meshes, part_ends):
        batch, part = vertices.shape[0], slice(start, end)
        pixel, face = place[part] - image_count * (size[0] * size[1]), shown[part] - face_count
        # Ascending, and so by image.
        last = torch.searchsorted(face, torch.arange(batch) * faces.shape[0])
        counts = torch.diff(last, append=last.new_tensor([face.shape[0]]))
        image = torch.from_numpy(np.repeat(np.arange(batch), counts.numpy()))
        if batch > 1:
            pixel, face = pixel - image * (size[0] * size[1]), face - image * faces.shape[0]
        found.append((image, pixel, face, corners[:, part] - vertex_count))
        start, image_count = end, image_count + batch
        vertex_count, face_count = vertex_count + batch * vertices.shape[1], face_count + batch * faces.shape[0]
    weights = _barycentric(planes[:2].index_select(1, corners.reshape(-1)).reshape(2, 3, -1), column, row)
    parts = zip(meshes, found, torch.tensor_split(weights, part_ends[:-1], dim=1))
    return [
        Raster(image, pixel, face, part.T.contiguous(), (vertices.shape[0], *size), faces, local.T.contiguous())
        for (vertices, faces), (image, pixel, face, local), part in parts
    ]


def _barycentric(corners: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Weights ``[3, P]`` of pixels in triangles of corners ``[2, 3, P]``, differentiable in these."""
    x0, x1, x2 = corners[0] - column
    y0, y1, y2 = corners[1] - row
    areas = torch.stack((x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0))
    return areas / (areas[0] + areas[1] + areas[2])


def _rasterize_on_device(vertices: Tensor, faces: Tensor, size: tuple[int, int], cull_backfaces: bool) -> Raster:
    """With PyTorch3D's rasteriser."""
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise ConfigurationError(
            f"Rendering on {vertices.device.type} needs PyTorch3D: pip install 'lightning-faces[render]'."
        ) from error
    height, width = size
    batch = vertices.shape[0]
    # NDC: x left, y up, the shorter side spans [-1, 1]; z away from the viewer and positive.
    unit = 2.0 / min(height, width)
    x = ((width - 1) / 2 + _OFF_GRID[0] - vertices[..., 0]) * unit
    y = ((height - 1) / 2 + _OFF_GRID[1] - vertices[..., 1]) * unit
    depth = vertices[..., 2]
    z = (depth.detach().amax(dim=1, keepdim=True) - depth) * unit + 1.0
    meshes = Meshes(torch.stack((x, y, z), dim=-1).float(), faces.expand(batch, -1, -1))
    ids, _, barycentric, _ = rasterize_meshes(
        meshes, (height, width), blur_radius=0.0, faces_per_pixel=1, cull_backfaces=cull_backfaces
    )
    place = torch.nonzero(ids.reshape(-1) >= 0).squeeze(1)
    face, weights = ids.reshape(-1).index_select(0, place), barycentric.reshape(-1, 3).index_select(0, place)
    weights = weights.to(torch.promote_types(vertices.dtype, torch.float32))
    image = torch.div(place, height * width, rounding_mode="floor")
    face = face - image * faces.shape[0]
    corners = faces.index_select(0, face) + (image * vertices.shape[1])[:, None]
    return Raster(image, place - image * (height * width), face, weights, (batch, height, width), faces, corners)


class VertexNormals(nn.Module):
    """Unit vertex normals, weighted by triangle area, from a precomputed table of the triangles around each vertex.

    Args:
        faces: Int64 ``[F, 3]``, counter-clockwise seen from outside.
        num_vertices: Number of vertices V.
    """

    around: Tensor
    offsets: Tensor
    faces: Tensor

    def __init__(self, faces: Tensor, num_vertices: int) -> None:
        super().__init__()
        owner = faces.reshape(-1)
        order = torch.argsort(owner, stable=True)
        self.register_buffer("around", torch.div(order, 3, rounding_mode="floor"), persistent=False)
        counts = torch.bincount(owner, minlength=num_vertices)
        self.register_buffer("offsets", counts.cumsum(0) - counts, persistent=False)
        # In memory [3, F], so that the transpose is one run of numbers.
        self.register_buffer("faces", faces.T.contiguous().T, persistent=False)

    def forward(self, vertices: Tensor) -> Tensor:
        """Normals of vertices ``[B, V, 3]`` in a right-handed frame (object or view), ``[B, V, 3]``; 0 where unused."""
        batch, count, _ = vertices.shape
        planes = vertices.permute(2, 0, 1).reshape(3 * batch, count)
        corners = planes.index_select(1, self.faces.T.reshape(-1)).reshape(3, batch, 3, -1)
        ux, uy, uz = corners[:, :, 1] - corners[:, :, 0]
        vx, vy, vz = corners[:, :, 2] - corners[:, :, 0]
        crossed = torch.stack((uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)).reshape(3 * batch, -1)
        summed = nn.functional.embedding_bag(
            self.around, torch.stack(crossed.unbind(0), dim=1), self.offsets, mode="sum"
        )
        return unit(torch.stack(summed.unbind(1)).reshape(3, batch, count)).permute(1, 2, 0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the first dimension scaled to length 1; much faster than ``normalize`` there."""
    x, y, z = vectors
    return vectors / (x * x + y * y + z * z).clamp_min(1e-24).sqrt()


def positions(mask: Tensor) -> Tensor:
    """Int64 places where a bool ``[N]`` is true; on the CPU several times faster than ``nonzero``."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


def to_view(vertices: Tensor) -> Tensor:
    """Image frame to view frame or back: y changes sign."""
    return torch.stack((vertices[..., 0], -vertices[..., 1], vertices[..., 2]), dim=-1)


@dataclass(frozen=True)
class PhongLight:
    """One directional light and the reflection constants of Richardson 2016, section 6.1.

    Attributes:
        direction: ``[B, 3]`` towards the light, view frame; need not be of unit length.
        ambient: ``[B]``, 0.5 on average in the paper.
        diffuse: ``[B]``, 0.7.
        specular: ``[B]``, 0.05.
    """

    direction: Tensor
    ambient: Tensor
    diffuse: Tensor
    specular: Tensor

    @classmethod
    def frontal(cls, batch: int, device: torch.device | str = "cpu") -> PhongLight:
        """A white light at the viewer with diffuse reflection only, which shows the shape (section 5.1)."""
        zero = torch.zeros(batch, device=device)
        return cls(torch.tensor([[0.0, 0.0, 1.0]], device=device).expand(batch, 3), zero, zero + 1.0, zero)

    @classmethod
    def random(cls, batch: int, generator: torch.Generator) -> PhongLight:
        """Section 6.1: constants normal around 0.5, 0.7, 0.05, direction uniform over the frontal half sphere."""
        constants = torch.tensor([0.5, 0.7, 0.05]) * (1.0 + 0.2 * torch.randn(batch, 3, generator=generator))
        direction = nn.functional.normalize(torch.randn(batch, 3, generator=generator), dim=-1)
        direction = torch.cat((direction[:, :2], direction[:, 2:].abs()), dim=-1)
        ambient, diffuse, specular = constants.clamp_min(0.0).unbind(-1)
        return cls(direction, ambient, diffuse, specular)


def phong(normals: Tensor, albedo: Tensor, light: PhongLight, image: Tensor) -> Tensor:
    """Phong reflectance under weak perspective, where the viewer is at (0, 0, 1) everywhere.

    Args:
        normals: Unit normals ``[P, 3]``, view frame.
        albedo: ``[P, C]``.
        light: Lights of the B images.
        image: Int64 ``[P]``, which light.

    Returns:
        ``[P, C]``, not clamped.
    """
    direction = nn.functional.normalize(light.direction, dim=-1)[image]
    cosine = (normals * direction).sum(-1, keepdim=True)
    lit = cosine.clamp_min(0.0)
    mirrored_z = 2.0 * cosine * normals[:, 2:] - direction[:, 2:]
    highlight = torch.where(cosine > 0.0, mirrored_z.clamp_min(0.0), 0.0) ** SHININESS
    ambient, diffuse, specular = (value[image][:, None] for value in (light.ambient, light.diffuse, light.specular))
    return albedo * (ambient + diffuse * lit) + specular * highlight


class FaceRenderer(nn.Module):
    """Phong images of a face model's vertices, differentiable in vertices, light and albedo.

    Args:
        model: The face model; its UV map is needed for albedo images only.
        image_size: Side of the images in pixels.

    Example:
        >>> from lightning_faces.geometry import weak_perspective
        >>> model = MorphableModel.load("embedded")
        >>> vertices = weak_perspective(model.mean[None], torch.tensor([[0.4, 0.0, 0.5, 0.0, 48.0, 48.0]]))
        >>> grey = torch.full((1, model.num_vertices, 3), 0.6)
        >>> image, mask = FaceRenderer(model, 96)(vertices, grey, PhongLight.frontal(1))
        >>> image.shape, mask.shape
        (torch.Size([1, 3, 96, 96]), torch.Size([1, 1, 96, 96]))
    """

    uv_of_face: Tensor | None

    def __init__(self, model: MorphableModel, image_size: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.normals = VertexNormals(model.faces, model.num_vertices)
        table = None
        if model.uv_face_ids is not None:
            table = torch.full((model.faces.shape[0],), -1, dtype=torch.int64)
            table[model.uv_face_ids.cpu()] = torch.arange(model.uv_face_ids.shape[0])
        self.register_buffer("uv_of_face", table, persistent=False)

    def rasterize(self, vertices: Tensor) -> Raster:
        """Covered pixels of vertices ``[B, V, 3]``, image frame."""
        return rasterize_image(vertices, self.model.faces, self.image_size)

    def pixel_normals(self, raster: Raster, vertices: Tensor) -> Tensor:
        """Unit normals ``[P, 3]`` at covered pixels, view frame, for vertices ``[B, V, 3]`` in the image frame."""
        normals = raster.interpolate(self.normals(to_view(vertices)), self.model.faces)
        return nn.functional.normalize(normals, dim=-1)

    def pixel_albedo(self, raster: Raster, albedo: Tensor) -> Tensor:
        """Colours at covered pixels from UV images ``[B, 3, T, T]``; grey 0.5 where the UV map does not reach.

        Raises:
            ConfigurationError: If the model has no UV map.
        """
        uv, uv_faces, table = self.model.uv, self.model.uv_faces, self.uv_of_face
        if uv is None or uv_faces is None or table is None:
            raise ConfigurationError(
                f"Face model {self.model.name!r} has no UV map: give one colour per vertex instead."
            )
        uv_face = table.index_select(0, raster.face)
        place = raster.corner_sum(uv, uv_faces[uv_face.clamp_min(0)])
        colours = sample_images(albedo, place, raster.image)
        return torch.where(uv_face[:, None] >= 0, colours, 0.5)

    def forward(self, vertices: Tensor, colour: Tensor, light: PhongLight) -> tuple[Tensor, Tensor]:
        """Render.

        Args:
            vertices: ``[B, V, 3]`` image frame.
            colour: Albedo as UV images ``[B, 3, T, T]``, or as one colour per vertex ``[B, V, 3]``.
            light: One light per image.

        Returns:
            Images ``[B, 3, H, W]``, black where there is no face and not clamped, and masks ``[B, 1, H, W]``.
        """
        raster = self.rasterize(vertices)
        normals = self.pixel_normals(raster, vertices)
        albedo = self.pixel_albedo(raster, colour) if colour.ndim == 4 else raster.interpolate(colour, self.model.faces)
        shaded = phong(normals, albedo, light, raster.image)
        mask = raster.to_image(torch.ones_like(shaded[:, :1]))
        return raster.to_image(shaded), mask
