"""Target images of a known geometry: PNCC, offsets, normals, masks, UV position maps and visibility.

Image frame and object frame as in ``batch.py``; images are ``[B, C, H, W]``, UV maps ``[B, C, U, U]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.renderer import Raster, VertexNormals, rasterize_image, to_view, unit

NORMAL_RADIUS = 15.0
"""Millimetres around a landmark over which the surface normal is averaged; triangles of the embedded model are up to 16
mm long at the jaw line."""
HIDDEN_ANGLE = 100.0
"""Degrees between that normal and the viewer from which on a landmark is hidden. The jaw line of a frontal face is its
silhouette: its normals turn away by 69 to 97 degrees on the mean face, so that a limit of 90 would cut it in pieces."""


class FaceMaps(nn.Module):
    """Target maps of a face model.

    The *face region* is what the model's UV map covers (all of the mesh where it has none). The embedded model's leaves
    out the scalp, the lower neck and the inside of the mouth.

    Args:
        model: The face model.
        image_size: Side of the images in pixels.
        position_map_size: Side U of UV maps.
    """

    region: Tensor
    region_faces: Tensor
    texel_corners: Tensor
    texel_weights: Tensor
    ring_corners: Tensor
    landmark_ring: Tensor
    landmark_ring_offsets: Tensor

    def __init__(self, model: MorphableModel, image_size: int, position_map_size: int = 256) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.position_map_size = position_map_size
        self.normals = VertexNormals(model.faces, model.num_vertices)
        faces = model.faces
        if model.uv_face_ids is None:
            region = torch.ones(faces.shape[0], dtype=torch.bool, device=faces.device)
        else:
            region = torch.zeros(faces.shape[0], dtype=torch.bool, device=faces.device)
            region[model.uv_face_ids] = True
        self.register_buffer("region", region, persistent=False)
        # In memory [3, F], so that the transpose is one run of numbers.
        self.register_buffer("region_faces", faces[region].T.contiguous().T, persistent=False)
        self._add_texels(model)
        self._add_landmark_rings(model)

    def _add_texels(self, model: MorphableModel) -> None:
        """Which triangle each texel's centre lies in, and where: the position map is then one weighted sum.

        Texels in the holes (eyes, mouth) and around the face continue the nearest triangle, so that reading the map
        bilinearly next to a rim mixes in nothing foreign.
        """
        side = self.position_map_size
        covered = torch.zeros(side * side, dtype=torch.bool)
        if model.uv is None or model.uv_faces is None or model.uv_face_ids is None:
            corners, weights = torch.zeros(0, 3, dtype=torch.int64), model.mean.new_zeros(0, 3, device="cpu")
        else:
            uv, uv_faces = model.uv.detach().cpu() * side - 0.5, model.uv_faces.cpu()
            raster = rasterize_image(nn.functional.pad(uv, (0, 1))[None], uv_faces, side)
            covered[raster.pixel] = True
            steps = torch.arange(side * side)
            place = torch.stack((steps % side, torch.div(steps, side, rounding_mode="floor")), dim=1).to(uv.dtype)
            triangle = torch.zeros(side * side, dtype=torch.int64)
            triangle[raster.pixel] = raster.face
            triangle[~covered], place[~covered] = _continue_outside(place[~covered], uv, uv_faces)
            weights = _barycentric(place, uv[uv_faces[triangle]]).to(uv.dtype)
            corners = model.faces.cpu()[model.uv_face_ids.cpu()[triangle]]
        device = model.mean.device
        self.register_buffer("texel_corners", corners.to(device), persistent=False)
        self.register_buffer("texel_weights", weights.to(device), persistent=False)

    def _add_landmark_rings(self, model: MorphableModel) -> None:
        """The outer surface around each landmark: its own triangle and those of the face region within a radius."""
        triangles = model.landmark_embeddings["bfm"][0] if "bfm" in model.landmark_embeddings else model.faces[:0, 0]
        outer = self.region.clone()
        outer[triangles] = True
        faces, mean = model.faces[outer].cpu(), model.mean.cpu()
        centres, own = mean[faces].mean(1), torch.nonzero(outer).squeeze(1).cpu()
        points = model.landmarks(model.mean[None])[0].cpu() if triangles.numel() else mean[:0]
        rings, offsets, total = [torch.zeros(0, dtype=torch.int64)], [], 0
        for triangle, point in zip(triangles.cpu(), points, strict=True):
            near = (centres - point).norm(dim=1) < NORMAL_RADIUS
            ring = torch.nonzero(near | (own == triangle)).squeeze(1)
            rings.append(ring)
            offsets.append(total)
            total += ring.numel()
        used, ring = torch.unique(torch.cat(rings), return_inverse=True)
        self.register_buffer("ring_corners", faces[used].T.contiguous().to(outer.device), persistent=False)
        self.register_buffer("landmark_ring", ring.to(outer.device), persistent=False)
        self.register_buffer(
            "landmark_ring_offsets", torch.tensor(offsets, dtype=torch.int64).to(outer.device), persistent=False
        )

    def face_region(self, vertices: Tensor) -> Raster:
        """The pixels that show the outside of the face region, for vertices ``[B, V, 3]`` in the image frame.

        Only the region itself can hide it, and its triangles seen from behind are left out, so that an open mesh and an
        open mouth do not show what lies behind them. Interpolate with :attr:`region_faces`.
        """
        return rasterize_image(vertices, self.region_faces, self.image_size, cull_backfaces=True)

    def pncc(self, raster: Raster, shapes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projected normalised coordinate code and offsets (Pix2face, section 3.1).

        Args:
            raster: From :meth:`face_region`.
            shapes: The vertices in the object frame, mm ``[B, V, 3]``.

        Returns:
            Of what each pixel shows, the place on the mean face and the offset from it, ``[B, 3, H, W]`` each, in
            object-frame mm, 0 outside the mask; their sum is the surface. And the mask ``[B, 1, H, W]``.
        """
        mean = self.model.mean
        # In memory [B, 6, V], which is looked up faster.
        both = torch.cat((mean.T.expand(shapes.shape[0], -1, -1), (shapes - mean).transpose(1, 2)), dim=1)
        image = raster.to_image(raster.interpolate(both.transpose(1, 2), self.region_faces))
        return image[:, :3], image[:, 3:], self.mask(raster)

    @staticmethod
    def mask(raster: Raster) -> Tensor:
        """``[B, 1, H, W]``: 1 where a pixel is covered."""
        return raster.to_image(raster.weights.new_ones(raster.pixel.shape[0], 1))

    def view_normals(self, vertices: Tensor) -> Tensor:
        """Vertex normals ``[B, V, 3]``, view frame (x right, y up, z to the viewer), of vertices in the image frame."""
        return self.normals(to_view(vertices))

    def normal_map(self, raster: Raster, normals: Tensor) -> Tensor:
        """Unit normals ``[B, 3, H, W]`` in the view frame, 0 outside the mask, from :meth:`view_normals`."""
        return raster.to_image(unit(raster.interpolate(normals, self.region_faces).T).T)

    def position_map(self, vertices: Tensor) -> Tensor:
        """UV position map of the whole face, hidden parts included (Feng et al. 2018, section 3.1).

        Args:
            vertices: ``[B, V, 3]`` image frame.

        Returns:
            ``[B, 3, U, U]`` image-frame x, y, z of the surface point of each texel; outside the map the nearest
            surface goes on.

        Raises:
            ConfigurationError: If the model has no UV map.
        """
        self._need_uv()
        batch, count, _ = vertices.shape
        side = self.position_map_size
        rows = vertices.transpose(0, 1).reshape(count, batch * 3)
        values = nn.functional.embedding_bag(
            self.texel_corners, rows, per_sample_weights=self.texel_weights.to(rows.dtype), mode="sum"
        )
        return values.reshape(side, side, batch, 3).permute(2, 3, 0, 1)

    def visible_by_normal(self, vertices: Tensor) -> Tensor:
        """Landmarks around which the average surface normal does not turn away (PARM, section 4.2); bool ``[B, 68]``.

        The paper gives neither the size of the surroundings nor the limit: :data:`NORMAL_RADIUS`, on the mean face, and
        :data:`HIDDEN_ANGLE`. What something nearer hides is for :meth:`visible_by_depth`.

        Args:
            vertices: ``[B, V, 3]`` image frame.

        Raises:
            ConfigurationError: If the model lacks the landmarks "bfm".
        """
        self._need_landmarks()
        batch, count, _ = vertices.shape
        planes = to_view(vertices).permute(2, 0, 1).reshape(3 * batch, count)
        corners = planes.index_select(1, self.ring_corners.reshape(-1)).reshape(3, batch, 3, -1)
        # Normals of triangles, as long as twice their areas.
        crossed = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0], dim=0)
        total = nn.functional.embedding_bag(
            self.landmark_ring, crossed.reshape(3 * batch, -1).T.contiguous(), self.landmark_ring_offsets, mode="sum"
        )
        normals = unit(total.T.reshape(3, batch, -1))
        return normals[2] > math.cos(math.radians(HIDDEN_ANGLE))

    @staticmethod
    def visible_by_depth(landmarks: Tensor, depth: Tensor, tolerance: Tensor) -> Tensor:
        """Landmarks that nothing hides; bool ``[B, L]``.

        Args:
            landmarks: ``[B, L, 3]`` image frame.
            depth: ``[B, 1, H, W]`` z of what each pixel shows, very small where it shows nothing.
            tolerance: ``[B, 1]`` pixels in z.

        Returns:
            False also for landmarks outside the image.
        """
        height, width = depth.shape[-2:]
        x, y = landmarks[..., 0].round().long(), landmarks[..., 1].round().long()
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        shown = depth.flatten(1).gather(1, y.clamp(0, height - 1) * width + x.clamp(0, width - 1))
        return inside & (landmarks[..., 2] > shown - tolerance)

    def _need_landmarks(self) -> None:
        if "bfm" not in self.model.landmark_embeddings:
            raise ConfigurationError(
                f"Face model {self.model.name!r} has no landmarks 'bfm', which this needs: import the model with "
                "landmarks, or use the model 'embedded'."
            )

    def _need_uv(self) -> None:
        if self.model.uv is None:
            raise ConfigurationError(
                f"Face model {self.model.name!r} has no UV map, which position maps need: import the model again (a UV "
                "map is derived) or use the model 'embedded'."
            )


def _barycentric(place: Tensor, corners: Tensor) -> Tensor:
    """Float64 weights ``[N, 3]`` of places ``[N, 2]`` in triangles ``[N, 3, 2]``, at most a triangle outside."""
    a, b, c = corners.double().unbind(1)
    ab, ac, ap = b - a, c - a, place.double() - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = torch.where(area.abs() < 1e-9, torch.inf, area)  # no area: its first corner
    second = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
    third = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
    weights = torch.stack((1.0 - second - third, second, third), dim=1)
    inside = weights.clamp_min(0.0)
    far = weights.amin(1, keepdim=True) < -1.0
    return torch.where(far, inside / inside.sum(1, keepdim=True), weights)


def _continue_outside(place: Tensor, uv: Tensor, uv_faces: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest triangle at the border of a UV map, and the place to read it at.

    Args:
        place: ``[N, 2]`` in texels, outside the map.
        uv: ``[V_uv, 2]`` in texels.
        uv_faces: ``[F_uv, 3]``.

    Returns:
        Triangles ``[N]`` and places ``[N, 2]``, no further than 1.5 texels from the border.
    """
    edges = torch.cat((uv_faces[:, [0, 1]], uv_faces[:, [1, 2]], uv_faces[:, [2, 0]]))
    owner = torch.arange(uv_faces.shape[0]).repeat(3)
    _, inverse, counts = torch.unique(edges.sort(dim=1)[0], dim=0, return_inverse=True, return_counts=True)
    border = counts[inverse] == 1
    edges, owner = edges[border], owner[border]
    start, edge = uv[edges[:, 0]], uv[edges[:, 1]] - uv[edges[:, 0]]
    triangles, points = [], []
    for some in torch.split(place, 4096):
        along = ((some[:, None] - start) * edge).sum(-1) / edge.square().sum(-1).clamp_min(1e-12)
        nearest = start + along.clamp(0.0, 1.0)[..., None] * edge
        distance, which = (some[:, None] - nearest).norm(dim=-1).min(dim=1)
        foot = nearest[torch.arange(some.shape[0]), which]
        triangles.append(owner[which])
        points.append(foot + (some - foot) * (1.5 / distance.clamp_min(1.5))[:, None])
    return torch.cat(triangles), torch.cat(points)
