"""Data sets in the import layout: the machinery of ``datamodules/table.py`` and of all data sets that come that way."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import FaceDataset
from datamodules.components.annotations import Annotations, Mapping, read_annotations, read_mapping
from datamodules.components.files import FileFaceDataModule, FileFaceDataset, OnError, any_case, inside, tight_box
from datamodules.components.images import MAX_PIXELS, read_image
from datamodules.components.splits import check_fraction, hold_out
from datamodules.components.transform import Augmentation, RawFace
from datamodules.components.video import VIDEO_SUFFIXES, video_reader
from lightning_faces.errors import DataError
from lightning_faces.geometry.landmarks import embed_landmarks, landmark_groups


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
        max_pixels: A picture of more is refused.
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
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
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
        path = self.folder / self.table.file[self.rows[index]]
        return (any_case(path) if path.parent.resolve().is_relative_to(self.folder) else path, self.table.path)

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
            number = int(table.numbers["frame"][row])
            if number < 0:
                raise DataError(f"{table.path} names the video {table.file[row]} without a frame: give its number.")
            image = video_reader(path).frame(number)
        else:
            image = read_image(path, max_pixels=self.max_pixels)
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
            source=table.path,
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

    @property
    @abstractmethod
    def scheme(self) -> str:
        """Landmark scheme of the table; a data set with one scheme has it as an attribute of the class."""

    missing: float | None = None
    """Points whose x and y are both this number are not annotated."""
    max_pixels: int = MAX_PIXELS
    """A picture of more is refused."""
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
        table = read_annotations(folder, self.scheme, self.landmarks_needed, self.missing)
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
            self.max_pixels,
        )
