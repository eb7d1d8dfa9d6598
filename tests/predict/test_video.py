"""Faces of videos: followed, without gaps, smoothed, drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.components.video import count_frames
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.predict.detection import Detections
from lightning_faces.predict.folder import FolderRun
from lightning_faces.predict.journal import Journal
from lightning_faces.predict.predictor import FacePredictor
from lightning_faces.predict.sequence import one_euro
from lightning_faces.predict.sources import Source
from lightning_faces.predict.video import FaceFollower, smooth_tracks
from lightning_faces.predict.video_files import predict_video
from tests.predict.blobs import BlobMethod, RoughDetector, photograph

COUNT = 40
GAP = range(21, 25)


def frame(t: int) -> NDArray[np.uint8]:
    """A rectangle that moves by 2 pixels a frame, and is hidden for a while."""
    if t in GAP:
        return np.full((120, 160, 3), 20, dtype=np.uint8)
    return photograph((20 + 2 * t, 30, 59 + 2 * t, 79))


class CountingDetector(RoughDetector):
    looks = 0

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        self.looks += 1
        return super().__call__(image)


def one_euro_reference(values: NDArray[np.float64], rate: float, least: float, beta: float) -> NDArray[np.float64]:
    """Algorithm 1 of the paper, a number at a time."""

    def alpha(cutoff: float) -> float:
        return 1 / (1 + (1 / (2 * math.pi * cutoff)) * rate)

    out, x, dx = [values[0]], values[0], 0.0
    for value in values[1:]:
        change = (value - x) * rate
        dx = alpha(1.0) * change + (1 - alpha(1.0)) * dx
        a = alpha(least + beta * abs(dx))
        x = a * value + (1 - a) * x
        out.append(x)
    return np.array(out)


def test_the_filter_is_that_of_the_paper() -> None:
    values = torch.randn(50, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cumsum(dim=0)
    found = one_euro(values, 30.0, 1.5, 0.7)
    for i in range(2):
        for k in range(3):
            expected = one_euro_reference(values[:, i, k].numpy(), 30.0, 1.5, 0.7)
            assert found[:, i, k].numpy() == pytest.approx(expected)
    # At rest it takes most of the jitter away; what moves fast lags by less than a frame and a half.
    jitter = 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(2))
    assert one_euro(jitter, 30.0)[20:].std() < 0.4 * jitter.std()
    ramp = torch.arange(60.0) * 0.05
    assert float((ramp - one_euro(ramp, 30.0))[30:].max()) < 1.5 * 0.05


def test_a_face_is_followed_through_a_gap() -> None:
    detector = CountingDetector()
    follower = FaceFollower(FacePredictor(BlobMethod(), detector=detector), rate=25.0)
    for t in range(COUNT):
        follower.look(t, frame(t))
    (track,) = follower.finish()
    assert track.frames == [t for t in range(COUNT) if t not in GAP]
    # At 0, 10, 20, 30, and in the gap; after it the face is near enough to where it was.
    assert detector.looks == 4 + len(GAP)
    frames = smooth_tracks([track], 25.0)
    assert sorted(frames) == list(range(COUNT))
    for t, (face,) in frames.items():
        assert face.interpolated == (t in GAP)
        x0, _, x1, _ = box_of_points(face.face.prediction.landmarks[0]).tolist()
        # The filter lags by at most a frame; the rectangle is found to half a pixel.
        assert -2.6 < (x0 + x1) / 2 - (39.5 + 2 * t) < 0.6


def test_two_faces_stay_apart_and_one_ends() -> None:
    def detect(image: NDArray[np.uint8]) -> Detections:
        left, right = RoughDetector(0.0, 1.1)(image[:, :100]).boxes, RoughDetector(0.0, 1.1)(image[:, 100:]).boxes
        boxes = np.concatenate((left, right + np.array([100, 0, 100, 0])))
        return Detections(boxes, np.ones(len(boxes)))

    class Nearest(BlobMethod):
        """The part of a crop beside the middle is another face's."""

        def predict_faces(self, batch: Any) -> Any:
            image = batch["image"].clone()
            image[..., :6] = image[..., -6:] = 0
            return super().predict_faces({**batch, "image": image})

    follower = FaceFollower(FacePredictor(Nearest(), detector=detect), rate=25.0)
    for t in range(60):
        image = np.full((120, 200, 3), 20, dtype=np.uint8)
        image[30:80, 20 + t // 4 : 60 + t // 4] = 250
        if t < 25:
            image[40:90, 130:170] = 250
        follower.look(t, image)
    first, second = follower.finish()
    assert (first.frames[0], first.frames[-1], second.frames[0], second.frames[-1]) == (0, 59, 0, 24)


class Lines:
    def __init__(self) -> None:
        self.said: list[str] = []

    def advance(self, count: int = 1) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)


def test_a_video_is_written_and_what_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (160, 120))
    for t in range(COUNT):
        writer.write(np.ascontiguousarray(frame(t)[..., ::-1]))
    writer.release()
    out = tmp_path / "out"
    out.mkdir()
    predictor = FacePredictor(BlobMethod(), detector=RoughDetector())

    def run(name: str) -> tuple[FolderRun, Lines]:
        journal, progress = Journal(out), Lines()
        folder = FolderRun(predictor, out, ["json", "landmarks"], None, 4, progress)
        predict_video(folder, Source(tmp_path / name, name), journal)
        journal.close()
        return folder, progress

    folder, progress = run("clip.avi")
    assert (folder.summary.photographs, folder.summary.faces, progress.said) == (1, 1, [])
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    *frames, last = lines
    assert [line["frame"] for line in frames] == list(range(COUNT))
    assert last["tracks"] == [{"track": 1, "first": 0, "last": COUNT - 1, "found": COUNT - len(GAP)}]
    assert (last["frames"], last["rate"]) == (COUNT, 20)
    assert frames[22]["faces"][0]["interpolated"]
    assert frames[30]["faces"][0]["pose"]["yaw"] == pytest.approx(0, abs=2)
    assert count_frames(out / "clip.avi.landmarks.mp4") == COUNT
    capture = cv2.VideoCapture(str(out / "clip.avi.landmarks.mp4"))
    drawn = capture.read()[1].astype(int)
    changed = (np.abs(drawn[..., 1] - drawn[..., 2]) > 60).nonzero()
    assert changed[1].mean() == pytest.approx(39.5, abs=4)
    # It is not predicted again.
    assert run("clip.avi")[0].summary.earlier == 1
    content = path.read_bytes()
    (tmp_path / "short.avi").write_bytes(content[: len(content) // 2])
    folder, progress = run("short.avi")
    assert folder.summary.skipped == {"cut short": 1}
    assert "of the 40 frames that it says to have" in progress.said[0]
    assert folder.summary.photographs == 1
    (tmp_path / "none.mp4").write_bytes(b"no video")
    folder, progress = run("none.mp4")
    assert folder.summary.skipped == {"not readable": 1}
