"""Frames of videos by number."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


def _open(path: Path) -> cv2.VideoCapture:
    if not path.exists():
        raise DataError(f"Video {path} does not exist.")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise DataError(f"{path} is not a video that can be read: replace or remove it.")
    return capture


def count_frames(path: Path) -> int:
    """Number of frames that can be read; the container's own number is often wrong, so they are stepped through.

    Raises:
        DataError: If there is none.
    """
    capture = _open(path)
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    if count == 0:
        raise DataError(f"{path} has no frame that can be read: replace or remove it.")
    return count


class VideoReader:
    """Frames of one video; going forward by one decodes one frame, anything else starts again at the beginning.

    Seeking is not used: with most codecs it lands on a neighbouring frame without saying so.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.next = path, 0
        self.capture = _open(path)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number`` (0-based), uint8 RGB ``[H, W, 3]``.

        Raises:
            DataError: If the video ends before it.
        """
        if number < self.next:
            self.capture.release()
            self.capture, self.next = _open(self.path), 0
        while self.next < number:
            if not self.capture.grab():
                raise DataError(f"{self.path} has no frame {number}: it ends after {self.next}.")
            self.next += 1
        done, image = self.capture.read()
        if not done:
            raise DataError(f"{self.path} has no frame {number}: it ends after {self.next}.")
        self.next += 1
        return np.ascontiguousarray(image[..., ::-1])


@lru_cache(maxsize=4)
def _reader(path: Path, process: int) -> VideoReader:
    return VideoReader(path)


def video_reader(path: Path) -> VideoReader:
    """The reader of a video, kept open by this process (a fork must not share its parent's position in the file)."""
    return _reader(path, os.getpid())
