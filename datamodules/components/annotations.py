"""The table of annotations of the import layout (``datamodules/table.py`` describes it): reading, checking, writing."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.geometry.landmarks import SCHEMES, landmark_groups, num_landmarks

NUMBERS = ("subject", "view", "sequence", "frame")
POSE_COLUMNS = ("scale", "pitch", "yaw_rad", "roll", "tx", "ty")
BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")
Mapping = list[int | list[int]]


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


def read_annotations(folder: Path, scheme: str, landmarks_needed: bool = True) -> Annotations:
    """Read ``annotations.csv`` or ``annotations.npz`` of a folder.

    Args:
        folder: The folder.
        scheme: Landmark scheme that the table must have.
        landmarks_needed: Whether a table without landmarks is an error.

    Raises:
        DataError: If there is none, both, or it cannot be used; the sentence names the file, the line and the column.
    """
    paths = [folder / name for name in ("annotations.csv", "annotations.npz") if (folder / name).exists()]
    if len(paths) != 1:
        problem = "both annotations.csv and annotations.npz" if paths else "neither annotations.csv nor annotations.npz"
        raise DataError(f"{folder} has {problem}: there must be one, laid out as `lightning-faces datasets` describes.")
    table = _read_csv(paths[0]) if paths[0].suffix == ".csv" else _read_npz(paths[0])
    found, wanted = table.landmarks.shape[1], num_landmarks(scheme)
    if found != wanted and (found or landmarks_needed):
        raise DataError(
            f"{table.path} has {found} landmarks per face, not the {wanted} of {SCHEMES[scheme].description}: map them "
            f"to that scheme first."
        )
    if not table.file:
        raise DataError(f"{table.path} has no row.")
    return table


def _read_csv(path: Path) -> Annotations:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): give a CSV file in UTF-8.") from error
    place = {name.strip(): i for i, name in enumerate(header)}
    if "file" not in place:
        raise DataError(f"{path} has no column file: its first line must name the columns.")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path} line {line} has {len(row)} cells for {len(header)} columns.")

    def numeric(names: Sequence[str]) -> NDArray[np.float64] | None:
        if not all(name in place for name in names):
            return None
        columns = [place[name] for name in names]
        values = np.empty((len(rows), len(columns)))
        for line, row in enumerate(rows):
            for k, column in enumerate(columns):
                cell = row[column].strip()
                try:
                    values[line, k] = float(cell) if cell else np.nan
                except ValueError:
                    raise DataError(
                        f"{path} line {line + 2} column {header[column]} is {cell!r}, not a number."
                    ) from None
        return values

    def words(name: str) -> list[str] | None:
        return [row[place[name]].strip() for row in rows] if name in place else None

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
    whole = np.where(np.isnan(values[:, 0]), -1, values[:, 0])
    if (whole != np.round(whole)).any():
        raise DataError(f"{path} column {name} has values that are no whole numbers.")
    return whole.astype(np.int64)


def _read_npz(path: Path) -> Annotations:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}): write it with numpy.savez and no Python objects.") from error
    if "files" not in arrays:
        raise DataError(f"{path} has no array files.")
    count = len(arrays["files"])
    shapes = {"landmarks": 3, "visible": 2, "box": 2, "pose": 2}
    last = {"landmarks": 3, "box": 4, "pose": 6}
    for key, value in arrays.items():
        if len(value) != count or value.ndim != shapes.get(key, 1) or value.shape[-1] != last.get(key, value.shape[-1]):
            raise DataError(f"{path} array {key} has shape {value.shape} for {count} faces.")
    return _checked(
        Annotations(
            path=path,
            file=[str(name) for name in arrays["files"]],
            landmarks=arrays.get("landmarks", np.zeros((count, 0, 3))).astype(np.float64),
            visible=arrays["visible"].astype(bool) if "visible" in arrays else None,
            box=arrays["box"].astype(np.float64) if "box" in arrays else None,
            yaw=arrays["yaw"].astype(np.float64) if "yaw" in arrays else None,
            pose=arrays["pose"].astype(np.float64) if "pose" in arrays else None,
            split=[str(name) for name in arrays["split"]] if "split" in arrays else None,
            scan=[str(name) for name in arrays["scan"]] if "scan" in arrays else None,
            numbers={
                key: _whole(path, key, arrays[key].astype(np.float64)[:, None]) for key in NUMBERS if key in arrays
            },
        )
    )


def _checked(table: Annotations) -> Annotations:
    if table.split is not None and not set(table.split) <= {"train", "val", "test"}:
        other = sorted(set(table.split) - {"train", "val", "test"})[0]
        raise DataError(f"{table.path} has split {other!r}: use train, val or test.")
    if np.isinf(table.landmarks).any():
        raise DataError(f"{table.path} has an infinite landmark.")
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
        landmark_groups(scheme, mapping)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, and the {scheme}-point scheme ({SCHEMES[scheme].description}) cannot be used "
            f"without it: write a JSON list with {scheme} entries, each a 0-based index among the 68 iBUG points, a "
            "list of them to average, or []."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a map of {scheme} points to the 68: {error}") from error
    return mapping  # type: ignore[no-any-return]
