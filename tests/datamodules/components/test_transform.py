"""One matrix moves the image and every target."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.components.transform import Crop, RawFace, crop_face
from datamodules.components.warping import warp_image, warp_images
from lightning_faces.errors import DataError
from lightning_faces.geometry import euler_to_matrix, face_size, transform_points, weak_perspective
from lightning_faces.geometry.landmarks import flip_permutation
from lightning_faces.targets import TARGETS

ROTATION, SCALE = math.radians(20), 1.2


class Turn:
    """A known rotation and scale about the crop's centre, always or never mirrored."""

    def __init__(self, flip: float) -> None:
        self.flip = flip

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        centre = (image_size - 1) / 2
        return cv2.getRotationMatrix2D((centre, centre), -math.degrees(ROTATION), SCALE)

    def appearance(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        return image


def raw_face(seed: int = 0) -> tuple[RawFace, torch.Tensor]:
    """A face whose landmarks are drawn into the image as bright dots, with its object points."""
    rng = np.random.default_rng(seed)
    pose = torch.tensor([1.0, 0.1, -0.5, 0.2, 120.0, 100.0], dtype=torch.float64)
    vertices = torch.from_numpy(rng.uniform(-40, 40, size=(68, 3)))
    points = weak_perspective(vertices, pose)
    image = np.zeros((200, 240, 3), dtype=np.float32)
    rows, columns = np.mgrid[0:200, 0:240]
    x, y = points[30, :2].tolist()
    image += 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2))[..., None]
    targets = {
        "landmarks": points.float().numpy(),
        "landmark_mask": np.ones((68, 3), dtype=bool),
        "visible": np.arange(68) % 2 == 0,
        "face_size": np.zeros((), dtype=np.float32),
        "yaw": np.float32(math.degrees(-0.5)),
        "pose": pose.float().numpy(),
        "vertices": points.float().numpy(),
        "position_map": points.float().numpy().T.reshape(3, 4, 17),
    }
    box = np.array([80.0, 60.0, 160.0, 140.0])
    return RawFace(image.round().astype(np.uint8), "face", box, targets), vertices


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("image_size", [64, 97])
def test_every_target_follows_the_image(flip: float, image_size: int) -> None:
    raw, vertices = raw_face()
    sample = crop_face(raw, image_size, 1.4, Turn(flip), np.random.default_rng(0))
    landmarks = sample["landmarks"].double()
    # The dot that was drawn at landmark 30 is where landmark 30 (or its mirror, itself) went.
    plane = sample["image"][0].double()
    rows, columns = torch.meshgrid(torch.arange(image_size), torch.arange(image_size), indexing="ij")
    centroid = torch.stack(((plane * columns).sum(), (plane * rows).sum())) / plane.sum()
    torch.testing.assert_close(centroid, landmarks[30, :2], atol=0.05, rtol=0)
    # The pose that came along projects the object points to the landmarks.
    objects = vertices if not flip else (vertices * torch.tensor([-1.0, 1.0, 1.0]))[flip_permutation(68)]
    projected = weak_perspective(objects.double(), sample["pose"].double())
    torch.testing.assert_close(projected, landmarks, atol=1e-3, rtol=0)
    # And the way back to the file.
    back = transform_points(sample["crop_to_file"].double(), landmarks)
    expected = torch.from_numpy(raw.targets["landmarks"]).double()
    torch.testing.assert_close(back, expected[flip_permutation(68)] if flip else expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(sample["face_size"], face_size(sample["landmarks"]))
    assert float(sample["yaw"]) == pytest.approx(math.degrees(0.5) if flip else math.degrees(-0.5), abs=1e-4)
    if flip:
        assert "vertices" not in sample
        assert "position_map" not in sample
        assert sample["visible"].tolist() == [bool(v) for v in (flip_permutation(68) % 2 == 0)]
    else:
        torch.testing.assert_close(sample["position_map"].reshape(3, -1).T, sample["landmarks"])


def test_the_plain_crop_shows_the_box_with_its_margin() -> None:
    raw, _ = raw_face()
    sample = crop_face(raw, 56, 1.4, None, np.random.default_rng(0))
    # 80 px of box in 112 px of crop in 56 px: half scale around the crop centre 27.5.
    torch.testing.assert_close(sample["box"], torch.tensor([7.5, 7.5, 47.5, 47.5]), atol=1e-4, rtol=0)


def test_shrinking_does_not_alias_and_outside_is_black() -> None:
    stripes = np.zeros((400, 400, 1), dtype=np.uint8)
    stripes[:, ::2] = 255
    matrix = np.array([[0.1, 0, -0.45], [0, 0.1, -0.45]])
    small = warp_image(stripes, matrix, 40)
    assert float(small[2:-2, 2:-2].astype(float).std()) < 3
    assert float(small[2:-2, 2:-2].astype(float).mean()) == pytest.approx(127.5, abs=3)
    outside = warp_image(stripes, np.array([[1.0, 0, 1000], [0, 1, 1000]]), 40)
    assert outside.shape == (40, 40, 1)
    assert int(outside.max()) == 0


def test_warping_a_part_equals_warping_the_whole() -> None:
    image = np.random.default_rng(0).integers(0, 255, size=(300, 320, 3), dtype=np.uint8)
    turn = euler_to_matrix(torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64))[:2, :2].numpy()
    matrix = np.concatenate((turn, [[-90.0], [-60.0]]), axis=1)
    whole = cv2.warpAffine(image, matrix, (80, 80), flags=cv2.INTER_LINEAR)
    difference = np.abs(warp_image(image, matrix, 80).astype(int) - whole)
    # OpenCV rounds coordinates to 1/32 px, differently for another origin.
    assert int(difference.max()) <= 12
    assert float(difference.mean()) < 1.0


@pytest.mark.parametrize(
    "box", [[300.0, 20, 380, 100], [-90.0, 20, -10, 100], [60.0, 220, 140, 300], [160.0, -78, 240, 2]]
)
def test_a_face_outside_its_picture_is_no_sample(box: list[float]) -> None:
    raw, _ = raw_face()  # the picture is 240 x 200
    raw.box = np.array(box, dtype=np.float64)
    with pytest.raises(DataError, match=r"Sample face has a face box .* outside its picture of 240 x 200 pixels"):
        crop_face(raw, 64, 1.4, None, np.random.default_rng(0))
    raw.box = np.array([200.0, 20, 280, 100])  # half of it
    assert crop_face(raw, 64, 1.4, None, np.random.default_rng(0))["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [9, 9, 5, 20], [0, 0, np.inf, 9], [np.nan, 0, 9, 9], [0, 0, 1e300, 9]])
def test_a_box_that_is_none_is_named(box: list[float]) -> None:
    raw, _ = raw_face()
    raw.box = np.array(box, dtype=np.float64)
    with pytest.raises(DataError, match=r"has the face box .* which is none"):
        crop_face(raw, 64, 1.4, None, np.random.default_rng(0))


def test_a_picture_longer_than_opencv_takes() -> None:
    image = np.zeros((2_000, 40_000, 3), dtype=np.uint8)
    image[:, 20_000:30_000] = 200
    raw = RawFace(image, "wide", np.array([0.0, 0, 39_999, 1_999]))
    whole = crop_face(raw, 64, 1.0, None, np.random.default_rng(0))["image"][0]
    # The bright quarter is 16 of 64 columns, and the picture 3.2 of 64 rows.
    assert float(whole[31].sum()) == pytest.approx(200 / 255 * 16, rel=0.02)
    assert np.nonzero(whole.sum(dim=1))[:, 0].tolist() == [30, 31, 32, 33]
    assert whole[31, 33:47].min() > 0.7
    assert whole[31, :31].max() == 0
    raw.box = np.array([29_900.0, 900, 30_099, 1_099])
    near = crop_face(raw, 64, 1.0, None, np.random.default_rng(0))["image"][0]
    assert float(near.mean()) == pytest.approx(100 / 255, abs=0.02)
    flat = warp_image(image[:1], np.array([[64 / 40_000, 0, 0], [0, 64 / 40_000, 0]]), 64)
    assert flat[0, 33:47].min() == 200
    assert flat[1:].max() == 0


def test_halving_first_keeps_places() -> None:
    """A spot in a picture that is shrunk 40 times, in two ways: halved first, or all at once by a mean over blocks."""
    image = np.zeros((2560, 2560, 1), dtype=np.float32)
    image[1000:1200, 600:700] = 1.0
    scale = 1 / 40
    small = warp_image(image, np.array([[scale, 0, scale / 2 - 0.5], [0, scale, scale / 2 - 0.5]]), 64)[..., 0]
    rows, columns = np.mgrid[0:64, 0:64]
    assert float((small * columns).sum() / small.sum()) == pytest.approx((649.5 + 0.5) * scale - 0.5, abs=0.02)
    assert float((small * rows).sum() / small.sum()) == pytest.approx((1099.5 + 0.5) * scale - 0.5, abs=0.02)
    assert float(small.sum()) == pytest.approx(200 * 100 * scale**2, rel=0.02)


def test_every_row_of_the_table_moves_the_same_for_one_face_and_for_a_batch() -> None:
    """All targets of four faces, two of them mirrored, through the loader and as a batch."""
    rng = np.random.default_rng(3)
    faces = [raw_face(seed)[0] for seed in range(4)]
    for raw in faces:
        maps = {"pncc": 3, "offsets": 3, "face_mask": 1}
        raw.targets |= {key: rng.normal(size=(n, 200, 240)).astype(np.float32) for key, n in maps.items()}
        raw.targets["coefficients"] = rng.normal(size=7).astype(np.float32)
    assert set(faces[0].targets) == set(TARGETS)
    flips = [0.0, 1.0, 0.0, 1.0]
    single = [crop_face(raw, 64, 1.4, Turn(flip), rng) for raw, flip in zip(faces, flips)]
    boxes = torch.from_numpy(np.stack([raw.box for raw in faces]))
    change = torch.from_numpy(Turn(0.0).matrix(64, rng)).expand(4, 2, 3)
    crop = Crop.of_box(boxes, 64, 1.4, change, torch.tensor(flips) > 0)
    given = {key: torch.from_numpy(np.stack([raw.targets[key] for raw in faces])) for key in TARGETS}
    together = crop.targets(given, lambda maps, matrix: warp_images(maps, matrix, 64, nearest=True))
    for key, row in TARGETS.items():
        for i, sample in enumerate(single):
            if row.mirrors == "drop" and flips[i]:
                assert key not in sample
                assert not together[key][i].any()
            elif row.moves == "image":
                assert float((together[key][i] != sample[key]).float().mean()) < 0.02, key
            else:
                torch.testing.assert_close(together[key][i], sample[key], atol=1e-4, rtol=0, msg=key)
    torch.testing.assert_close(crop.frame()["box"], torch.stack([s["box"] for s in single]), atol=1e-4, rtol=0)
