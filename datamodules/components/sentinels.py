"""Points that a file marks as missing by a number, such as -1 -1, which must not pass for annotated ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError

FAR = 0.25
"""A single suspicious point counts if it lies this far outside the other points' box, over the box's longer side."""
LARGE = 9999.0
"""Numbers from which x = y is no place in a picture."""
REPEATED = 3
"""So many points of a face at one place that is outside the others' box are no annotation."""


def mask_missing(points: NDArray[np.float64], value: float | None) -> NDArray[np.float64]:
    """Points ``[..., L, 3]`` with NaN where x and y are both ``value``; None changes nothing."""
    if value is None:
        return points
    missing = (points[..., 0] == value) & (points[..., 1] == value)
    return np.where(missing[..., None], np.nan, points)


def refuse_sentinels(path: Path, points: NDArray[np.float64], fix: str) -> None:
    """Refuse points at which a number stands for "missing": they would make a face larger than it is.

    Looked for are points with x = y at 0, below 0 or at 9999 and more, which come repeatedly or lie far from the other
    points of their face, and three or more points of a face at one place outside the box of the others.

    Args:
        path: The file, for the message.
        points: ``[N, L, >=2]`` in pixels, NaN where not annotated.
        fix: What to do about it, for the message.

    Raises:
        DataError: If there are such points.
    """
    x, y = points[..., 0], points[..., 1]
    suspicious = (x == y) & ((x <= 0) | (x >= LARGE))
    values, counts = np.unique(x[suspicious], return_counts=True)
    for value, count in sorted(zip(values.tolist(), counts.tolist()), key=lambda pair: -pair[1]):
        at = suspicious & (x == value)
        if count > 1 or _is_far(points[at.any(axis=1)][0], at[at.any(axis=1)][0]):
            raise DataError(
                f"{path} has {count} landmark(s) at ({value:g}, {value:g}), which look like missing ones: {fix}"
            )
    places = np.sort(x + 1j * y, axis=1)
    same = places[:, REPEATED - 1 :] == places[:, : -(REPEATED - 1)]
    for face in np.nonzero(same.any(axis=1))[0]:
        for place in np.unique(places[face, REPEATED - 1 :][same[face]]):
            at = (x[face] == place.real) & (y[face] == place.imag)
            if _is_far(points[face], at):
                raise DataError(
                    f"{path} has {int(at.sum())} landmarks of one face at ({place.real:g}, {place.imag:g}), which look "
                    f"like missing ones: {fix}"
                )


def _is_far(face: NDArray[np.float64], at: NDArray[np.bool_]) -> bool:
    """Whether a place lies far outside the box of a face's other points."""
    others = face[~at & np.isfinite(face[:, :2]).all(axis=1), :2]
    if len(others) < 2:
        return True
    low, high = others.min(axis=0), others.max(axis=0)
    place = face[at][0, :2]
    return float(np.maximum(low - place, place - high).max()) > FAR * float((high - low).max())
