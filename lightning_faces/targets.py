"""The targets of a batch, one row each: what it looks like, how it follows the image, and how it is stored.

Every other list of targets is a question to this table. Frames and units are those of ``batch.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from lightning_faces.geometry.landmarks import num_landmarks

Moves = Literal["points", "pose", "values", "image", "size", "nothing"]
Mirrors = Literal["permute", "turn", "negate", "drop", "nothing"]


@dataclass(frozen=True)
class FaceSpec:
    """What a data module gives, or a method needs; None on the method's side means that any value will do.

    Attributes:
        image_size: Side of ``image`` in pixels.
        landmark_scheme: Name of a scheme in ``geometry/landmarks.py``.
        face_model: Name of the morphable model of the dense targets and the coefficients.
        face_model_hash: Content hash of that model.
        num_identity: Number of identity coefficients.
        num_expression: Number of expression coefficients.
        num_vertices: Number of vertices V.
        position_map_size: Side U of the position map.
    """

    image_size: int | None = None
    landmark_scheme: str | None = None
    face_model: str | None = None
    face_model_hash: str | None = None
    num_identity: int | None = None
    num_expression: int | None = None
    num_vertices: int | None = None
    position_map_size: int | None = None


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        shape: Of one sample, from what the data module gives.
        moves: How it follows a similarity of the image. "points": its rows are points. "pose": it is a pose. "values":
            the values of a map are points, the map stays. "image": the map is resampled with the image, its values stay
            (the nearest ones, since coordinates must not be mixed with the background across the silhouette). "size":
            it is a length in pixels.
        mirrors: How it follows a reflection. "permute": its rows change places with their mirror images. "turn": a pose
            turns the other way. "negate": an angle changes its sign. "drop": mirrored, it would describe another face
            than the face model's, so it is not given.
        cheap: Given whenever the data set has it; the others only where a method asks for them.
        dtype: Of a batch.
        stored: In a cache, where that is less precise: at 200 pixels, float16 rounds by 0.06 pixels at most.
    """

    shape: Callable[[FaceSpec], tuple[int, ...]]
    moves: Moves = "nothing"
    mirrors: Mirrors = "nothing"
    cheap: bool = True
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None


def _landmarks(*last: int) -> Callable[[FaceSpec], tuple[int, ...]]:
    return lambda spec: (num_landmarks(spec.landmark_scheme or "68"), *last)


def _image(channels: int) -> Callable[[FaceSpec], tuple[int, ...]]:
    return lambda spec: (channels, spec.image_size or 0, spec.image_size or 0)


def _scalar(spec: FaceSpec) -> tuple[int, ...]:
    return ()


def _coefficients(spec: FaceSpec) -> tuple[int, ...]:
    return ((spec.num_identity or 0) + (spec.num_expression or 0),)


def _position_map(spec: FaceSpec) -> tuple[int, ...]:
    return (3, spec.position_map_size or 0, spec.position_map_size or 0)


TARGETS: dict[str, Target] = {
    "landmarks": Target(_landmarks(3), "points", "permute"),
    "landmark_mask": Target(_landmarks(3), mirrors="permute", dtype=torch.bool),
    "visible": Target(_landmarks(), mirrors="permute", dtype=torch.bool),
    "face_size": Target(_scalar, "size"),
    "yaw": Target(_scalar, mirrors="negate"),
    "pose": Target(lambda spec: (6,), "pose", "turn"),
    "coefficients": Target(_coefficients, mirrors="drop"),
    "vertices": Target(lambda spec: (spec.num_vertices or 0, 3), "points", "drop", cheap=False, stored=torch.float16),
    "position_map": Target(_position_map, "values", "drop", cheap=False, stored=torch.float16),
    "pncc": Target(_image(3), "image", "drop", cheap=False, stored=torch.float16),
    "offsets": Target(_image(3), "image", "drop", cheap=False, stored=torch.float16),
    "face_mask": Target(_image(1), "image", "drop", cheap=False),
}
"""Target key to its row, in the order of a batch."""

CHEAP_TARGETS = frozenset(name for name, row in TARGETS.items() if row.cheap)
"""Targets that are given whenever the data set has them; the others only when the method requires them."""
MODEL_TARGETS = frozenset(name for name, row in TARGETS.items() if row.mirrors == "drop")
"""Targets in terms of a face model, which a reflection of the image cannot carry over."""
RENDERED_TARGETS = frozenset(name for name, row in TARGETS.items() if row.moves in ("values", "image"))
"""Maps, which take a renderer to make."""


def target_shapes(targets: frozenset[str], spec: FaceSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of targets without the batch dimension, in the order of a batch.

    Args:
        targets: Target keys.
        spec: What the data module gives.

    Example:
        >>> target_shapes(frozenset({"pose", "pncc"}), FaceSpec(image_size=64))
        {'pose': (6,), 'pncc': (3, 64, 64)}
    """
    return {name: row.shape(spec) for name, row in TARGETS.items() if name in targets}
