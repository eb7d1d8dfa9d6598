"""An exact and fast z-buffer on the CPU behind PyTorch3D's rasteriser interface.

PyTorch3D's CPU rasteriser tests every pixel against every face. :class:`FaceRasterizer` tests only the pixels of each
face's bounding box, all faces at once in plain torch, with PyTorch3D's own order of operations, so that face ids,
depths and barycentric coordinates come out the same bit for bit.

Coordinates here are PyTorch3D's NDC: x to the left, y up, z away from the viewer; the shorter image side spans [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch3d.renderer import MeshRasterizer
from pytorch3d.renderer.mesh.rasterizer import Fragments
from pytorch3d.structures import Meshes
from torch import Tensor, nn

EPSILON = 1e-8
"""PyTorch3D's kEpsilon: faces of a smaller signed area (twice the triangle's) are skipped."""
NO_FACE = torch.iinfo(torch.int64).max


class FaceRasterizer(MeshRasterizer):  # type: ignore[misc]
    """PyTorch3D's ``MeshRasterizer`` with a fast exact path on the CPU.

    The fast path is taken for float32 meshes on the CPU with ``faces_per_pixel=1``, ``blur_radius=0`` and no clipping
    (a perspective camera's near plane counts only if a vertex lies in front of it); everything else, CUDA included, is
    PyTorch3D's own. On the fast path ``Fragments.dists`` is None, so ``Hard*`` shaders only.
    """

    def forward(self, meshes_world: Meshes, **kwargs: Any) -> Fragments:
        """Rasterise meshes in world space.

        Args:
            meshes_world: A batch of N meshes.
            **kwargs: As for ``MeshRasterizer``: ``cameras``, ``raster_settings`` and what the cameras take.

        Returns:
            Fragments: ``pix_to_face`` int64 ``[N, H, W, 1]`` (packed face ids, -1 background), ``zbuf``
            ``[N, H, W, 1]`` and ``bary_coords`` ``[N, H, W, 1, 3]``, differentiable in the vertices.
        """
        settings: Any = kwargs.get("raster_settings", self.raster_settings)
        clip_barycentric = settings.clip_barycentric_coords or settings.z_clip_value is not None
        if (
            meshes_world.device.type != "cpu"
            or meshes_world.verts_packed().dtype != torch.float32
            or settings.faces_per_pixel != 1
            or settings.blur_radius != 0.0
            or settings.cull_to_frustum
            or clip_barycentric
        ):
            return super().forward(meshes_world, **kwargs)
        meshes = self.transform(meshes_world, **kwargs)
        cameras: Any = kwargs.get("cameras", self.cameras)
        perspective = settings.perspective_correct
        if perspective is None:
            perspective = bool(cameras.is_perspective())
        near = cameras.get_znear() if perspective else None
        if near is not None and meshes.verts_packed().numel():
            near = float(near.min()) if isinstance(near, Tensor) else float(near)
            if float(meshes.verts_packed()[:, 2].detach().min()) < near / 2:
                return super().forward(meshes_world, **kwargs)
        size = settings.image_size
        height, width = (size, size) if isinstance(size, int) else size
        ids, depth, barycentric = rasterize(
            meshes.verts_packed(),
            meshes.faces_packed(),
            meshes.num_faces_per_mesh().tolist(),
            (height, width),
            perspective,
            settings.cull_backfaces,
        )
        return Fragments(
            pix_to_face=ids[..., None], zbuf=depth[..., None], bary_coords=barycentric[..., None, :], dists=None
        )


def rasterize(
    vertices: Tensor,
    faces: Tensor,
    faces_per_mesh: list[int],
    image_size: tuple[int, int],
    perspective: bool = False,
    cull_backfaces: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest face of every pixel of N images.

    Args:
        vertices: Float32 ``[V, 3]`` NDC, packed over the meshes, on the CPU.
        faces: Int64 ``[F, 3]`` into ``vertices``, packed.
        faces_per_mesh: N numbers of faces.
        image_size: Height and width in pixels.
        perspective: Correct barycentric coordinates for perspective.
        cull_backfaces: Leave out clockwise faces.

    Returns:
        Face ids int64 ``[N, H, W]``, depths ``[N, H, W]`` and barycentric coordinates ``[N, H, W, 3]``, -1 where there
        is no face; depths and barycentric coordinates are differentiable in the vertices.
    """
    height, width = image_size
    rows, columns = _pixel_centres(height, width), _pixel_centres(width, height)
    ids = torch.full((len(faces_per_mesh), height * width), -1, dtype=torch.int64)
    with torch.no_grad():
        start = 0
        for image, count in enumerate(faces_per_mesh):
            _nearest_faces(
                ids[image], vertices, faces[start : start + count], start, rows, columns, perspective, cull_backfaces
            )
            start += count
    ids = ids.reshape(-1)
    covered = torch.nonzero(ids >= 0).squeeze(1)
    place = covered % (height * width)
    corners = nn.functional.embedding(faces[ids[covered]], vertices)
    column, row = columns[place % width], rows[torch.div(place, width, rounding_mode="floor")]
    weights, depth = _barycentric(corners, column, row, perspective)
    zbuf = torch.full((ids.shape[0],), -1.0).index_put((covered,), depth)
    barycentric = torch.full((ids.shape[0], 3), -1.0).index_put((covered,), weights)
    shape = (len(faces_per_mesh), height, width)
    return ids.reshape(shape), zbuf.reshape(shape), barycentric.reshape(*shape, 3)


def _pixel_centres(size: int, other: int) -> Tensor:
    """NDC of the pixel centres along a side, in image order (so descending), with PyTorch3D's rounding."""
    extent = 2.0 * size / other if size > other else 2.0
    extent = float(torch.tensor(extent, dtype=torch.float32))
    index = torch.arange(size - 1, -1, -1, dtype=torch.float32)
    return -(extent / 2.0) + (extent * index + extent / 2.0) / size


def _edge(px: Tensor, py: Tensor, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor) -> Tensor:
    return (px - ax) * (by - ay) - (py - ay) * (bx - ax)


def _barycentric(corners: Tensor, px: Tensor, py: Tensor, perspective: bool) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates ``[P, 3]`` and depth ``[P]`` of points in triangles ``[P, 3, 3]``."""
    (x0, x1, x2), (y0, y1, y2), (z0, z1, z2) = (corners[..., axis].unbind(-1) for axis in range(3))
    # PyTorch3D adds a double to a float and rounds the sum.
    area = (_edge(x2, y2, x0, y0, x1, y1).double() + EPSILON).float()
    w0 = _edge(px, py, x1, y1, x2, y2) / area
    w1 = _edge(px, py, x2, y2, x0, y0) / area
    w2 = _edge(px, py, x0, y0, x1, y1) / area
    if perspective:
        t0, t1, t2 = w0 * z1 * z2, w1 * z0 * z2, w2 * z0 * z1
        total = (t0 + t1 + t2).clamp_min(EPSILON)
        w0, w1, w2 = t0 / total, t1 / total, t2 / total
    return torch.stack((w0, w1, w2), dim=-1), w0 * z0 + w1 * z1 + w2 * z2


def _nearest_faces(
    ids: Tensor,
    vertices: Tensor,
    faces: Tensor,
    first: int,
    rows: Tensor,
    columns: Tensor,
    perspective: bool,
    cull_backfaces: bool,
) -> None:
    """Write the packed ids of the nearest faces of one mesh into ``ids`` ``[H * W]``."""
    width, height = columns.shape[0], rows.shape[0]
    corner_ids = faces.T.contiguous()
    x, y, z = vertices.unbind(-1)
    # Centres descend, so the pixels of a bounding box are those from the first centre <= max to the last >= min.
    left = _reduce_corners(torch.bucketize(-x, -columns), corner_ids, torch.minimum)
    right = _reduce_corners(torch.bucketize(-x, -columns, right=True), corner_ids, torch.maximum)
    top = _reduce_corners(torch.bucketize(-y, -rows), corner_ids, torch.minimum)
    bottom = _reduce_corners(torch.bucketize(-y, -rows, right=True), corner_ids, torch.maximum)
    wide, high = right - left, bottom - top
    (x0, x1, x2), (y0, y1, y2) = (_at_corners(v, corner_ids) for v in (x, y))
    area = _edge(x2, y2, x0, y0, x1, y1)
    # PyTorch3D leaves out a face with a corner behind the camera as a whole.
    usable = (area > EPSILON) if cull_backfaces else (area.abs() > EPSILON)
    usable &= _reduce_corners(z, corner_ids, torch.minimum) >= EPSILON
    candidates = torch.nonzero(usable & (wide > 0) & (high > 0)).squeeze(1)
    if candidates.numel() == 0:
        return
    sign = torch.sign(area)
    # Per face: where its box begins and how wide it is; then origin and direction of each edge.
    box = torch.stack((left, top, wide)).index_select(1, candidates)
    edges = torch.stack((x1, y1, x2 - x1, y2 - y1, x2, y2, x0 - x2, y0 - y2, x0, y0, x1 - x0, y1 - y0, sign))
    counts = box[2] * high[candidates]
    owner = torch.repeat_interleave(counts)
    left, top, wide, start = torch.cat((box, (counts.cumsum(0) - counts)[None])).index_select(1, owner)
    within = torch.arange(owner.shape[0]) - start
    down = torch.div(within, wide, rounding_mode="floor")
    column, row = left + within - down * wide, top + down
    px, py = columns.index_select(0, column), rows.index_select(0, row)
    edges = edges.index_select(1, candidates).index_select(1, owner)
    inside = torch.ones_like(owner, dtype=torch.bool)
    for k in range(3):
        ax, ay, dx, dy = edges[4 * k : 4 * k + 4]
        inside &= ((px - ax) * dy - (py - ay) * dx) * edges[12] > 0.0
    hit = torch.nonzero(inside).squeeze(1)
    face = candidates.index_select(0, owner.index_select(0, hit))
    pixel = (row * width + column).index_select(0, hit)
    corners = vertices.index_select(0, faces.index_select(0, face).reshape(-1)).reshape(-1, 3, 3)
    weights, depth = _barycentric(corners, px.index_select(0, hit), py.index_select(0, hit), perspective)
    valid = depth >= 0.0
    if perspective:
        valid &= (weights > 0.0).all(-1)
    # For non-negative floats the order of the bits is the order of the values; ties go to the lower face id.
    key = ((depth + 0.0).view(torch.int32).long() << 32) | (face + first)
    key = torch.where(valid, key, NO_FACE)
    nearest = torch.full((height * width,), NO_FACE, dtype=torch.int64)
    nearest.scatter_reduce_(0, pixel, key, "amin")
    ids.copy_(torch.where(nearest == NO_FACE, -1, nearest & 0xFFFFFFFF))


def _reduce_corners(values: Tensor, corner_ids: Tensor, reduce: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Smallest or largest of the values ``[V]`` at the corners ``[3, F]`` of each face."""
    a, b, c = _at_corners(values, corner_ids)
    return reduce(reduce(a, b), c)


def _at_corners(values: Tensor, corner_ids: Tensor) -> tuple[Tensor, ...]:
    return values.index_select(0, corner_ids.reshape(-1)).reshape(3, -1).unbind(0)
