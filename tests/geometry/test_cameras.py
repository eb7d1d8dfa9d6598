"""Cameras as 3x4 matrices: against the weak-perspective formula, a pinhole by hand, and image transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_faces.geometry import Camera, transform_points, weak_perspective

POSE = torch.tensor([[1.3, 0.2, -0.7, 0.4, 30.0, 44.0], [0.8, -0.5, 0.9, -1.2, 10.0, -3.0]], dtype=torch.float64)
POINTS = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 50


def test_a_weak_perspective_camera_projects_as_its_formula() -> None:
    camera = Camera.from_pose(POSE)
    torch.testing.assert_close(camera.project(POINTS), weak_perspective(POINTS, POSE))
    again = Camera.from_matrix("affine", camera.matrix)
    torch.testing.assert_close(again.pose, POSE)
    torch.testing.assert_close(again.project(POINTS), weak_perspective(POINTS, POSE))


def pinhole(distance: float, focal: float) -> torch.Tensor:
    """A pinhole at the distance in front of a frontal object, by the textbook: K [R | t] with x right and y down."""
    intrinsic = np.array([[focal, 0, 50.0], [0, focal, 40.0], [0, 0, 1]])
    extrinsic = np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, distance]])
    return torch.from_numpy(intrinsic @ extrinsic)[None]


def test_a_perspective_camera_is_a_pinhole() -> None:
    camera = Camera.from_matrix("perspective", pinhole(500.0, 1000.0))
    x, y, z = camera.project(torch.tensor([[[10.0, 20.0, 100.0]]], dtype=torch.float64))[0, 0].tolist()
    assert (x, y) == pytest.approx((50 + 1000 * 10 / 400, 40 - 1000 * 20 / 400))
    assert z == pytest.approx(100 * 1000 / 500)  # nearer is larger, at the scale of the origin
    assert camera.pose[0].tolist() == pytest.approx([2.0, 0, 0, 0, 50, 40])


def test_a_far_pinhole_is_weak_perspective() -> None:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.linalg.qr(POINTS[0, :3])[0] * torch.det(torch.linalg.qr(POINTS[0, :3])[0])
    camera = Camera.from_matrix("perspective", pinhole(1e7, 2e7) @ turn)
    difference = camera.project(POINTS[:1]) - weak_perspective(POINTS[:1], camera.pose)
    assert float(difference.abs().max()) < 1e-2


@pytest.mark.parametrize("kind", ["weak_perspective", "affine", "perspective"])
def test_a_camera_follows_a_similarity_of_the_image(kind: str) -> None:
    matrix = torch.tensor([[[2.0, -0.5, 100.0], [0.5, 2.0, 50.0]]], dtype=torch.float64)
    camera = Camera.from_pose(POSE[:1])
    if kind == "affine":
        camera = Camera.from_matrix("affine", camera.matrix)
    if kind == "perspective":
        camera = Camera.from_matrix("perspective", pinhole(500.0, 1000.0))
    moved = camera.transformed(matrix)
    torch.testing.assert_close(moved.project(POINTS[:1]), transform_points(matrix, camera.project(POINTS[:1])))
