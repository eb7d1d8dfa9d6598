"""Which triangle of a UV map each texel shows, and with which weights.

The centre of texel (row i, column j) of a map of side U lies at ``((j + 0.5) / U, (i + 0.5) / U)`` in UV, v down.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REACH = 1.5
"""How far outside the map, in texels, a triangle at its border is continued."""


def texel_triangles(uv: Tensor, uv_faces: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The triangle that covers each texel's centre; the last one where several do.

    Args:
        uv: ``[V_uv, 2]`` in [0, 1].
        uv_faces: Int64 ``[F_uv, 3]``.
        size: Side U of the map in texels.

    Returns:
        Rows of ``uv_faces``, int64 ``[U * U]``, -1 where none, and float64 barycentric weights ``[U * U, 3]``, 0 there.
    """
    corners = uv.double()[uv_faces] * size - 0.5
    low = (corners.amin(1) - 1e-9).ceil().long().clamp(0, size)
    high = (corners.amax(1) + 1e-9).floor().long().clamp(-1, size - 1)
    extent = (high - low + 1).clamp_min(0)
    count = extent.prod(1)
    # Every texel of every bounding box, laid out flat.
    owner = torch.arange(len(uv_faces), device=uv.device).repeat_interleave(count)
    step = torch.arange(len(owner), device=uv.device) - (count.cumsum(0) - count)[owner]
    width = extent[owner, 0]
    place = low[owner] + torch.stack((step % width, torch.div(step, width, rounding_mode="floor")), dim=1)
    inside = (barycentric(place, corners[owner]) >= -1e-9).all(1)
    owner, place = owner[inside], place[inside]
    triangle = torch.full((size * size,), -1, dtype=torch.int64, device=uv.device)
    triangle.scatter_reduce_(0, place[:, 1] * size + place[:, 0], owner, "amax")
    weights = uv.new_zeros((size * size, 3), dtype=torch.float64)
    shown = torch.nonzero(triangle >= 0).squeeze(1)
    weights[shown] = barycentric(_places(shown, size), corners[triangle[shown]])
    return triangle, weights


def texel_image(
    uv: NDArray[np.float64], uv_faces: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """:func:`texel_triangles` of NumPy arrays, as images ``[U, U]`` and ``[U, U, 3]``."""
    triangle, weights = texel_triangles(torch.from_numpy(uv), torch.from_numpy(uv_faces), size)
    return triangle.reshape(size, size).numpy(), weights.reshape(size, size, 3).numpy()


def continued(uv: Tensor, uv_faces: Tensor, triangle: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same with the texels that no triangle covers showing the nearest one at the border of the map, extended.

    A map read bilinearly next to a rim, of an eye or of the whole face, then mixes in nothing foreign.

    Args:
        uv: ``[V_uv, 2]`` in [0, 1].
        uv_faces: Int64 ``[F_uv, 3]``.
        triangle: ``[U * U]`` from :func:`texel_triangles`.
        weights: ``[U * U, 3]`` from it.

    Returns:
        Triangles and weights; the latter are not all positive where a triangle is extended, by 1.5 texels at most.
    """
    size = round(len(triangle) ** 0.5)
    corners = uv * size - 0.5
    empty = torch.nonzero(triangle < 0).squeeze(1)
    nearest, place = _nearest_at_border(_places(empty, size).to(uv.dtype), corners, uv_faces)
    extended = barycentric(place, corners[uv_faces[nearest]])
    # A needle would be continued far away from where it lies.
    far = extended.amin(1, keepdim=True) < -1.0
    positive = extended.clamp_min(0.0)
    triangle, weights = triangle.clone(), weights.clone()
    triangle[empty] = nearest
    weights[empty] = torch.where(far, positive / positive.sum(1, keepdim=True), extended)
    return triangle, weights


def barycentric(place: Tensor, corners: Tensor) -> Tensor:
    """Float64 weights ``[N, 3]`` of places ``[N, 2]`` in triangles ``[N, 3, 2]``; of an empty one the first corner."""
    place = place.double()
    first, second, third = corners.double().unbind(1)
    area = _cross(second - first, third - first)
    area = torch.where(area == 0.0, torch.inf, area)
    b = _cross(place - first, third - first) / area
    c = _cross(second - first, place - first) / area
    return torch.stack((1.0 - b - c, b, c), dim=1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]


def _places(texel: Tensor, size: int) -> Tensor:
    """Column and row ``[N, 2]`` of texels ``[N]``."""
    return torch.stack((texel % size, torch.div(texel, size, rounding_mode="floor")), dim=1)


def _nearest_at_border(place: Tensor, corners: Tensor, uv_faces: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest triangle at the border of a map, and the place to read it at.

    Args:
        place: ``[N, 2]`` in texels, outside the map.
        corners: ``[V_uv, 2]`` in texels.
        uv_faces: ``[F_uv, 3]``.

    Returns:
        Triangles ``[N]`` and places ``[N, 2]``, no further than :data:`REACH` from the border.
    """
    edges = torch.cat((uv_faces[:, [0, 1]], uv_faces[:, [1, 2]], uv_faces[:, [2, 0]]))
    owner = torch.arange(uv_faces.shape[0], device=uv_faces.device).repeat(3)
    _, inverse, counts = torch.unique(edges.sort(dim=1)[0], dim=0, return_inverse=True, return_counts=True)
    border = counts[inverse] == 1
    edges, owner = edges[border], owner[border]
    start, edge = corners[edges[:, 0]], corners[edges[:, 1]] - corners[edges[:, 0]]
    triangles, points = [owner[:0]], [place[:0]]
    for some in torch.split(place, 4096):
        along = ((some[:, None] - start) * edge).sum(-1) / edge.square().sum(-1).clamp_min(1e-12)
        nearest = start + along.clamp(0.0, 1.0)[..., None] * edge
        distance, which = (some[:, None] - nearest).norm(dim=-1).min(dim=1)
        foot = nearest[torch.arange(some.shape[0], device=some.device), which]
        triangles.append(owner[which])
        points.append(foot + (some - foot) * (REACH / distance.clamp_min(REACH))[:, None])
    return torch.cat(triangles), torch.cat(points)
