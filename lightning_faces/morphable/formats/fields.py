"""What the importers share: fields of files as points, modes, spreads and triangles, and where files lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.morphable.surface import Floats, Ints

MICROMETRES = 1e-3
"""The unit of the Basel models of 2009 in mm."""
BYTE = 1.0 / 255.0
"""The unit of colours from 0 to 255."""
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
DAMAGED = "it is damaged, or its files are of different models"


def as_points(values: NDArray[Any], key: str, path: Path, count: int | None = None) -> Floats:
    """Numbers in xyzxyz order as points ``[V, 3]``, as many as given where it is known."""
    if values.size == 0 or values.size % 3:
        raise DataError(f"{path}: {key} holds {values.size} numbers, which is no list of points: it is damaged.")
    if count is not None and values.size != 3 * count:
        raise DataError(
            f"{path}: {key} holds {values.size} numbers, for {count} vertices {3 * count} are needed: {DAMAGED}."
        )
    return values.astype(np.float64).reshape(-1, 3)


def as_modes(basis: NDArray[Any], count: int, key: str, path: Path) -> NDArray[np.float32]:
    """Columns ``[3V, K]`` in xyzxyz order as modes ``[K, V, 3]``."""
    if basis.ndim != 2 or len(basis) != 3 * count:
        raise DataError(
            f"{path}: {key} are {basis.shape} numbers, for {count} vertices ({3 * count}, K) are needed: {DAMAGED}."
        )
    modes: NDArray[np.float32] = np.ascontiguousarray(np.asarray(basis, np.float32).T)
    return modes.reshape(-1, count, 3)


def as_deviations(values: NDArray[Any], key: str, modes: NDArray[np.float32], path: Path, power: float = 1.0) -> Floats:
    """Standard deviations, one for each of the modes, of what is their square if ``power`` is 0.5."""
    std = values.astype(np.float64).ravel()
    if len(std) != len(modes):
        raise DataError(f"{path}: {key} holds {len(std)} numbers for {len(modes)} modes: {DAMAGED}.")
    if (std < 0.0).any():
        raise DataError(f"{path}: {key} holds {std.min():.3g}, which no spread can be: it is damaged.")
    return std**power


def as_indices(values: NDArray[Any], key: str, path: Path) -> Ints:
    """Numbers of vertices, which files may keep as any type."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path}: {key} holds values that are no indices: it is damaged.")
    return values.astype(np.int64)


def as_triangles(values: NDArray[Any], key: str, path: Path) -> Ints:
    """Vertex numbers ``[F, 3]``, ``[3, F]`` or flat as triangles ``[F, 3]``."""
    if values.size == 0 or values.size % 3:
        raise DataError(f"{path}: {key} holds {values.size} numbers, which are no triangles: it is damaged.")
    turned = values.ndim == 2 and values.shape[0] == 3 and values.shape[1] != 3
    return as_indices(values.T if turned else values, key, path).reshape(-1, 3)


def no_modes(count: int) -> tuple[NDArray[np.float32], Floats]:
    """What :func:`field_modes` gives for a model without such modes."""
    return np.zeros((0, count, 3), np.float32), np.zeros(0)


def unit_modes(basis: NDArray[np.float32], std: Floats) -> tuple[NDArray[np.float32], Floats]:
    """Unit modes and the standard deviations that give the same shapes."""
    norms = np.linalg.norm(basis.astype(np.float64), axis=(1, 2))
    return basis / np.maximum(norms, 1e-12).astype(np.float32)[:, None, None], std * norms


def field(values: Mapping[str, NDArray[Any]], key: str, path: Path) -> NDArray[Any]:
    """A field of a file; numbers that MATLAB shrank to integers come back as they are."""
    if key not in values:
        raise DataError(f"{path} has no field {key!r}: it is not the file that this format needs.")
    return values[key]


def field_points(values: Mapping[str, NDArray[Any]], key: str, path: Path, count: int | None = None) -> Floats:
    """:func:`as_points` of a field."""
    return as_points(field(values, key, path), key, path, count)


def field_modes(
    values: Mapping[str, NDArray[Any]],
    keys: tuple[str, str],
    count: int,
    path: Path,
    unit: float = 1.0,
    power: float = 1.0,
) -> tuple[NDArray[np.float32], Floats]:
    """Modes ``[K, V, 3]`` and standard deviations ``[K]`` in mm, or in [0, 1] for colours, of two fields of a file.

    Args:
        values: The file's fields.
        keys: Names of the fields.
        count: Number of vertices V.
        path: The file.
        unit: The file's unit, of the standard deviations.
        power: 0.5 if the second field holds variances.
    """
    modes = as_modes(field(values, keys[0], path), count, keys[0], path)
    return modes, as_deviations(field(values, keys[1], path), keys[1], modes, path, power) * unit


def one_based(values: Mapping[str, NDArray[Any]], key: str, path: Path) -> Ints:
    """Indices of a .mat file, made 0-based, flat."""
    return as_indices(field(values, key, path), key, path).ravel() - 1


def one_based_triangles(values: Mapping[str, NDArray[Any]], key: str, path: Path) -> Ints:
    """:func:`as_triangles` of a field of a .mat file, made 0-based."""
    return as_triangles(field(values, key, path), key, path) - 1


def find(folder: Path, *names: str) -> Path | None:
    """The first of the files that the folder has."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def need(path: Path, *names: str) -> Path:
    """The path itself if it is a file, else the first of the files that it has."""
    if path.is_file():
        return path
    found = find(path, *names)
    if found is None:
        raise DataError(f"{path} holds no {' or '.join(names)}: give the folder or the file itself.")
    return found


def content(path: Path) -> bytes:
    """The bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
