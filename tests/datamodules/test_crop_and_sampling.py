"""One matrix moves the image and every target; samplers count each sample once and start again where they stopped."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.crop import RawFace, crop_face, warp_image
from datamodules.sampling import EvaluationSampler, TrainSampler
from lightning_faces.geometry import euler_to_matrix, face_size, transform_points, weak_perspective
from lightning_faces.geometry.landmarks import flip_permutation

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


class Sized(torch.utils.data.Dataset[object]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_sample_once(world: int) -> None:
    seen = [index for rank in range(world) for index, _ in EvaluationSampler(Sized(37), world, rank)]
    assert sorted(seen) == list(range(37))
    assert sum(len(EvaluationSampler(Sized(37), world, rank)) for rank in range(world)) == 37


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_order_is_a_new_permutation_each_epoch_shared_by_ranks(world: int) -> None:
    orders = []
    for epoch in (0, 1):
        ranks = []
        for rank in range(world):
            sampler = TrainSampler(Sized(37), world, rank, seed=5)
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len(keys) == len(sampler) == 37 // world
            assert {draw for _, draw in keys} == {epoch}
            ranks.append([index for index, _ in keys])
        seen = [index for rank_order in ranks for index in rank_order]
        assert len(set(seen)) == len(seen) == 37 // world * world
        # Interleaved, the ranks' orders are the one permutation of any world size.
        orders.append([index for step in zip(*ranks) for index in step])
    assert orders[0] != orders[1]
    single = TrainSampler(Sized(37), 1, 0, seed=5)
    assert orders[0] == [index for index, _ in single][: len(orders[0])]


def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole() -> None:
    whole = list(TrainSampler(Sized(20), 2, 1, seed=1))
    resumed = TrainSampler(Sized(20), 2, 1, seed=1, skip=4, skip_epoch=0)
    assert list(resumed) == whole[4:]
    resumed.set_epoch(1)
    assert len(list(resumed)) == 10
