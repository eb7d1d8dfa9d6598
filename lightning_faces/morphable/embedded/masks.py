"""Regions that only this mesh has: ears, scalp, lips, eyeballs and the insides of eyes and mouth."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import Delaunay

from lightning_faces.morphable.embedded.head import Head, change_size, rest_vertices
from lightning_faces.morphable.surface import Bools, Floats, components


def ear_mask(model: Any, head: Head) -> Bools:
    """Vertices of the ears: those that the ear's own shape changes move, and what they enclose."""
    ear = change_size(model, head, "ear-shape", "ear-wing") > 6.0
    rest = head.faces[head.parts["skin"] & ~ear[head.faces].any(1)]
    main_part = np.bincount(components(rest, len(ear))[rest[:, 0]]).argmax()
    enclosed = components(rest, len(ear)) != main_part
    skin = np.zeros(len(ear), bool)
    skin[head.faces[head.parts["skin"]]] = True
    mask: Bools = skin & enclosed & (ear | (np.abs(rest_vertices(model)[0][head.kept, 0]) > 60.0))
    return mask


def extra_masks(mean: Floats, head: Head, ear: Bools, landmarks: Floats) -> dict[str, Bools]:
    """Masks that drawing needs, bool ``[V]`` each: eyeball, lips, ear, scalp, mouth_inside and eye_inside."""
    vertex = {}
    for key in ("skin", "eyeball", "eye_cavity", "mouth_cavity"):
        vertex[key] = np.zeros(len(mean), bool)
        vertex[key][head.faces[head.parts[key]]] = True
    outline = Delaunay(landmarks[48:60, :2])
    lips = vertex["skin"] & (outline.find_simplex(mean[:, :2]) >= 0)
    lips &= mean[:, 2] > landmarks[[48, 54], 2].mean() - 12.0
    hairline = landmarks[17:27, 1].max() + 40.0
    slope = (hairline - landmarks[[0, 16], 1].mean()) / (landmarks[27, 2] - 5.0)
    scalp = vertex["skin"] & ~ear & (mean[:, 1] > landmarks[[0, 16], 1].mean() - 25.0)
    scalp &= mean[:, 1] > hairline - slope * np.maximum(landmarks[27, 2] - 8.0 - mean[:, 2], 0.0)
    return {
        "eyeball": vertex["eyeball"],
        "lips": lips,
        "ear": ear,
        "scalp": scalp,
        "mouth_inside": vertex["mouth_cavity"] & ~vertex["skin"],
        "eye_inside": vertex["eye_cavity"] & ~vertex["skin"],
    }
