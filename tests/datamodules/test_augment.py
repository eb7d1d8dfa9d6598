"""Augmentation moves image and targets together, stays in its documented ranges, and repeats from its seed."""

from __future__ import annotations

import math
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.aflw2000 import AFLW20003D
from datamodules.augment import MildAugmentation, Pix2faceAugmentation, PRNetAugmentation, ZhaoAugmentation
from datamodules.components.transform import Augmentation, crop_face
from datamodules.components.warping import warp_image
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import face_size, invert_affine, transform_points, weak_perspective
from lightning_faces.geometry.landmarks import flip_permutation
from tests.fakes.photographs import face_points, write_aflw2000

ALL: list[Augmentation] = [
    MildAugmentation(),
    ZhaoAugmentation(),
    PRNetAugmentation(flip=0.5),
    Pix2faceAugmentation(flip=0.5),
]
IDS = [type(augmentation).__name__ for augmentation in ALL]


def scales_angles_shifts(augmentation: Augmentation, size: int = 101) -> np.ndarray:
    rows = []
    for seed in range(2000):
        matrix = augmentation.matrix(size, np.random.default_rng(seed))
        scale = math.sqrt(np.linalg.det(matrix[:, :2]))
        assert np.allclose(matrix[:, :2] @ matrix[:, :2].T, scale**2 * np.eye(2))  # a similarity without reflection
        centre = np.array([(size - 1) / 2, (size - 1) / 2, 1.0])
        rows.append((scale, math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])), *(matrix @ centre - centre[:2])))
    return np.array(rows)


def test_zhao_ranges() -> None:
    values = scales_angles_shifts(ZhaoAugmentation())
    assert values[:, 0].min() == pytest.approx(0.5, abs=0.01)
    assert values[:, 0].max() == pytest.approx(2, abs=0.01)
    assert np.median(values[:, 0]) == pytest.approx(1, abs=0.05)
    assert np.abs(values[:, 1]).max() == pytest.approx(10, abs=0.1)


def test_prnet_ranges() -> None:
    values = scales_angles_shifts(PRNetAugmentation())
    assert values[:, 0].min() == pytest.approx(0.9, abs=0.01)
    assert values[:, 0].max() == pytest.approx(1.2, abs=0.01)
    assert np.abs(values[:, 1]).max() == pytest.approx(45, abs=0.2)
    assert np.abs(values[:, 2:]).max() == pytest.approx(10.1, abs=0.1)


def test_pix2face_ranges() -> None:
    values = scales_angles_shifts(Pix2faceAugmentation())
    # Crops of 1 to 1.8 boxes where the plain one is 1.4.
    assert values[:, 0].min() == pytest.approx(1.4 / 1.8, abs=0.01)
    assert values[:, 0].max() == pytest.approx(1.4, abs=0.01)
    assert np.abs(values[:, 1]).max() == pytest.approx(20, abs=0.1)
    # A quarter of the box, which fills the image at crop 1: at most 0.25 * sqrt(2) of it.
    assert 0.25 * 101 < np.hypot(values[:, 2], values[:, 3]).max() < 0.25 * 101 * math.sqrt(2) + 0.1


def test_mild_deviations() -> None:
    values = scales_angles_shifts(MildAugmentation())
    assert values[:, 1].std() == pytest.approx(8, rel=0.06)
    assert values[:, 2:].std() == pytest.approx(2.02, rel=0.06)


def test_zhao_occludes_a_quarter_of_the_images_by_boxes_of_the_eye_distance() -> None:
    landmarks = face_points() * (1, -1, 1) + (100, 100, 0)
    distance = np.linalg.norm(landmarks[45] - landmarks[36])
    assert distance == pytest.approx(90)
    image = np.full((200, 200, 3), 255, dtype=np.uint8)
    sides = []
    for seed in range(800):
        changed = ZhaoAugmentation().appearance(image, landmarks.astype(np.float32), np.random.default_rng(seed))
        rows, columns = np.nonzero(changed[..., 0] == 0)
        if len(rows):
            sides += [np.ptp(rows) + 1, np.ptp(columns) + 1]
            assert len(rows) == sides[-1] * sides[-2]
    assert len(sides) / 2 / 800 == pytest.approx(0.25, abs=0.04)
    assert min(sides) >= round(0.2 * distance)
    assert max(sides) <= round(0.4 * distance)
    assert image.min() == 255  # the input is not written to
    assert ZhaoAugmentation(occlusion=1).appearance(image, None, np.random.default_rng(0)).min() == 255


def test_prnet_gains_and_occluders() -> None:
    image = np.full((128, 128, 3), 100, dtype=np.uint8)
    plain, covered = PRNetAugmentation(occlusion=0), PRNetAugmentation(occlusion=1)
    gains = np.array([plain.appearance(image, None, np.random.default_rng(seed))[0, 0] for seed in range(400)])
    assert gains.min() == pytest.approx(60, abs=2)
    assert gains.max() == pytest.approx(140, abs=2)
    assert np.corrcoef(gains[:, 0], gains[:, 1])[0, 1] < 0.2  # each channel on its own
    for seed in range(20):
        rng = np.random.default_rng(seed)
        changed = covered.appearance(image, None, rng)
        texture = np.abs(changed.astype(int) - np.median(changed, axis=(0, 1))).max(axis=2) > 0
        assert 0.009 < texture.mean() < 2 * 0.3**2 + 0.01


def test_pix2face_balance_and_gamma() -> None:
    image = np.full((16, 16, 3), 128, dtype=np.uint8)
    values = []
    for seed in range(300):
        pixel = Pix2faceAugmentation().appearance(image, None, np.random.default_rng(seed))[0, 0]
        values.append(pixel)
    brightest = np.array(values).max(axis=1)
    assert brightest.min() == pytest.approx(255 * (128 / 255) ** 1.2, abs=3)
    assert brightest.max() == pytest.approx(255 * (128 / 255) ** 0.8, abs=3)
    assert (np.array(values).min(axis=1) < brightest).all()


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_same_seed_same_sample_also_after_pickling(augmentation: Augmentation, tmp_path: Path) -> None:
    module = AFLW20003D(root=str(write_aflw2000(tmp_path / "AFLW2000", 1)), image_size=64)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    raw = dataset.read(0)
    copy = pickle.loads(pickle.dumps(augmentation))
    first = crop_face(raw, 64, 1.3, augmentation, np.random.default_rng(3))
    other = crop_face(raw, 64, 1.3, augmentation, np.random.default_rng(4))
    again = crop_face(raw, 64, 1.3, copy, np.random.default_rng(3))
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again[key]), key
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_targets_of_real_photographs_follow_by_reprojection(augmentation: Augmentation) -> None:
    data = os.environ.get("LIGHTNING_FACES_DATA")
    if not data or not (Path(data) / "aflw2000_3d").is_dir():
        pytest.skip("LIGHTNING_FACES_DATA with aflw2000_3d is not set")
    module = AFLW20003D(num_workers=0)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    lines = (Path(data) / "landmarks" / "bfm_mean_68.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line[:1].isdigit()]
    mean = torch.tensor([[float(value) for value in row[1:]] for row in rows], dtype=torch.float64) / 1000
    flips = 0
    correlations = []
    for index in range(0, len(dataset), 8):
        raw = dataset.read(index)
        sample = crop_face(raw, 128, 1.3, augmentation, np.random.default_rng(index))
        matrix = invert_affine(sample["crop_to_file"].double())
        mirrored = bool(torch.linalg.det(matrix[:, :2]) < 0)
        flips += mirrored
        # Landmarks and their size are the file's, mapped by the sample's own matrix.
        stored = torch.from_numpy(raw.targets["landmarks"]).double()
        stored = stored[flip_permutation(68)] if mirrored else stored
        expected = transform_points(matrix, stored)
        assert (expected - sample["landmarks"]).abs().max() < 1e-2
        assert float(sample["face_size"]) == pytest.approx(float(face_size(expected)), rel=1e-5)
        assert float(sample["yaw"]) == pytest.approx(float(raw.targets["yaw"]) * (-1 if mirrored else 1), abs=1e-3)
        # The augmented pose places a face model where mapping the file's projection does.
        points = mean * mean.new_tensor([-1, 1, 1]) if mirrored else mean
        before = transform_points(matrix, weak_perspective(mean, torch.from_numpy(raw.targets["pose"]).double()))
        after = weak_perspective(points, sample["pose"].double())
        assert (before - after).abs().max() < 2e-2
        # And the picture itself went the same way: mapped back, it is the photograph. Boxes may cover a part of it,
        # and PRNet and pix2face change the colours, so it is the correlation that is asked for.
        back = warp_image(
            (sample["image"].numpy().transpose(1, 2, 0) * 255).astype(np.uint8),
            sample["crop_to_file"].double().numpy(),
            450,
        )
        shown = back.max(axis=2) > 8
        correlations.append(np.corrcoef(back[shown].mean(axis=1), raw.image[shown].mean(axis=1))[0, 1])
    assert np.median(correlations) > 0.95
    assert min(correlations) > 0.6
    assert 3 < flips < 22  # of 25


def test_wrong_ranges_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"scale is \(2.0, 1.0\)"):
        ZhaoAugmentation(scale=(2.0, 1.0))
    with pytest.raises(ConfigurationError, match="flip is 2"):
        MildAugmentation(flip=2)


def test_what_loader_processes_need_is_imported_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    MildAugmentation()
    with pytest.raises(ImportError):
        Pix2faceAugmentation()
