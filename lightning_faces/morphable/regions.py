"""Regions of a face mesh from its 68 landmarks: eye, nose, mouth, face and neck (Feng et al. 2018, section 3.2)."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull

from lightning_faces.morphable.surface import Bools, Floats

_EYES = ((*range(17, 22), *range(36, 42)), (*range(22, 27), *range(42, 48)))
_NOSE = (27, 30, 31, 32, 33, 34, 35)
_MOUTH = tuple(range(48, 60))
UPPER_LIP = (49, 50, 51, 52, 53, 61, 62, 63)
LOWER_LIP = (55, 56, 57, 58, 59, 65, 66, 67)
"""Landmarks of one lip each, 0-based; the corners (48, 54, 60, 64) belong to both."""


def jaw_plane_distance(vertices: Floats, landmarks: Floats) -> Floats:
    """Signed distance in mm below and behind the plane through the jaw line (landmarks 0 to 16), ``[V]``."""
    jaw = landmarks[:17]
    centre = jaw.mean(0)
    normal = np.linalg.svd(jaw - centre)[2][2]
    if normal[1] > 0.0:
        normal = -normal
    distance: Floats = (vertices - centre) @ normal
    return distance


def region_masks(vertices: Floats, landmarks: Floats) -> dict[str, Bools]:
    """Vertex masks from the shape alone.

    Eye (with brow), nose and mouth are the surface in front within a few millimetres of the outline of their landmarks
    seen from the front; the neck lies more than 4 mm below and behind the plane of the jaw line; the face is the front
    of the head without the neck, and includes eye, nose and mouth.

    Args:
        vertices: ``[V, 3]`` millimetres, object frame.
        landmarks: ``[68, 3]`` in the same frame.

    Returns:
        Bool ``[V]`` for "eye", "nose", "mouth", "face", "neck".
    """
    below = jaw_plane_distance(vertices, landmarks)
    neck = (below > 4.0) & (vertices[:, 1] < landmarks[[2, 14], 1].mean())
    brow_height = landmarks[17:27, 1].max()
    nasion_to_chin = landmarks[27, 1] - landmarks[8, 1]
    front = vertices[:, 2] > landmarks[[0, 16], 2].mean() - 2.0
    face = front & ~neck & (vertices[:, 1] < brow_height + 0.45 * nasion_to_chin)

    def near(ids: tuple[int, ...], margin: float) -> Bools:
        points = landmarks[list(ids)]
        deep = vertices[:, 2] > points[:, 2].min() - 12.0
        mask: Bools = face & deep & (_outside_hull(vertices[:, :2], points[:, :2]) < margin)
        return mask

    nose = near(_NOSE, 6.0)
    eye = (near(_EYES[0], 5.0) | near(_EYES[1], 5.0)) & ~nose
    mouth = near(_MOUTH, 4.0) & ~nose
    return {"eye": eye, "nose": nose, "mouth": mouth, "face": face, "neck": neck}


def _outside_hull(points: Floats, corners: Floats) -> Floats:
    """How far points lie outside the convex hull of the corners in the plane; negative inside."""
    equations = ConvexHull(corners).equations
    distance: Floats = (points @ equations[:, :2].T + equations[:, 2]).max(1)
    return distance
