"""The table of annotations of the import layout (``datamodules/table.py`` describes it): reading, checking, writing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.components.files import any_case
from datamodules.components.sentinels import mask_missing, refuse_sentinels
from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.npz import read_npz
from lightning_faces.geometry.landmarks import SCHEMES, landmark_groups, num_landmarks

NUMBERS = ("subject", "view", "sequence", "frame")
POSE_COLUMNS = ("scale", "pitch", "yaw_rad", "roll", "tx", "ty")
BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")
Mapping = list[int | list[int]]
LONGEST_NAME, LONGEST_PATH = 255, 3000
"""Bytes of a file's name and of its path, of which a data set's folder leaves that much."""
LARGEST = 1e6
"""Pixels, degrees or radians beyond which a number is damage."""
LEAVE_EMPTY = "leave the cells of points that are not annotated empty (NaN in an NPZ file)."
_NUMERIC: dict[str, tuple[int | None, ...]] = {
    "landmarks": (None, None, 3), "visible": (None, None), "box": (None, 4), "pose": (None, 6), "yaw": (None,),
    **dict.fromkeys(NUMBERS, (None,)),
}  # fmt: skip
"""Arrays of numbers in the NPZ file and their shapes, the faces first."""
_WORDS = frozenset({"files", "split", "scan"})


@dataclass(frozen=True)
class Annotations:
    """A table of N faces; ``datamodules/table.py`` has the units.

    Attributes:
        path: The table's file.
        file: ``[N]``.
        landmarks: ``[N, L, 3]``, NaN where not annotated; L may be 0.
        visible: Bool ``[N, L]`` or None.
        box: ``[N, 4]`` or None.
        yaw: ``[N]`` or None.
        pose: ``[N, 6]`` or None.
        split: ``[N]`` or None.
        scan: ``[N]`` or None.
        numbers: Any of subject, view, sequence and frame ``[N]``.
    """

    path: Path
    file: list[str]
    landmarks: NDArray[np.float64]
    visible: NDArray[np.bool_] | None = None
    box: NDArray[np.float64] | None = None
    yaw: NDArray[np.float64] | None = None
    pose: NDArray[np.float64] | None = None
    split: list[str] | None = None
    scan: list[str] | None = None
    numbers: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def save(self) -> Path:
        """Write the table as ``annotations.npz``, whole or not at all."""
        arrays: dict[str, Any] = {"files": np.array(self.file), "landmarks": self.landmarks, **self.numbers}
        for key in ("visible", "box", "yaw", "pose"):
            if getattr(self, key) is not None:
                arrays[key] = getattr(self, key)
        for key in ("split", "scan"):
            if getattr(self, key) is not None:
                arrays[key] = np.array(getattr(self, key))
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        return write_atomic(self.path, content.getvalue())


def read_annotations(
    folder: Path, scheme: str | None, landmarks_needed: bool = True, missing: float | None = None
) -> Annotations:
    """Read ``annotations.csv`` or ``annotations.npz`` of a folder.

    Args:
        folder: The folder.
        scheme: Landmark scheme that the table must have; None takes any.
        landmarks_needed: Whether a table without landmarks is an error.
        missing: Points whose x and y are both this number are not annotated.

    Raises:
        DataError: If there is none, both, or it cannot be used; the sentence names the file, the line and the column.
    """
    paths = [path for path in (any_case(folder / f"annotations.{kind}") for kind in ("csv", "npz")) if path.exists()]
    if len(paths) != 1:
        problem = "both annotations.csv and annotations.npz" if paths else "neither annotations.csv nor annotations.npz"
        raise DataError(f"{folder} has {problem}: there must be one, laid out as `lightning-faces datasets` describes.")
    table = _read_csv(paths[0]) if paths[0].suffix.lower() == ".csv" else _read_npz(paths[0])
    found = table.landmarks.shape[1]
    wanted = found if scheme is None else num_landmarks(scheme)
    if scheme is not None and found != wanted and (found or landmarks_needed):
        raise DataError(
            f"{table.path} has {found} landmarks per face, not the {wanted} of {SCHEMES[scheme].description}: map them "
            "to that scheme first, or give data module Table the option landmark_scheme."
        )
    if not table.file:
        raise DataError(f"{table.path} has no row.")
    table = replace(table, landmarks=mask_missing(table.landmarks, missing))
    refuse_sentinels(table.path, table.landmarks, LEAVE_EMPTY)
    return table


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names of a CSV file, and its rows with the number of the line that each ends on.

    Raises:
        DataError: If it is no such file, names a column twice, or a row has more or fewer cells.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): give a CSV file in UTF-8.") from error
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice: give each another name.")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path} line {line} has {len(row)} cells for {len(header)} columns.")
    return header, rows


def to_number(path: Path, line: int, column: str, cell: str) -> float:
    """A cell as a number, NaN where it is empty.

    Raises:
        DataError: If it is none.
    """
    cell = cell.strip()
    try:
        # Python would take an underscore within a number.
        return float("" if "_" in cell else cell) if cell else math.nan
    except ValueError:
        raise DataError(f"{path} line {line} column {column} is {cell[:40]!r}, not a number.") from None


def _read_csv(path: Path) -> Annotations:
    header, rows = read_rows(path)
    place = {name: i for i, name in enumerate(header)}
    if "file" not in place:
        raise DataError(f"{path} has no column file: its first line must name the columns.")

    def numeric(names: Sequence[str]) -> NDArray[np.float64] | None:
        if not all(name in place for name in names):
            return None
        cells = [[to_number(path, line, name, row[place[name]]) for name in names] for line, row in rows]
        return np.array(cells, dtype=np.float64).reshape(len(rows), len(names))

    def words(name: str) -> list[str] | None:
        return [row[place[name]].strip() for _, row in rows] if name in place else None

    count = 0
    while f"x{count}" in place and f"y{count}" in place:
        count += 1
    points = np.full((len(rows), count, 3), np.nan)
    for axis, letter in enumerate("xyz"):
        values = numeric([f"{letter}{i}" for i in range(count)]) if count else None
        if values is not None:
            points[..., axis] = values
    visible = numeric([f"visible{i}" for i in range(count)]) if count else None
    yaw = numeric(["yaw"])
    return _checked(
        Annotations(
            path=path,
            file=words("file") or [],
            landmarks=points,
            visible=None if visible is None else visible > 0,
            box=numeric(BOX_COLUMNS),
            yaw=None if yaw is None else yaw[:, 0],
            pose=numeric(POSE_COLUMNS),
            split=words("split"),
            scan=words("scan"),
            numbers={name: _whole(path, name, numeric([name])) for name in NUMBERS if name in place},
        )
    )


def _whole(path: Path, name: str, values: NDArray[np.float64] | None) -> NDArray[np.int64]:
    assert values is not None
    whole = np.where(np.isnan(values), -1, values).reshape(-1)
    if not (np.abs(whole) < 2**53).all() or (whole != np.round(whole)).any():
        raise DataError(f"{path} column {name} has values that are no whole numbers.")
    return whole.astype(np.int64)


def _read_npz(path: Path) -> Annotations:
    stored = read_npz(path, "a whole NPZ file", "write it with numpy.savez and no Python objects")
    arrays = {key: value for key, value in stored.items() if key in _WORDS or key in _NUMERIC}
    if "files" not in arrays:
        raise DataError(f"{path} has no array files.")
    count = len(arrays["files"]) if arrays["files"].ndim else 0
    for key, value in arrays.items():
        shape: tuple[int | None, ...] = _NUMERIC.get(key, (None,))
        fits = value.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape))
        if not fits or len(value) != count:
            raise DataError(f"{path} array {key} has shape {value.shape} for {count} faces.")
        if value.dtype.kind not in ("U" if key in _WORDS else "biuf"):
            raise DataError(f"{path} array {key} has values of type {value.dtype}, not {_kind(key)}.")

    def numeric(key: str) -> NDArray[np.float64] | None:
        return arrays[key].astype(np.float64) if key in arrays else None

    def words(key: str) -> list[str] | None:
        return [str(name) for name in arrays[key]] if key in arrays else None

    landmarks = numeric("landmarks")
    return _checked(
        Annotations(
            path=path,
            file=words("files") or [],
            landmarks=np.zeros((count, 0, 3)) if landmarks is None else landmarks,
            visible=arrays["visible"].astype(bool) if "visible" in arrays else None,
            box=numeric("box"),
            yaw=numeric("yaw"),
            pose=numeric("pose"),
            split=words("split"),
            scan=words("scan"),
            numbers={key: _whole(path, key, numeric(key)) for key in NUMBERS if key in arrays},
        )
    )


def _kind(key: str) -> str:
    return "text" if key in _WORDS else "numbers"


def _can_be_a_file(name: str) -> bool:
    encoded = name.encode("utf-8", "replace")
    parts = encoded.split(b"/")
    # Lone halves of a surrogate pair are no text.
    whole = not any("\ud800" <= character <= "\udfff" for character in name)
    return whole and b"\0" not in encoded and len(encoded) <= LONGEST_PATH and max(map(len, parts)) <= LONGEST_NAME


def _checked(table: Annotations) -> Annotations:
    path, points = table.path, table.landmarks.shape[1]
    if table.split is not None and not set(table.split) <= {"train", "val", "test"}:
        other = sorted(set(table.split) - {"train", "val", "test"})[0]
        raise DataError(f"{path} has split {other!r}: use train, val or test.")
    for name in [*table.file, *(table.scan or [])]:
        if not _can_be_a_file(name):
            raise DataError(f"{path} names a file {name[:40]!r}..., which no file is called.")
    if "" in table.file:
        raise DataError(f"{path} has a row without a file.")
    if table.visible is not None and table.visible.shape[1] != points:
        raise DataError(f"{path} says of {table.visible.shape[1]} points whether they are visible, not of {points}.")
    values = {"landmark": table.landmarks, "box": table.box, "yaw": table.yaw, "pose": table.pose}
    for what, numbers in values.items():
        if numbers is not None and (np.abs(np.nan_to_num(numbers, nan=0.0)) > LARGEST).any():
            raise DataError(f"{path} has a {what} with a number beyond {LARGEST:g}, or an infinite one: correct it.")
    if table.pose is not None and (table.pose[:, 0] <= 0).any():
        raise DataError(f"{path} has a pose whose scale is not positive: leave the pose out where it is not known.")
    return table


def read_mapping(folder: Path, scheme: str) -> Mapping | None:
    """The map of an unpublished scheme to the 68 points, ``mapping.json`` of the folder; None for a published one.

    The file is a list with one entry per point: an index among the 68 (0-based), a list of indices to average, or an
    empty list where none matches.

    Raises:
        DataError: If it is needed and not there, or is not such a list.
    """
    if SCHEMES[scheme].groups is not None:
        return None
    path = folder / "mapping.json"
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(mapping, list) or not all(map(_is_entry, mapping)):
            raise ValueError("it must be a list of whole numbers and lists of them")
        landmark_groups(scheme, mapping)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, and the {scheme}-point scheme ({SCHEMES[scheme].description}) cannot be used "
            f"without it: write a JSON list with {scheme} entries, each a 0-based index among the 68 iBUG points, a "
            "list of them to average, or []."
        ) from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a map of {scheme} points to the 68: {error}") from error
    return mapping  # type: ignore[no-any-return]


def _is_entry(entry: object) -> bool:
    """Whether an entry of a map is an index or a list of indices."""
    indices = entry if isinstance(entry, list) else [entry]
    return all(isinstance(index, int) and not isinstance(index, bool) for index in indices)
