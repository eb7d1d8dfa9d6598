"""Prediction on a video, into a folder: a line for each frame, and the video with its faces drawn."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_faces.errors import DataError
from lightning_faces.predict.folder import FORMAT, NO_FACE, NOT_WRITTEN, UNREADABLE, FolderRun
from lightning_faces.predict.journal import Journal
from lightning_faces.predict.outputs import PredictedPhotograph
from lightning_faces.predict.sources import Source
from lightning_faces.predict.video import Clip, FaceFollower, smooth_tracks

CUT_SHORT = "cut short"
SUFFIX = ".landmarks.mp4"
LINES = 100
"""Frames whose lines are written together."""


def predict_video(run: FolderRun, source: Source, journal: Journal) -> None:
    """Predict the faces of a video, which is read twice: to find and follow them, and to draw them.

    Args:
        run: Of the folder, which counts what is done and skipped.
        source: The video.
        journal: Gets a line per frame, and one for the video.
    """
    stat = run.to_do(source, journal)
    if stat is None:
        return
    boxes = None
    if run.boxes is not None:
        boxes = {frame: found for (name, frame), found in run.boxes.items() if name == source.name}
    try:
        clip = Clip(source.path)
        follower, count = FaceFollower(run.predictor, clip.rate, boxes), 0
        for image in clip:
            follower.look(count, image)
            count += 1
        if count == 0:
            raise DataError(f"{source.path} has no frame that can be read: replace or remove it.")
    except DataError as error:
        run.skip(source, UNREADABLE, str(error), journal)
        return
    tracks = follower.finish()
    if not tracks:
        run.skip(source, NO_FACE, f"{source.path} shows no face that the detector finds.", journal)
        return
    frames = smooth_tracks(tracks, clip.rate)
    drawn = f"{source.name}{SUFFIX}" if "landmarks" in run.kinds else None
    lines: list[dict[str, Any]] = []
    try:
        with VideoFile(None if drawn is None else run.out / drawn, clip.rate) as file:
            for number, image in enumerate(clip):
                followed = frames.get(number, [])
                named = [run.completer.complete(each.face) for each in followed]
                photograph = PredictedPhotograph(image, named, run.meshes)
                faces = [
                    {"track": each.track, "interpolated": each.interpolated, **values}
                    for each, values in zip(followed, photograph.records())
                ]
                lines.append({"format": FORMAT, "image": source.name, "frame": number, "faces": faces})
                if len(lines) == LINES:
                    journal.add(lines)
                    lines = []
                if drawn is not None:
                    file.write(photograph.pictures.landmarks())
    except OSError as error:
        run.skip(source, NOT_WRITTEN, f"{source.path} was predicted, but: {error.strerror or error}.", journal)
        return
    last: dict[str, Any] = {
        **run.line(source, stat), "settings": run.settings, "frames": count, "rate": clip.rate,
        "tracks": [
            {"track": track.number, "first": track.frames[0], "last": track.frames[-1], "found": len(track.frames)}
            for track in tracks
        ],
        "files": {} if drawn is None else {"landmarks": drawn},
    }  # fmt: skip
    if clip.cut_short(count):
        last["cut_short"] = f"{source.path} ends after {count} of the {clip.claimed} frames that it says to have."
        run.summary.skipped[CUT_SHORT] += 1
        run.progress.say(last["cut_short"])
    journal.add([*lines, last])
    run.summary.photographs += 1
    run.summary.faces += len(tracks)
    run.progress.advance()


class VideoFile:
    """An MP4 file that is whole or absent.

    Args:
        path: The file; None writes nothing.
        rate: Frames per second.
    """

    def __init__(self, path: Path | None, rate: float) -> None:
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp.mp4")

    def __enter__(self) -> VideoFile:
        return self

    def write(self, picture: Image.Image) -> None:
        """Add a frame, of the size of the first.

        Raises:
            OSError: If there can be no such file.
        """
        pixels: NDArray[np.uint8] = np.asarray(picture)
        if self._writer is None:
            # The codec halves the resolution of colours.
            self._size = (max(pixels.shape[1] // 2 * 2, 2), max(pixels.shape[0] // 2 * 2, 2))
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, code, self.rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self.path} cannot be written as a video")
        whole = np.zeros((self._size[1], self._size[0], 3), dtype=np.uint8)
        part = pixels[: self._size[1], : self._size[0], ::-1]
        whole[: part.shape[0], : part.shape[1]] = part
        self._writer.write(whole)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        try:
            if error is None and self.path is not None:
                if not self._temporary.is_file() or not self._temporary.stat().st_size:
                    raise OSError(f"{self.path} cannot be written as a video")
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
