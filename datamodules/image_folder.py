"""Photographs and videos without labels, for prediction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.base import FaceDataset
from datamodules.components.annotations import read_rows, to_number
from datamodules.components.files import FileFaceDataModule, FileFaceDataset, OnError, inside, walk_files, warn_left_out
from datamodules.components.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from datamodules.components.options import check_number
from datamodules.components.transform import RawFace
from datamodules.components.video import VIDEO_SUFFIXES, count_frames, video_reader
from lightning_faces.errors import DataError


@dataclass(frozen=True)
class Face:
    """One face to predict.

    Attributes:
        path: Photograph or video.
        frame: Number of the frame of a video, -1 for a photograph.
        sequence: Number of the video, -1 for a photograph.
        box: Face box (x0, y0, x1, y1) in pixels of the (upright) picture; None takes the whole picture.
        number: Which face of its picture.
    """

    path: Path
    frame: int
    sequence: int
    box: tuple[float, float, float, float] | None
    number: int


class ImageFolderDataset(FileFaceDataset):
    """Faces in photographs and frames of videos; for arguments, see :class:`ImageFolder`."""

    name = "ImageFolder"

    def __init__(
        self, folder: Path, boxes: Path | None, on_error: OnError = "raise", max_pixels: int = MAX_PIXELS
    ) -> None:
        self.max_pixels, self.boxes = max_pixels, boxes
        self.folder, self.on_error, self.targets = folder, on_error, frozenset()
        known = None if boxes is None else read_boxes(boxes)
        self.faces: list[Face] = []
        videos = 0
        for path in walk_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                frames, sequence = [-1], -1
            else:
                frames, sequence = self._frames(path), videos
                videos += 1
            name = path.relative_to(folder).as_posix()
            for frame in frames:
                here = [None] if known is None else known.pop((name, frame), [])
                self.faces += [Face(path, frame, sequence, box, number) for number, box in enumerate(here)]
        if known:
            name, frame = next(iter(known))
            what = name if frame < 0 else f"{name} frame {frame}"
            raise DataError(f"{boxes} has a box for {what}, which is not in {folder}: correct its column file.")
        lengths: dict[int, int] = defaultdict(int)
        for face in self.faces:
            lengths[face.sequence] += 1
        singles = lengths.pop(-1, 0)
        # Where there are photographs too, they lie anywhere between the videos.
        self.sequence_lengths = list(lengths.values()) if lengths and not singles else None

    def _frames(self, path: Path) -> list[int]:
        try:
            return list(range(count_frames(inside(self.folder, path))))
        except DataError:
            return [0]  # reading it says what is wrong, or skips and counts it

    def __len__(self) -> int:
        return len(self.faces)

    def files(self, index: int) -> tuple[Path, ...]:
        """The photograph or video."""
        return (self.faces[index].path,)

    def sample_id(self, index: int) -> str:
        """Path in the folder, with the frame of a video and the number of a second face."""
        face = self.faces[index]
        name = face.path.relative_to(self.folder).as_posix()
        if face.frame >= 0:
            name = f"{name}#{face.frame:06d}"
        return name if face.number == 0 else f"{name}@{face.number}"

    def read(self, index: int) -> RawFace:
        """One face; photographs are turned upright by their EXIF orientation."""
        face = self.faces[index]
        path = inside(self.folder, face.path)
        image = read_image(path, True, self.max_pixels) if face.frame < 0 else video_reader(path).frame(face.frame)
        return RawFace(
            image=image,
            sample_id=self.sample_id(index),
            box=self._whole(image) if face.box is None else np.array(face.box, dtype=np.float64),
            numbers={"sequence": face.sequence, "frame": face.frame},
            source=self.boxes,
        )

    def _whole(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The box whose crop, margin included, is the square around the whole picture."""
        height, width = image.shape[:2]
        half = max(height, width) / self.margin / 2
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.concatenate((centre - half, centre + half))


def read_boxes(path: Path) -> dict[tuple[str, int], list[tuple[float, float, float, float] | None]]:
    """Face boxes of a CSV file with the columns file, x0, y0, x1, y1 and, for videos, frame.

    Returns:
        (file, frame, which is -1 for a photograph) to boxes.

    Raises:
        DataError: If the file cannot be read, a column is missing or a box has no area.
    """
    header, rows = read_rows(path)
    missing = [name for name in ("file", "x0", "y0", "x1", "y1") if name not in header]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]}: give the columns file, x0, y0, x1, y1 and, for videos, frame."
        )
    boxes: dict[tuple[str, int], list[tuple[float, float, float, float] | None]] = defaultdict(list)
    for line, row in rows:
        cells = dict(zip(header, row))
        x0, y0, x1, y1 = (to_number(path, line, key, cells[key]) for key in ("x0", "y0", "x1", "y1"))
        if not (x1 > x0 and y1 > y0 and np.isfinite([x0, y0, x1, y1]).all()):
            raise DataError(f"{path} line {line} has the box ({x0}, {y0}, {x1}, {y1}), which has no area.")
        frame = to_number(path, line, "frame", cells.get("frame", ""))
        if not (np.isnan(frame) or (frame.is_integer() and -1 <= frame < 2**31)):
            raise DataError(f"{path} line {line} column frame is {frame:g}, not the number of a frame.")
        boxes[cells["file"], -1 if np.isnan(frame) else int(frame)].append((x0, y0, x1, y1))
    return dict(boxes)


class ImageFolder(FileFaceDataModule):
    """All photographs and videos below a folder, to predict on; there are no labels.

    Args:
        root: The folder.
        boxes: CSV file with face boxes, columns file (path below the root), x0, y0, x1, y1 in pixels of the upright
            picture (the centre of its first pixel is (0, 0)) and, for videos, frame (0-based). A picture with several
            boxes gives several samples, one without any gives none. Without the file, each picture is taken whole.
        max_megapixels: Photographs of more million pixels are refused before they are decoded.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
    """

    folders = ()
    source = "Give data option root, a folder of photographs or videos."
    available_targets: frozenset[str] = frozenset()

    def __init__(
        self,
        root: str,
        boxes: str | None = None,
        max_megapixels: float = MAX_PIXELS / 1e6,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
    ) -> None:
        super().__init__(root, on_error, image_size, batch_size, num_workers, margin)
        check_number("ImageFolder option max_megapixels", max_megapixels, 0.001)
        self.max_pixels = int(max_megapixels * 1e6)
        self.boxes = None if boxes is None else Path(boxes).expanduser()

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """The folder, to predict on."""
        if split != "predict":
            return None
        dataset = ImageFolderDataset(self.find(), self.boxes, self.on_error, self.max_pixels)
        warn_left_out(dataset.folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES, self.name)
        if not len(dataset):
            raise DataError(f"There are no photographs or videos with a face in {dataset.folder}: {self.source}")
        return dataset
