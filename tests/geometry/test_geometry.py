"""Cameras, rotations and alignment against independent NumPy forms and closed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_faces.geometry import (
    apply_similarity,
    box_of_points,
    compose_affine,
    crop_matrix,
    euler_to_matrix,
    face_size,
    invert_affine,
    matrix_to_euler,
    similarity_transform,
    transform_points,
    transform_pose,
    weak_perspective,
)

DOUBLE = torch.float64


def reference_rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """The three factors of 300W-LP's `main_show_with_BFM.m`."""
    c, s = math.cos(pitch), math.sin(pitch)
    rx = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    c, s = math.cos(yaw), math.sin(yaw)
    ry = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    c, s = math.cos(roll), math.sin(roll)
    rz = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return rx @ ry @ rz


def random_angles(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([math.pi, math.pi / 2 - 1e-3, math.pi], dtype=DOUBLE)
    return (torch.rand(count, 3, generator=generator, dtype=DOUBLE) * 2 - 1) * limits


def test_rotation_is_the_300w_lp_product() -> None:
    angles = random_angles(20)
    expected = np.stack([reference_rotation(*row.tolist()) for row in angles])
    np.testing.assert_allclose(euler_to_matrix(angles).numpy(), expected, atol=1e-15)


def test_euler_round_trip() -> None:
    angles = random_angles(1000)
    torch.testing.assert_close(matrix_to_euler(euler_to_matrix(angles)), angles, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("angles", "point", "expected"),
    [
        ((0.5, 0.0, 0.0), (0.0, 0.0, 1.0), "up"),  # +pitch looks up
        ((0.0, 0.5, 0.0), (0.0, 0.0, 1.0), "left"),  # +yaw moves the nose to the image left
        ((0.0, 0.0, 0.5), (0.0, 1.0, 0.0), "right"),  # +roll is clockwise: the forehead goes to the right
    ],
)
def test_signs_of_the_angles(angles: tuple[float, ...], point: tuple[float, ...], expected: str) -> None:
    pose = torch.tensor([1.0, *angles, 0.0, 0.0])
    x, y, _ = weak_perspective(torch.tensor([point]), pose)[0].tolist()
    moved = {"up": (0.0, -math.sin(0.5)), "left": (-math.sin(0.5), 0.0), "right": (math.sin(0.5), -math.cos(0.5))}
    assert (x, y) == pytest.approx(moved[expected], abs=1e-6)


def test_weak_perspective_is_scale_flip_rotation_translation() -> None:
    rng = np.random.default_rng(0)
    points, angles = rng.normal(size=(7, 3)), (0.3, -0.7, 0.2)
    pose = torch.tensor([1.7, *angles, 12.0, -5.0], dtype=DOUBLE)
    expected = 1.7 * points @ (np.diag([1, -1, 1]) @ reference_rotation(*angles)).T + [12.0, -5.0, 0.0]
    np.testing.assert_allclose(weak_perspective(torch.from_numpy(points), pose).numpy(), expected, atol=1e-12)


def test_pose_follows_a_similarity_of_the_image() -> None:
    pose = torch.cat((torch.full((50, 1), 0.8, dtype=DOUBLE), random_angles(50), torch.ones(50, 2, dtype=DOUBLE)), 1)
    points = torch.randn(50, 9, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) * 50
    c, s = 1.3 * math.cos(0.4), 1.3 * math.sin(0.4)
    matrix = torch.tensor([[c, -s, 4.0], [s, c, -2.0]], dtype=DOUBLE).expand(50, 2, 3)
    moved = weak_perspective(points, transform_pose(matrix, pose))
    torch.testing.assert_close(moved, transform_points(matrix, weak_perspective(points, pose)), atol=1e-10, rtol=0)


def test_crop_matrix_keeps_pixel_areas_together() -> None:
    # A box from 10 to 50 with margin 1.5 is a crop of side 60 around 30: its area spans -0.5+0.5 .. in pixel edges.
    matrix = crop_matrix(torch.tensor([10.0, 20.0, 50.0, 40.0], dtype=DOUBLE), image_size=30, margin=1.5)
    edges = torch.tensor([[30 - 30.0, 30 - 30.0], [30 + 30.0, 30 + 30.0]], dtype=DOUBLE)
    torch.testing.assert_close(
        transform_points(matrix, edges), torch.tensor([[-0.5, -0.5], [29.5, 29.5]], dtype=DOUBLE)
    )


def test_affine_inverse_and_composition() -> None:
    first = torch.tensor([[1.2, -0.3, 5.0], [0.4, 0.9, -7.0]], dtype=DOUBLE)
    second = torch.tensor([[0.5, 0.1, 2.0], [-0.2, 1.5, 3.0]], dtype=DOUBLE)
    points = torch.tensor([[3.0, 4.0], [-1.0, 9.0]], dtype=DOUBLE)
    torch.testing.assert_close(transform_points(invert_affine(first), transform_points(first, points)), points)
    torch.testing.assert_close(
        transform_points(compose_affine(second, first), points),
        transform_points(second, transform_points(first, points)),
    )


def test_box_and_face_size() -> None:
    points = torch.tensor([[[0.0, 1.0, 9.0], [8.0, 3.0, 0.0], [2.0, 19.0, 0.0]]])
    assert box_of_points(points).tolist() == [[0.0, 1.0, 8.0, 19.0]]
    assert face_size(points).tolist() == [12.0]
    assert box_of_points(points, torch.tensor([[True, True, False]])).tolist() == [[0.0, 1.0, 8.0, 3.0]]


@pytest.mark.parametrize("with_scale", [True, False])
def test_similarity_recovers_a_known_motion(with_scale: bool) -> None:
    rng = np.random.default_rng(3)
    source = torch.from_numpy(rng.normal(size=(4, 12, 3)))
    rotation = euler_to_matrix(torch.from_numpy(rng.uniform(-1, 1, size=(4, 3))))
    scale = torch.from_numpy(rng.uniform(0.5, 2, size=4)) if with_scale else torch.ones(4, dtype=DOUBLE)
    shift = torch.from_numpy(rng.normal(size=(4, 3)))
    target = apply_similarity(source, scale, rotation, shift)
    found = similarity_transform(source, target, with_scale=with_scale)
    for value, true in zip(found, (scale, rotation, shift)):
        torch.testing.assert_close(value, true, atol=1e-10, rtol=0)


def test_similarity_never_reflects_and_ignores_weightless_points() -> None:
    source = torch.randn(10, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    _, rotation, _ = similarity_transform(source, source * torch.tensor([-1.0, 1.0, 1.0], dtype=DOUBLE))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
    spoiled = source.clone()
    spoiled[3] += 100
    weights = torch.ones(10, dtype=DOUBLE)
    weights[3] = 0
    scale, rotation, shift = similarity_transform(source, spoiled, weights=weights)
    torch.testing.assert_close(apply_similarity(source, scale, rotation, shift)[4:], source[4:])


def test_a_similarity_of_the_plane_is_that_of_the_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(50, 7, 2, generator=generator, dtype=torch.float64)
    # Noise, and in half of them a reflection, of which the proper rotation is wanted that comes nearest.
    mirrored = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(25)
    target = source.flip(-1) * mirrored[:, None, None] + torch.randn(source.shape, generator=generator).double()
    weights = torch.rand(50, 7, generator=generator, dtype=torch.float64)
    scale, rotation, translation = similarity_transform(source, target, weights=weights)
    share = (weights / weights.sum(dim=1, keepdim=True))[..., None]
    centre, aim = (share * source).sum(dim=1), (share * target).sum(dim=1)
    u, singular, vt = torch.linalg.svd((share * (target - aim[:, None])).mT @ (source - centre[:, None]))
    singular[:, 1] *= torch.det(u @ vt)
    expected = u @ torch.diag_embed(torch.stack((torch.ones(50).double(), torch.det(u @ vt)), dim=1)) @ vt
    torch.testing.assert_close(rotation, expected)
    spread = (share * (source - centre[:, None]).square()).sum(dim=(1, 2))
    torch.testing.assert_close(scale, singular.sum(dim=1) / spread)
    torch.testing.assert_close(translation, aim - scale[:, None] * (rotation @ centre[..., None])[..., 0])
    still = similarity_transform(source, torch.zeros_like(source))
    torch.testing.assert_close(still[1], torch.eye(2, dtype=torch.float64).expand(50, 2, 2))
