"""Landmark schemes: which points of a face a data set labels, and how one scheme follows from another.

All schemes are written in terms of the 68 iBUG points, 0-based, in the order of 300W: jaw 0-16 from the image left of
a frontal face (the subject's right) to the image right, then brows, nose, eyes, outer and inner lip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError

REGIONS_68: Mapping[str, range] = {
    "jaw": range(0, 17),
    "right_brow": range(17, 22),
    "left_brow": range(22, 27),
    "nose_bridge": range(27, 31),
    "nose_base": range(31, 36),
    "right_eye": range(36, 42),
    "left_eye": range(42, 48),
    "outer_lip": range(48, 60),
    "inner_lip": range(60, 68),
}
"""Parts of the face; right and left are the subject's."""

FLIP_68: tuple[int, ...] = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46),
    *(39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48),
    *(59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60),
    *(67, 66, 65),
)
"""``mirrored[i] = points[FLIP_68[i]]``: the point that takes the place of point i in a reflected image."""

OUTER_EYE_CORNERS = (36, 45)
"""Outer corners of the eyes among the 68 points, whose distance normalises the GTE (Zhao 2016, eq. 13)."""
INNER_MOUTH_CORNERS = (60, 64)


@dataclass(frozen=True)
class LandmarkScheme:
    """A named set of landmarks.

    Attributes:
        name: Name, which is also the number of points.
        description: Where it is used.
        groups: For each point, the 0-based indices among the 68 whose mean it is; None where no map is published.
    """

    name: str
    description: str
    groups: tuple[tuple[int, ...], ...] | None

    @property
    def size(self) -> int:
        """Number of points."""
        return int(self.name)


def _subset(indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((index,) for index in indices)


_GROUPS_21: tuple[tuple[int, ...], ...] = (
    *((17,), (19,), (21,), (22,), (24,), (26,)),
    *((36,), (36, 37, 38, 39, 40, 41), (39,), (42,), (42, 43, 44, 45, 46, 47), (45,)),
    *((2,), (31,), (30,), (35,), (14,)),
    *((48,), (60, 61, 62, 63, 64, 65, 66, 67), (54,), (8,)),
)

SCHEMES: Mapping[str, LandmarkScheme] = {
    scheme.name: scheme
    for scheme in (
        LandmarkScheme("68", "iBUG 300W, 300W-LP, AFLW2000-3D", _subset(range(68))),
        LandmarkScheme(
            "66", "3DFAW: 68 without the inner mouth corners", _subset([i for i in range(68) if i not in (60, 64)])
        ),
        LandmarkScheme("51", "68 without the jaw", _subset(range(17, 68))),
        LandmarkScheme(
            "49",
            "68 without the jaw and the inner mouth corners",
            _subset([i for i in range(17, 68) if i not in (60, 64)]),
        ),
        LandmarkScheme("21", "AFLW, approximated from the 68 as 3DDFA's benchmark_aflw.py does", _GROUPS_21),
        LandmarkScheme("34", "AFLW-LFPA (21 + 13 points); its map to the 68 is not published", None),
        LandmarkScheme("45", "points that BP4D-S and 3DFAW share (Zhao 2016); the list is not published", None),
    )
}


def landmark_scheme(name: str) -> LandmarkScheme:
    """The scheme of a name.

    Raises:
        ConfigurationError: If there is no such scheme.
    """
    if name not in SCHEMES:
        raise ConfigurationError(f"Unknown landmark scheme {name!r}: choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def num_landmarks(scheme: str) -> int:
    """Number of points of a scheme."""
    return landmark_scheme(scheme).size


def landmark_groups(scheme: str, mapping: Sequence[int | Sequence[int]] | None = None) -> tuple[tuple[int, ...], ...]:
    """For each point of a scheme, the indices among the 68 whose mean it is.

    Args:
        scheme: Name of the scheme.
        mapping: For a scheme whose map is not published (34, 45): for each of its points one 0-based index among the
            68, or several whose mean it is, or none (an empty list) where no point of the 68 matches.

    Raises:
        ConfigurationError: If a map is needed and missing, or has the wrong length or indices.
    """
    known = landmark_scheme(scheme)
    if mapping is None:
        if known.groups is None:
            raise ConfigurationError(
                f"The {scheme}-point scheme ({known.description}) has no published map to the 68 points: give a "
                f"mapping with {known.size} entries, each a 0-based index of the 68, a list of them, or []."
            )
        return known.groups
    if known.groups is not None:
        raise ConfigurationError(f"The {scheme}-point scheme has a published map: leave the mapping out.")
    groups = tuple((entry,) if isinstance(entry, int) else tuple(entry) for entry in mapping)
    if len(groups) != known.size:
        raise ConfigurationError(
            f"The mapping of the {scheme}-point scheme has {len(groups)} entries, not {known.size}."
        )
    wrong = sorted({index for group in groups for index in group if not 0 <= index < 68})
    if wrong:
        raise ConfigurationError(f"The mapping of the {scheme}-point scheme has index {wrong[0]}; use 0 to 67.")
    return groups


def convert_landmarks(
    points: Tensor,
    source: str,
    target: str,
    mapping: Sequence[int | Sequence[int]] | None = None,
) -> Tensor:
    """Points of one scheme from those of another that has them all.

    Args:
        points: ``[..., L, D]`` in any frame, L points of ``source``.
        source: Scheme of ``points``; not 21, 34 or 45, which average or are unpublished.
        target: Scheme wanted.
        mapping: Map of ``target`` to the 68 where none is published; see :func:`landmark_groups`.

    Returns:
        ``[..., L', D]``; a target point with several sources is their mean.

    Raises:
        ConfigurationError: If the source lacks points, or the number of points is not the source's.
    """
    if points.shape[-2] != num_landmarks(source):
        raise ConfigurationError(f"{points.shape[-2]} landmarks given for the {source}-point scheme.")
    if source == target:
        return points
    position = {group[0]: i for i, group in enumerate(landmark_groups(source)) if len(group) == 1}
    groups = landmark_groups(target, mapping)
    missing = sorted({index for group in groups for index in group} - position.keys())
    if missing or not all(groups):
        what = f"points {missing} of the 68" if missing else "a source for every target point"
        raise ConfigurationError(
            f"The {source}-point scheme lacks {what}, so it cannot give the {target}-point scheme."
        )
    return torch.stack([points[..., [position[i] for i in group], :].mean(dim=-2) for group in groups], dim=-2)


def embed_landmarks(
    points: Tensor,
    mask: Tensor,
    source: str,
    mapping: Sequence[int | Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Put points of a smaller scheme into their places among the 68.

    Points that are means of several of the 68 have no place and are left out.

    Args:
        points: ``[..., L, D]`` in any frame.
        mask: Bool ``[..., L, D]``, which coordinates are annotated.
        source: Scheme of ``points``.
        mapping: Map of ``source`` to the 68 where none is published; see :func:`landmark_groups`.

    Returns:
        Points ``[..., 68, D]``, 0 where absent, and mask ``[..., 68, D]``.
    """
    if points.shape[-2] != num_landmarks(source):
        raise ConfigurationError(f"{points.shape[-2]} landmarks given for the {source}-point scheme.")
    pairs = [(i, group[0]) for i, group in enumerate(landmark_groups(source, mapping)) if len(group) == 1]
    here, there = [i for i, _ in pairs], [j for _, j in pairs]
    shape = (*points.shape[:-2], 68, points.shape[-1])
    embedded, embedded_mask = points.new_zeros(shape), mask.new_zeros(shape)
    embedded[..., there, :] = torch.where(mask[..., here, :], points[..., here, :], points.new_zeros(()))
    embedded_mask[..., there, :] = mask[..., here, :]
    return embedded, embedded_mask


@lru_cache
def flip_permutation(count: int) -> Tensor:
    """Order of a scheme's points in a mirrored image: ``mirrored = points[flip_permutation(len(points))]``.

    Args:
        count: Number of points of a scheme.

    Returns:
        Int64 ``[count]``, its own inverse. Shared between calls: do not write to it.

    Raises:
        ConfigurationError: If the scheme is unknown or has no published map.
    """
    groups = [frozenset(group) for group in landmark_groups(str(count))]
    return torch.tensor([groups.index(frozenset(FLIP_68[i] for i in group)) for group in groups])


def outer_eye_corners(count: int) -> tuple[int, int]:
    """Positions of the outer eye corners, image left then right, in the scheme of ``count`` points."""
    groups = landmark_groups(str(count))
    return groups.index((OUTER_EYE_CORNERS[0],)), groups.index((OUTER_EYE_CORNERS[1],))
