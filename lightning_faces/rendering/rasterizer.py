"""An exact and fast z-buffer on the CPU behind PyTorch3D's rasteriser interface.

PyTorch3D's CPU rasteriser tests every pixel against every face. :class:`FaceRasterizer` tests only the pixels of each
face's bounding box, all faces at once in plain torch, with PyTorch3D's own order of operations, so that face ids,
depths and barycentric coordinates come out the same bit for bit.

Coordinates here are PyTorch3D's NDC: x to the left, y up, z away from the viewer; the shorter image side spans [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.rendering.scanline import NOTHING, expand

try:
    from pytorch3d.renderer import MeshRasterizer
    from pytorch3d.renderer.mesh.rasterizer import Fragments
    from pytorch3d.structures import Meshes
except ImportError as error:
    raise ConfigurationError("FaceRasterizer needs PyTorch3D: pip install 'lightning-faces[render]'.") from error

EPSILON = 1e-8
"""PyTorch3D's kEpsilon: faces of a smaller signed area (twice the triangle's) are skipped."""


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
    place, face, weights, depth = covered_pixels(
        vertices, faces, faces_per_mesh, image_size, perspective, cull_backfaces
    )
    shape = (len(faces_per_mesh), *image_size)
    size = shape[0] * shape[1] * shape[2]
    ids = torch.full((size,), -1, dtype=torch.int64).index_copy_(0, place, face)
    zbuf = torch.full((size,), -1.0).index_copy(0, place, depth)
    barycentric = torch.full((size, 3), -1.0).index_copy(0, place, weights)
    return ids.reshape(shape), zbuf.reshape(shape), barycentric.reshape(*shape, 3)


def covered_pixels(
    vertices: Tensor,
    faces: Tensor,
    faces_per_mesh: list[int],
    image_size: tuple[int, int],
    perspective: bool = False,
    cull_backfaces: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`rasterize` finds, without the background.

    Returns:
        Place int64 ``[P]`` in the flattened images, face id int64 ``[P]``, barycentric coordinates ``[P, 3]`` and depth
        ``[P]``, differentiable in the vertices.
    """
    height, width = image_size
    rows, columns = _pixel_centres(height, width), _pixel_centres(width, height)
    found, start = [], 0
    with torch.no_grad():
        for image, count in enumerate(faces_per_mesh):
            part = faces[start : start + count]
            place, face, weights, depth = _nearest_faces(vertices, part, rows, columns, perspective, cull_backfaces)
            found.append((place + image * (height * width), face + start, weights, depth))
            start += count
    place, face, weights, depth = (torch.cat(values) for values in zip(*found))
    if torch.is_grad_enabled() and vertices.requires_grad:
        column, row = columns[place % width], rows[torch.div(place, width, rounding_mode="floor") % height]
        corners = nn.functional.embedding(faces[face], vertices)
        weights, depth = _barycentric(corners, column, row, perspective)
    return place, face, weights, depth


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
    edges = _edge(px, py, x1, y1, x2, y2), _edge(px, py, x2, y2, x0, y0), _edge(px, py, x0, y0, x1, y1)
    weights, depth = _weights(edges, _edge(x2, y2, x0, y0, x1, y1), (z0, z1, z2), perspective)
    return torch.stack(tuple(weights), dim=-1), depth


def _weights(
    edges: Sequence[Tensor], area: Tensor, depths: Sequence[Tensor], perspective: bool
) -> tuple[Sequence[Tensor], Tensor]:
    """Barycentric coordinates and depth from edge functions, in PyTorch3D's order of operations; all ``[P]``."""
    # PyTorch3D adds a double to a float and rounds the sum.
    area = (area.double() + EPSILON).float()
    w0, w1, w2 = (edge / area for edge in edges)
    z0, z1, z2 = depths
    if perspective:
        t0, t1, t2 = w0 * z1 * z2, w1 * z0 * z2, w2 * z0 * z1
        total = (t0 + t1 + t2).clamp_min(EPSILON)
        w0, w1, w2 = t0 / total, t1 / total, t2 / total
    return (w0, w1, w2), w0 * z0 + w1 * z1 + w2 * z2


def _nearest_faces(
    vertices: Tensor, faces: Tensor, rows: Tensor, columns: Tensor, perspective: bool, cull_backfaces: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The covered pixels of one mesh: place in the image ``[P]``, face ``[P]``, weights ``[P, 3]``, depth ``[P]``."""
    width, height = columns.shape[0], rows.shape[0]
    corner_ids = faces.T.contiguous()
    x, y, z = vertices.unbind(-1)
    (x0, x1, x2), (y0, y1, y2), (z0, z1, z2) = (_at_corners(v, corner_ids) for v in (x, y, z))
    left, wide = _covered_range(x, columns, corner_ids)
    top, high = _covered_range(y, rows, corner_ids)
    area = _edge(x2, y2, x0, y0, x1, y1)
    # PyTorch3D leaves out a face with a corner behind the camera as a whole.
    usable = (area > EPSILON) if cull_backfaces else (area.abs() > EPSILON)
    usable &= torch.minimum(torch.minimum(z0, z1), z2) >= EPSILON
    candidates = torch.nonzero(usable & (wide > 0) & (high > 0)).squeeze(1)
    # Per face: origin and direction of each edge, and its orientation.
    table = torch.stack(
        (x1, y1, x2 - x1, y2 - y1, x2, y2, x0 - x2, y0 - y2, x0, y0, x1 - x0, y1 - y0, torch.sign(area))
    ).index_select(1, candidates)
    left, top, wide, high = torch.stack((left, top, wide, high)).index_select(1, candidates).int()
    line_owner, row = expand(high)
    row = row + top.index_select(0, line_owner)
    begin, count = _spans(table, left, wide, line_owner, rows.index_select(0, row), columns)
    line, column = expand(count)
    column = column + begin.index_select(0, line)
    owner, row = line_owner.index_select(0, line), row.index_select(0, line)
    px, py = columns.index_select(0, column), rows.index_select(0, row)
    table = table.index_select(1, owner)
    edges, inside = [], torch.ones_like(owner, dtype=torch.bool)
    for k in range(3):
        ax, ay, dx, dy = table[4 * k : 4 * k + 4]
        edges.append((px - ax) * dy - (py - ay) * dx)
        inside &= edges[-1] * table[12] > 0.0
    hit = torch.nonzero(inside).squeeze(1)
    face = candidates.index_select(0, owner.index_select(0, hit))
    at_hit = [edge.index_select(0, hit) for edge in edges]
    area, z0, z1, z2 = torch.stack((area, z0, z1, z2)).index_select(1, face)
    weights, depth = _weights(at_hit, area, (z0, z1, z2), perspective)
    valid = depth >= 0.0
    if perspective:
        valid &= (weights[0] > 0.0) & (weights[1] > 0.0) & (weights[2] > 0.0)
    # For non-negative floats the order of the bits is the order of the values; ties go to the earlier hit, which has
    # the lower face id.
    key = ((depth + 0.0).view(torch.int32).long() << 32) | torch.arange(hit.shape[0])
    key = torch.where(valid, key, NOTHING)
    nearest = torch.full((height * width,), NOTHING, dtype=torch.int64)
    pixel = (row * width + column).index_select(0, hit).long()
    nearest.scatter_reduce_(0, pixel, key, "amin")
    place = torch.nonzero(nearest != NOTHING).squeeze(1)
    winner = nearest.index_select(0, place) & 0xFFFFFFFF
    chosen = torch.stack((*weights, depth)).index_select(1, winner)
    return place, face.index_select(0, winner), chosen[:3].T, chosen[3]


def _spans(
    table: Tensor, left: Tensor, wide: Tensor, owner: Tensor, py: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """First column and number of columns that a face can cover in a row: its box cut by its edges, with some to spare.

    Args:
        table: ``[13, F]`` edges and orientation.
        left: Int32 ``[F]`` first column of the box.
        wide: Int32 ``[F]`` its width.
        owner: Int32 ``[R]``, the face.
        py: ``[R]`` y of the row.
        columns: Centres of the pixels.
    """
    if columns.shape[0] == 1:
        return left.index_select(0, owner), wide.index_select(0, owner)
    step = float(columns[0] - columns[1])
    # A crossing is off by at most 2 * 100 (the slope) * a few float32 roundings: 5e-5, or 2.5e-5 of the width.
    spare = 0.05 + 1e-4 * columns.shape[0]
    low = left.index_select(0, owner).float()
    high = low + wide.index_select(0, owner)
    table = table.index_select(1, owner)
    for k in range(3):
        ax, ay, dx, dy = table[4 * k : 4 * k + 4]
        upright = dy * table[12]
        crossing = (float(columns[0]) - ax - (py - ay) * (dx / dy)) / step
        # An edge that is almost level bounds nothing reliably.
        steep = dy.abs() > 1e-2 * dx.abs()
        high = torch.where(steep & (upright > 0.0), torch.minimum(high, (crossing + spare).ceil()), high)
        low = torch.where(steep & (upright < 0.0), torch.maximum(low, (crossing - spare).floor() + 1.0), low)
    begin = low.int()
    return begin, (high.int() - begin).clamp_min(0)


def _covered_range(values: Tensor, centres: Tensor, corner_ids: Tensor) -> tuple[Tensor, Tensor]:
    """First pixel and number of pixels along a side whose centres lie within each face's extent, ends included.

    Args:
        values: Coordinate of each vertex ``[V]``.
        centres: Of the pixels, descending.
        corner_ids: ``[3, F]``.
    """
    first = torch.bucketize(-values, -centres)
    a, b, c = _at_corners(first, corner_ids)
    begin = torch.minimum(torch.minimum(a, b), c)
    # A centre that equals the coordinate is within.
    last = first + (centres.index_select(0, first.clamp_max(centres.shape[0] - 1)) == values)
    a, b, c = _at_corners(last, corner_ids)
    return begin, torch.maximum(torch.maximum(a, b), c) - begin


def _at_corners(values: Tensor, corner_ids: Tensor) -> tuple[Tensor, ...]:
    return values.index_select(0, corner_ids.reshape(-1)).reshape(3, -1).unbind(0)
