"""Target images of a known geometry: PNCC, offsets, normals, masks, UV position maps and visibility.

Image frame and object frame as in ``batch.py``; images are ``[B, C, H, W]``, UV maps ``[B, C, U, U]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import PositionMap
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
        # Extended off the face, so that reading a map bilinearly next to a rim mixes in nothing foreign.
        self.texels = None if model.uv is None else PositionMap(model, position_map_size, extend=True)
        self._add_landmark_rings(model)

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
        positions: Tensor = self._need_uv()(vertices)
        return positions

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

    def _need_uv(self) -> PositionMap:
        if self.texels is None:
            raise ConfigurationError(
                f"Face model {self.model.name!r} has no UV map, which position maps need: import the model again (a UV "
                "map is derived) or use the model 'embedded'."
            )
        return self.texels
