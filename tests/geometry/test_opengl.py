"""OpenGL's clip coordinates come out at the pixel of the camera, and are projection times model-view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera, opengl_matrix

WIDTH, HEIGHT = 320, 200
POSE = torch.tensor([[1.3, 0.2, -0.7, 0.4, 150.0, 90.0], [0.8, -0.5, 0.9, -1.2, 170.0, 100.0]], dtype=torch.float64)
POINTS = torch.randn(2, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 50


def cameras() -> dict[str, Camera]:
    weak = Camera.from_pose(POSE)
    intrinsic = torch.tensor([[900.0, 0, 159.5], [0, 900, 99.5], [0, 0, 1]], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    shift = torch.tensor([[5.0], [-9], [700]], dtype=torch.float64).expand(2, 3, 1)
    sheared = weak.matrix.clone()
    sheared[:, 0, :3] += 0.1 * sheared[:, 1, :3]
    return {
        "weak_perspective": weak,
        "affine": Camera.from_matrix("affine", sheared),
        # Homogeneous: any factor is the same camera.
        "perspective": Camera.from_matrix("perspective", -0.01 * intrinsic @ torch.cat((rotation, shift), dim=2)),
    }


@pytest.mark.parametrize("kind", ["weak_perspective", "affine", "perspective"])
def test_points_come_out_at_the_same_pixel(kind: str) -> None:
    camera = cameras()[kind]
    matrix = opengl_matrix(camera, WIDTH, HEIGHT).numpy()
    homogeneous = np.concatenate((POINTS.numpy(), np.ones((2, 50, 1))), axis=2)
    clip = np.einsum("bij,bnj->bni", matrix, homogeneous)
    assert (clip[..., 3] > 0).all(), "in front of the camera"
    device = clip[..., :3] / clip[..., 3:]
    # OpenGL's viewport: -1 is the left or bottom edge of the image, 1 the right or top; pixel 0 has its centre at 0.5.
    u = (device[..., 0] + 1) / 2 * WIDTH - 0.5
    v = (1 - device[..., 1]) / 2 * HEIGHT - 0.5
    image = camera.project(POINTS).numpy()
    np.testing.assert_allclose(u, image[..., 0], atol=1e-9)
    np.testing.assert_allclose(v, image[..., 1], atol=1e-9)
    assert (np.abs(device[..., 2]) < 1).all()
    assert all((np.argsort(device[b, :, 2]) == np.argsort(-image[b, :, 2])).all() for b in range(2)), (
        "nearer is smaller"
    )


def test_it_is_projection_times_model_view() -> None:
    """A camera that looks down its negative z axis, y up, with the frustum that OpenGL's textbooks give."""
    camera = cameras()["perspective"]
    extrinsic = np.linalg.inv([[900.0, 0, 159.5], [0, 900, 99.5], [0, 0, 1]]) @ camera.matrix.numpy() / -0.01
    view = np.zeros((2, 4, 4))
    view[:, :3], view[:, 3, 3] = np.diag([1.0, -1, -1]) @ extrinsic, 1
    near, far = 400.0, 1000.0
    left, right = -160 / 900 * near, 160 / 900 * near
    bottom, top = -100 / 900 * near, 100 / 900 * near
    frustum = np.array([
        [2 * near / (right - left), 0, (right + left) / (right - left), 0],
        [0, 2 * near / (top - bottom), (top + bottom) / (top - bottom), 0],
        [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
        [0, 0, -1, 0],
    ])  # fmt: skip
    # The textbook's near and far planes lie at 400 and 1000 mm: 300 before and behind the origin, 700 mm away.
    np.testing.assert_allclose(opengl_matrix(camera, WIDTH, HEIGHT).numpy(), frustum @ view, atol=1e-9)


def test_a_camera_within_the_reach_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="700 mm from the object, within the reach of 800 mm"):
        opengl_matrix(cameras()["perspective"], WIDTH, HEIGHT, reach=800)
