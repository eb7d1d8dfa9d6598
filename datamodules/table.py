"""The import layout of data sets whose own format is gated or unpublished: pictures and one table of annotations.

A folder with ``annotations.csv`` or ``annotations.npz`` and the pictures that it names. One row is one face:

========================  =====================================================================================
column (CSV)              meaning
========================  =====================================================================================
``file``                  Path of the photograph or video below the folder. The only column that must be there.
``x0 y0 z0 x1 y1 ...``    Landmarks in pixels of the file, 0-based: the centre of the top-left pixel is (0, 0), y
                          points down; z is in pixels too, larger towards the viewer. An empty cell is a coordinate
                          that is not annotated.
``visible0 visible1 ...`` 1 where the landmark is visible, else 0.
``box_x0 ... box_y1``     Face box in pixels; else the tight box of the annotated landmarks.
``yaw``                   Degrees, positive with the nose towards the image left.
``scale pitch yaw_rad roll tx ty``  Weak-perspective pose: px/mm, radians, pixels.
``subject view sequence frame``  Whole numbers; ``frame`` is 0-based and needed for videos.
``split``                 "train", "val" or "test".
``scan``                  Path of the face's 3D scan (OBJ or PLY) below the folder.
========================  =====================================================================================

The NPZ has one array per column group: ``files`` ``[N]``, ``landmarks`` ``[N, L, 3]`` (NaN: not annotated), ``visible``
``[N, L]``, ``box`` ``[N, 4]``, ``yaw`` ``[N]``, ``pose`` ``[N, 6]``, ``subject`` and so on ``[N]``, ``split`` ``[N]``,
``scan`` ``[N]``. ``lightning-faces datasets convert`` writes it from one text file of points per picture.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import FaceDataset
from datamodules.crop import Augmentation, RawFace
from datamodules.files import FileFaceDataModule, FileFaceDataset, OnError, inside, tight_box
from datamodules.images import read_image
from datamodules.splits import check_fraction, hold_out
from datamodules.video import VIDEO_SUFFIXES, video_reader
from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.geometry.landmarks import SCHEMES, embed_landmarks, landmark_groups, num_landmarks

NUMBERS = ("subject", "view", "sequence", "frame")
POSE_COLUMNS = ("scale", "pitch", "yaw_rad", "roll", "tx", "ty")
BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")
Mapping = list[int | list[int]]


@dataclass(frozen=True)
class Annotations:
    """A table of N faces; see the module for units.

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


class TableFaceDataset(FileFaceDataset):
    """Faces of some rows of a table.

    Args:
        name: Name of the data set in records.
        folder: The data set's folder.
        table: Its annotations.
        rows: Rows of the table, in order.
        targets: Target keys to give.
        scheme: Landmark scheme of the table.
        landmark_scheme: Landmark scheme to give: the table's own, or "68" or a subset, with what matches in its place.
        mapping: Map of an unpublished scheme.
        on_error: "raise" or "skip".
        whole_sequences: Keep each sequence on one rank in evaluation.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        table: Annotations,
        rows: NDArray[np.int64],
        targets: frozenset[str],
        scheme: str,
        landmark_scheme: str,
        mapping: Mapping | None = None,
        on_error: OnError = "raise",
        whole_sequences: bool = False,
    ) -> None:
        self.name, self.folder, self.table, self.targets = name, folder, table, targets
        self.scheme, self.landmark_scheme, self.mapping, self.on_error = scheme, landmark_scheme, mapping, on_error
        sequence = table.numbers.get("sequence")
        if whole_sequences and sequence is not None:
            frame = table.numbers.get("frame", np.arange(len(table.file)))
            rows = rows[np.lexsort((frame[rows], sequence[rows]))]
            self.sequence_lengths = np.unique(sequence[rows], return_counts=True)[1].tolist()
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def files(self, index: int) -> tuple[Path, ...]:
        """Photograph or video, and the table."""
        return (self.folder / self.table.file[self.rows[index]], self.table.path)

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes, of the table and of the rows."""
        digest = hashlib.sha256(self.name.encode() + self.table.path.read_bytes() + self.rows.tobytes())
        for index in range(len(self)):
            path = self.files(index)[0]
            digest.update(f"{self.sample_id(index)}:{path.stat().st_size if path.exists() else -1}\n".encode())
        return digest.hexdigest()[:16]

    def sample_id(self, index: int) -> str:
        """Path below the folder, with the frame of a video."""
        row = self.rows[index]
        name = self.table.file[row]
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            return f"{name}#{int(self.table.numbers['frame'][row]):06d}"
        return Path(name).with_suffix("").as_posix()

    def read(self, index: int) -> RawFace:
        """One face."""
        row, table = int(self.rows[index]), self.table
        path = self.files(index)[0]
        if not path.resolve().is_relative_to(self.folder):
            raise DataError(
                f"{table.path} names {table.file[row]}, which is outside {self.folder}: put the file there."
            )
        inside(self.folder, path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            if "frame" not in table.numbers:
                raise DataError(f"{table.path} names the video {table.file[row]} but has no column frame.")
            image = video_reader(path).frame(int(table.numbers["frame"][row]))
        else:
            image = read_image(path)
        points = table.landmarks[row]
        mask = ~np.isnan(points)
        box = self._box(row, points[mask[:, :2].all(axis=1)])
        targets: dict[str, Any] = {}
        if len(points):
            targets["landmarks"], targets["landmark_mask"] = self._in_scheme(np.nan_to_num(points), mask)
            targets["face_size"] = np.float32(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))
        if table.visible is not None:
            shown = np.repeat(table.visible[row][:, None], 3, axis=1)
            targets["visible"] = self._in_scheme(shown.astype(np.float64), np.ones_like(mask))[0][:, 0] > 0
        if table.yaw is not None and np.isfinite(table.yaw[row]):
            targets["yaw"] = np.float32(table.yaw[row])
        if table.pose is not None and np.isfinite(table.pose[row]).all():
            targets["pose"] = table.pose[row].astype(np.float32)
        return RawFace(
            image=image,
            sample_id=self.sample_id(index),
            box=box,
            targets={key: np.asarray(value) for key, value in targets.items() if key in self.targets},
            numbers={key: int(values[row]) for key, values in table.numbers.items()},
        )

    def _box(self, row: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.table.box is not None and np.isfinite(self.table.box[row]).all():
            return tight_box(self.table.box[row].reshape(2, 2), self.table.path)
        if not len(points):
            raise DataError(f"{self.table.path} has neither a box nor landmarks for {self.table.file[row]}: add one.")
        return tight_box(points, self.table.path)

    def _in_scheme(
        self, points: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self.scheme == self.landmark_scheme:
            return points.astype(np.float32), mask
        given, known = embed_landmarks(torch.from_numpy(points), torch.from_numpy(mask), self.scheme, self.mapping)
        places = [group[0] for group in landmark_groups(self.landmark_scheme)]
        return given[places].float().numpy(), known[places].numpy()


class TableFaceDataModule(FileFaceDataModule):
    """A data module of the import layout.

    Args:
        root: The data set's folder or a parent of it.
        val_fraction: Share of the training subjects (or photographs) held out, where the table has no split.
        on_error: "raise" or "skip".
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of splits, sample order and augmentation.
    """

    scheme: ClassVar[str]
    """Landmark scheme of the table."""
    dataset_class: ClassVar[type[TableFaceDataset]] = TableFaceDataset
    landmarks_needed: ClassVar[bool] = True
    whole_sequences: ClassVar[bool] = False
    available_targets = frozenset({"landmarks", "landmark_mask", "visible", "face_size", "yaw", "pose"})

    def __init__(
        self,
        root: str | None = None,
        val_fraction: float = 0.05,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, on_error, image_size, batch_size, num_workers, margin, augmentation, seed)
        self.val_fraction = check_fraction(self.name, val_fraction)

    def test_rows(self, table: Annotations) -> NDArray[np.int64]:
        """Rows of the test split, where the table has no split: all, unless a paper says otherwise."""
        return np.arange(len(table.file))

    def rows(self, split: str, table: Annotations) -> NDArray[np.int64]:
        """Rows of a split."""
        if table.split is None:
            test = self.test_rows(table)
            rest = np.setdiff1d(np.arange(len(table.file)), test)
            if split == "test":
                return test
            has_val = False
        else:
            names = np.array(table.split)
            if split == "test" or (split == "val" and "val" in table.split):
                return np.nonzero(names == split)[0]
            rest = np.nonzero(names == "train")[0]
            has_val = "val" in table.split
        if has_val:
            return rest
        subject = table.numbers.get("subject")
        groups = [table.file[i] if subject is None or subject[i] < 0 else str(subject[i]) for i in rest]
        chosen: NDArray[np.int64] = rest[hold_out(groups, self.val_fraction) == (split == "val")]
        return chosen

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """The rows of a split."""
        if split not in ("train", "val", "test"):
            return None
        folder = self.find()
        table = read_annotations(folder, self.scheme, self.landmarks_needed)
        rows = self.rows(split, table)
        if not len(rows):
            return None
        mapping = read_mapping(folder, self.scheme) if self.landmark_scheme != self.scheme else None
        return self.dataset_class(
            self.name,
            folder,
            table,
            rows,
            targets,
            self.scheme,
            self.landmark_scheme,
            mapping,
            self.on_error,
            self.whole_sequences,
        )
