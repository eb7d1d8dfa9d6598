"""Faces of a video: followed from frame to frame, without gaps, smoothed, and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.components.video import VideoReader
from lightning_faces.batch import FacePrediction
from lightning_faces.errors import DataError
from lightning_faces.geometry.camera import Camera, box_of_points, face_size
from lightning_faces.predict.detection import Detections
from lightning_faces.predict.predictor import FacePredictor, FoundFace
from lightning_faces.predict.sequence import interpolate_misses, one_euro

DETECT_EVERY = 10
"""Frames from one look of the detector at the whole picture to the next, while faces are followed."""
UNCONFIRMED = 3
"""Looks in a row in which the detector may miss a face that is followed (it sees fewer profiles than the network)."""
SECONDS_MISSED = 1.0
"""For which a face may be out of sight and still be the same."""
JUMP = 0.3
"""Share of its side by which a box may move from one frame to the next."""
SAME = 0.3
"""Intersection over union from which on two boxes are of one face."""
DEFAULT_RATE = 25.0


@dataclass
class Track:
    """One face through the frames.

    Attributes:
        number: Which, from 1.
        frames: In which it was found, ascending.
        faces: It, in those frames, without what has the size of an image or a mesh.
        box: Where it was last.
        unconfirmed: Looks of the detector in a row that have missed it.
        confirmed: How many of ``frames`` there were when the detector last saw it.
    """

    number: int
    frames: list[int] = field(default_factory=list)
    faces: list[FoundFace] = field(default_factory=list)
    box: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    unconfirmed: int = 0
    confirmed: int = 0

    def add(self, frame: int, face: FoundFace) -> None:
        """Found in a frame."""
        self.frames.append(frame)
        self.faces.append(replace(face, prediction=light(face.prediction)))
        self.box = box_of_points(face.prediction.landmarks[0].double()).numpy()


class FaceFollower:
    """Follows faces: a face's box is that of its landmarks in the frame before.

    Args:
        predictor: Predicts, and detects.
        rate: Frames per second.
        boxes: Boxes by frame that take the detector's place, or None.
    """

    def __init__(
        self, predictor: FacePredictor, rate: float, boxes: dict[int, NDArray[np.float64]] | None = None
    ) -> None:
        self.predictor, self.rate, self.boxes = predictor, rate, boxes
        self.tracks: list[Track] = []
        self._active: list[Track] = []

    def look(self, frame: int, image: NDArray[np.uint8]) -> None:
        """Take in the next frame, uint8 RGB ``[H, W, 3]``."""
        kept = self._follow(image)
        lost = [track for track in self._active if track.number not in kept]
        if frame % DETECT_EVERY == 0 or lost or not self._active or self.boxes is not None:
            self._detect(frame, image, kept)
        for track in self._active:
            if track.number in kept:
                track.add(frame, kept[track.number])
        most = max(1, round(SECONDS_MISSED * self.rate))
        self._active = [track for track in self._active if track.frames and frame - track.frames[-1] <= most]

    def finish(self) -> list[Track]:
        """All faces; those that the detector saw no more are cut to where it did."""
        for track in self.tracks:
            if track.unconfirmed >= UNCONFIRMED:
                del track.frames[track.confirmed :], track.faces[track.confirmed :]
        return [track for track in self.tracks if track.frames]

    def _follow(self, image: NDArray[np.uint8]) -> dict[int, FoundFace]:
        """The active faces that are near where they were."""
        kept: dict[int, FoundFace] = {}
        for track in self._active:
            try:
                (face,) = self.predictor.find([image], [track.box[None]])[0]
            except DataError:  # it has left the picture
                continue
            box = box_of_points(face.prediction.landmarks[0].double()).numpy()
            if face.believed and np.abs(box - track.box).max() <= JUMP * (track.box[2:] - track.box[:2]).max():
                kept[track.number] = face
        return kept

    def _detect(self, frame: int, image: NDArray[np.uint8], kept: dict[int, FoundFace]) -> None:
        """Let the detector confirm the faces that are followed, find those that are lost, and begin new ones."""
        if self.boxes is None:
            detected = self.predictor.detector(image)
        else:
            given = self.boxes.get(frame, np.zeros((0, 4)))
            detected = Detections(given, np.ones(len(given)))
        free = list(range(len(detected.boxes)))
        for track in list(self._active):
            face = kept.get(track.number)
            box = track.box if face is None else box_of_points(face.prediction.landmarks[0].double()).numpy()
            best = max(free, key=lambda i: overlap(detected.boxes[i], box), default=-1)
            if best >= 0 and overlap(detected.boxes[best], box) >= SAME:
                free.remove(best)
                if face is None or self.boxes is not None:
                    self._find(image, detected, best, track, kept)
                if track.number in kept:
                    track.unconfirmed, track.confirmed = 0, len(track.frames) + 1
            elif face is not None and (self.boxes is None or frame in self.boxes):
                track.unconfirmed += 1
                if track.unconfirmed >= UNCONFIRMED:
                    self._active.remove(track)
                    kept.pop(track.number, None)
        for i in free:
            track = Track(len(self.tracks) + 1)
            if self._find(image, detected, i, track, kept):
                track.confirmed = 1
                self.tracks.append(track)
                self._active.append(track)

    def _find(
        self, image: NDArray[np.uint8], detected: Detections, i: int, track: Track, kept: dict[int, FoundFace]
    ) -> bool:
        one = Detections(detected.boxes[i : i + 1], detected.confidence[i : i + 1])
        if self.boxes is None:
            (face,) = self.predictor.find_at(image, one)
        else:
            (face,) = self.predictor.find([image], [one.boxes])[0]
        if face is None or not face.believed:
            return False
        kept[track.number] = face
        return True


@dataclass(frozen=True)
class FollowedFace:
    """A face in one frame.

    Attributes:
        track: Which face it is.
        face: As in a photograph, smoothed.
        interpolated: Whether it was out of sight in this frame, and lies between its places before and after.
    """

    track: int
    face: FoundFace
    interpolated: bool


def smooth_tracks(tracks: Sequence[Track], rate: float) -> dict[int, list[FollowedFace]]:
    """The faces of each frame, without gaps and jitter.

    Landmarks, coefficients and poses are interpolated over the frames in which a face was not found (Pix2face 2017,
    section 4.1), and smoothed by the One-Euro filter, landmarks in units of the face's size.

    Args:
        tracks: From :meth:`FaceFollower.finish`.
        rate: Frames per second.
    """
    frames: dict[int, list[FollowedFace]] = {}
    for track in tracks:
        first, count = track.frames[0], track.frames[-1] - track.frames[0] + 1
        place = torch.tensor(track.frames) - first
        found = torch.zeros(count, dtype=torch.bool)
        found[place] = True
        given = [face.prediction for face in track.faces]

        def filled(values: list[Tensor], count: int = count, place: Tensor = place, found: Tensor = found) -> Tensor:
            whole = torch.zeros((count, *values[0].shape[1:]), dtype=values[0].dtype)
            whole[place] = torch.cat(values)
            return interpolate_misses(whole, found)

        landmarks = filled([prediction.landmarks for prediction in given])
        size = float(face_size(landmarks).median())
        landmarks = one_euro(landmarks / size, rate) * size
        values: dict[str, Tensor] = {}
        for name in ("coefficients", "visible", "uncertainty"):
            if all(getattr(prediction, name) is not None for prediction in given):
                values[name] = filled([getattr(prediction, name) for prediction in given])
        if "coefficients" in values:
            values["coefficients"] = one_euro(values["coefficients"], rate)
        cameras = [prediction.camera for prediction in given if prediction.camera is not None]
        camera = None
        if len(cameras) == len(given) and all(c.kind == "weak_perspective" for c in cameras):
            unit = torch.tensor([size / 100, 1.0, 1.0, 1.0, size, size])
            camera = Camera.from_pose(one_euro(filled([c.pose for c in cameras]) / unit, rate) * unit)
        whole = FacePrediction(landmarks, camera=camera, **values)  # type: ignore[arg-type]
        at = dict(zip(track.frames, track.faces))
        for t in range(count):
            own = at.get(first + t)
            box = box_of_points(landmarks[t].double()).numpy()
            face = FoundFace(box, own.confidence if own else None, whole.select(slice(t, t + 1)))
            frames.setdefault(first + t, []).append(FollowedFace(track.number, face, own is None))
    return frames


def light(prediction: FacePrediction) -> FacePrediction:
    """A prediction without what is as large as an image or a mesh, so that a long video fits into memory."""
    return replace(prediction, vertices=None, vertex_ids=None, dense={}, dense_mask=None, crop_to_file=None)


def overlap(box: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes.

    Example:
        >>> overlap(np.array([0.0, 0.0, 2.0, 2.0]), np.array([1.0, 0.0, 3.0, 2.0]))
        0.3333333333333333
    """
    inside = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
    both = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - inside
    return float(inside / both) if both > 0 else 0.0


class Clip:
    """The frames of a video, read as often as they are asked for.

    Args:
        path: Its file.

    Raises:
        DataError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = VideoReader(path).capture
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 1 <= rate <= 1000 else DEFAULT_RATE
        self.claimed = int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        capture.release()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        reader = VideoReader(self.path)
        number = 0
        while True:
            try:
                image = reader.frame(number)
            except DataError:
                break
            yield image
            number += 1
        reader.capture.release()

    def cut_short(self, frames: int) -> bool:
        """Whether so many frames are clearly fewer than the file claims to have (its own number is often a bit off)."""
        return frames < 0.98 * self.claimed - 1
