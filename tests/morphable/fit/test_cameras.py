"""Cameras from correspondences: against NumPy and SciPy, known cameras, outliers and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera, euler_to_matrix, weak_perspective
from lightning_faces.morphable.fit import fit_affine, fit_perspective, fit_weak_perspective

from .faces import degrees_between


def cloud(batch: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 40


def noise(like: Tensor, pixels: float, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(seed)) * pixels


POSE = torch.tensor(
    [[1.3, 0.2, -0.7, 0.4, 30, 44], [0.8, -0.5, 1.4, -1.2, 10, -3], [2.0, 0.1, -1.5, 3.0, 0, 0], [1, 0, 0, 0, 5, 5]],
    dtype=torch.float64,
)


def test_affine_is_least_squares() -> None:
    points = cloud(4, 60)
    image = Camera.from_pose(POSE).project(points)[..., :2]
    image = image + noise(image, 3.0)
    fit = fit_affine(points, image, trials=0)
    for face in range(4):
        rows = np.concatenate((points[face].numpy(), np.ones((60, 1))), axis=1)
        solution = np.linalg.lstsq(rows, image[face].numpy(), rcond=None)[0]
        np.testing.assert_allclose(fit.camera.matrix[face, :2].numpy(), solution.T, atol=1e-9)
        error = np.linalg.norm(rows @ solution - image[face].numpy(), axis=1)
        assert float(fit.residual[face]) == pytest.approx(np.sqrt((error**2).mean()))


def test_affine_leaves_outliers_out() -> None:
    points = cloud(4, 200)
    camera = Camera.from_pose(POSE)
    image = camera.project(points)[..., :2]
    image = image + noise(image, 0.2)
    wrong = torch.rand(4, 200, generator=torch.Generator().manual_seed(2)) < 0.4
    image[wrong] += noise(image, 60.0, 3)[wrong] + 20
    fit = fit_affine(points, image)
    assert degrees_between(fit.camera.pose, POSE).max() < 0.2
    assert not bool((fit.inliers & wrong & ((image - camera.project(points)[..., :2]).norm(dim=2) > 2)).any())
    assert (fit.inliers & ~wrong).sum(dim=1).min() > 0.9 * (~wrong).sum(dim=1).min()
    plain = fit_affine(points, image, trials=0)
    assert degrees_between(plain.camera.pose, POSE).max() > 3.0


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    points = cloud(4, 50)
    image = Camera.from_pose(POSE).project(points)[..., :2]
    image = image + noise(image, 8.0)
    whole = fit_affine(points, image).camera.matrix
    assert torch.equal(whole, fit_affine(points, image).camera.matrix)
    torch.testing.assert_close(whole[2:3], fit_affine(points[2:3], image[2:3]).camera.matrix)
    assert not torch.equal(whole, fit_affine(points, image, seed=1).camera.matrix)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weak_perspective_recovers_the_pose(width: int, dtype: torch.dtype) -> None:
    points = cloud(4, 12).to(dtype)
    image = weak_perspective(points, POSE.to(dtype))
    image[..., 2] += 17.0
    fit = fit_weak_perspective(points, image[..., :width])
    assert fit.camera.pose.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 1e-7
    assert degrees_between(fit.camera.pose, POSE).max() < tolerance * 60
    torch.testing.assert_close(fit.camera.pose[:, [0, 4, 5]], POSE[:, [0, 4, 5]].to(dtype), atol=tolerance, rtol=1e-4)
    depth = torch.full((4,), 17.0 if width == 3 else 0.0, dtype=dtype)
    torch.testing.assert_close(fit.depth, depth, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("width", [2, 3])
def test_weak_perspective_is_the_least_squares_solution(width: int) -> None:
    points = cloud(4, 20)
    image = weak_perspective(points, POSE)
    image = (image + noise(image, 6.0))[..., :width]
    mask = torch.rand(4, 20, generator=torch.Generator().manual_seed(5)) < 0.7
    fit = fit_weak_perspective(points, image, mask)
    for face in range(4):
        some, seen = points[face][mask[face]], image[face][mask[face]]

        def error(values: np.ndarray, some: Tensor = some, seen: Tensor = seen) -> np.ndarray:
            found = weak_perspective(some, torch.from_numpy(values[:6]))
            found[:, 2] += float(values[6])
            return (found[:, :width] - seen).flatten().numpy()

        best = least_squares(error, np.append(POSE[face].numpy(), 0.0), xtol=1e-12)
        reached = np.sqrt(2 * best.cost / len(some))
        assert float(fit.residual[face]) == pytest.approx(reached, rel=1e-4)


def pinhole(points: Tensor, distance: Tensor, focal: Tensor, pose: Tensor) -> tuple[Camera, Tensor]:
    """Pinholes ``K [R | T]`` by the textbook, for an image of 200 x 300 pixels, and the rotations R."""
    rotation = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)) @ euler_to_matrix(pose[:, 1:4])
    translation = torch.stack((torch.full_like(distance, 8.0), torch.full_like(distance, -5.0), distance), dim=1)
    intrinsic = torch.zeros(len(pose), 3, 3, dtype=torch.float64)
    intrinsic[:, 0, 0] = intrinsic[:, 1, 1] = focal
    intrinsic[:, 0, 2], intrinsic[:, 1, 2], intrinsic[:, 2, 2] = 149.5, 99.5, 1.0
    matrix = intrinsic @ torch.cat((rotation, translation[..., None]), dim=2)
    return Camera.from_matrix("perspective", matrix), rotation


def test_perspective_recovers_focal_length_rotation_and_translation() -> None:
    points = cloud(4, 80)
    distance = torch.tensor([350.0, 500, 900, 2000], dtype=torch.float64)
    camera, rotation = pinhole(points, distance, 1.5 * distance, POSE)
    image = camera.project(points)[..., :2]
    fit = fit_perspective(points, image, (200, 300))
    assert fit.valid.all()
    torch.testing.assert_close(fit.focal, 1.5 * distance, rtol=1e-5, atol=0)
    torch.testing.assert_close(fit.rotation, rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(fit.translation[:, 2], distance, rtol=1e-5, atol=0)
    torch.testing.assert_close(fit.camera.project(points)[..., :2], image, atol=1e-4, rtol=0)
    # What the affine camera leaves: the perspective itself.
    assert fit_affine(points, image, trials=0).residual[0] > 2.0


def test_a_perspective_camera_of_orthographic_points_stays_far_away() -> None:
    points = cloud(4, 80)
    image = weak_perspective(points, POSE)[..., :2]
    fit = fit_perspective(points, image, (200, 300))
    assert fit.translation[:, 2].min() > 1e5
    torch.testing.assert_close(fit.camera.project(points)[..., :2], image, atol=0.2, rtol=0)


@pytest.mark.parametrize("kind", ["affine", "weak_perspective", "perspective"])
def test_bad_faces_are_named_and_the_batch_goes_on(kind: str) -> None:
    points = cloud(7, 40)
    pose = POSE[:1].expand(7, -1)
    image = weak_perspective(points, pose)[..., :2]
    mask = torch.ones(7, 40, dtype=torch.bool)
    mask[1] = False
    mask[2, 3:] = False
    points[3] = torch.arange(40.0, dtype=torch.float64)[:, None]  # on a line
    image[4] = torch.arange(40.0, dtype=torch.float64)[:, None]
    image[5] = float("nan")
    points[6, :5] = float("inf")
    fits = {"affine": fit_affine, "weak_perspective": fit_weak_perspective}
    fit = fits[kind](points, image, mask) if kind in fits else fit_perspective(points, image, (200, 300), mask)
    assert fit.valid.tolist() == [True, False, False, False, False, False, True]
    expected = (
        "no valid points",
        "3 valid points, at least 4",
        "object points lie on",
        "image points lie on",
        "no valid",
    )
    assert fit.reason[0] == fit.reason[6] == ""
    for reason, part in zip(fit.reason[1:6], expected):
        assert part in reason
    for values in (fit.camera.matrix[:, :2], fit.camera.pose, fit.residual, fit.camera.project(cloud(7, 4))):
        assert values.isfinite().all()
        assert (values[1:6] == 0).all()
    assert degrees_between(fit.camera.pose[[0, 6]], pose[[0, 6]]).max() < 1e-2


def test_points_in_a_plane_fix_a_weak_perspective_camera_but_no_affine_one() -> None:
    points = cloud(1, 30)
    points[..., 2] = 0.0
    image = weak_perspective(points, POSE[:1])[..., :2]
    assert fit_affine(points, image).reason == ["its object points lie in a plane"]
    found = fit_weak_perspective(points, image).camera.project(points)[..., :2]
    torch.testing.assert_close(found, image, atol=1e-3, rtol=0)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Image points have shape \(4, 9, 2\): give \[4, 10, 2\]"):
        fit_affine(cloud(4, 10), cloud(4, 9)[..., :2])
    with pytest.raises(ConfigurationError, match=r"mask has shape \(10,\)"):
        fit_weak_perspective(cloud(4, 10), cloud(4, 10), torch.ones(10))
