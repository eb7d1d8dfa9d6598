"""Perspective cameras (focal length, rotation, translation) by Levenberg-Marquardt from an affine camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from lightning_faces.geometry import Camera, euler_to_matrix
from lightning_faces.morphable.fit.camera import CameraFit, check_correspondences, fit_affine, rotation_of
from lightning_faces.morphable.fit.result import kept_cameras

Floats = NDArray[np.float64]

START_DISTANCE = 5000.0
"""Millimetres from the camera to the face at the start; so far away, the camera is nearly affine."""
NEAREST, FARTHEST = 150.0, 1e6
"""Bounds of that distance, mm. Beyond the second, perspective moves no point of a face by a thousandth of its size."""
POINTS = 500
"""Correspondences that are used at most: "only a small subset is needed" (Pix2face 2017, section 3.4.1)."""


@dataclass(eq=False)
class PerspectiveFit(CameraFit):
    """Perspective cameras ``(u w, v w, w) = K [R | T] (X, Y, Z, 1)``, w the distance along the optical axis in mm.

    The camera's own frame is that of computer vision: x right, y down, z away from the camera, the pinhole at 0.

    Attributes:
        focal: ``[B]`` pixels; ``K = [[focal, 0, cx], [0, focal, cy], [0, 0, 1]]``.
        rotation: ``[B, 3, 3]``.
        translation: ``[B, 3]`` millimetres.
    """

    focal: Tensor
    rotation: Tensor
    translation: Tensor


@torch.no_grad()
def fit_perspective(
    points: Tensor,
    image_points: Tensor,
    image_size: tuple[int, int],
    mask: Tensor | None = None,
    affine: CameraFit | None = None,
    seed: int = 0,
) -> PerspectiveFit:
    """Perspective cameras with zero skew and the principal point at the image's centre (Pix2face 2017, section 3.4.1).

    The start is the affine camera, seen from :data:`START_DISTANCE`; SciPy's trust-region Levenberg-Marquardt then
    minimises the squared errors in the image over scale, rotation, translation and the inverse of the distance, in
    which the affine camera is the smooth limit at 0. One face after the other.

    Args:
        points: ``[B, N, 3]``, millimetres, object frame.
        image_points: ``[B, N, 2]`` pixels.
        image_size: Height and width in pixels; the principal point is ``((width - 1) / 2, (height - 1) / 2)``.
        mask: Bool ``[B, N]``, which correspondences to use; those with NaN are left out anyway.
        affine: The start, of the same correspondences; None to fit it here. Its ``inliers`` are what is used.
        seed: Of the affine fit's draws and of the choice where there are more than :data:`POINTS`.

    Returns:
        The cameras. How far away a face is shows in its perspective only, so that ``focal`` and ``translation`` are
        much less certain than their ratio.

    Raises:
        ConfigurationError: If the shapes do not belong together.

    Example:
        >>> points = torch.randn(1, 60, 3, generator=torch.Generator().manual_seed(0)) * 40
        >>> true = torch.tensor([[[600.0, 0, -100, 50000], [0, -600.0, -100, 50000], [0, 0, -1.0, 500]]])
        >>> image = Camera.from_matrix("perspective", true).project(points)[..., :2]
        >>> fit = fit_perspective(points, image, (201, 201))
        >>> round(float(fit.focal[0])), [round(x) for x in fit.translation[0].tolist()]
        (600, [0, 0, 500])
    """
    good = check_correspondences(points, image_points, mask, (2,))
    start = fit_affine(points, image_points, good, seed=seed) if affine is None else affine
    dtype, device, valid, reason = start.residual.dtype, points.device, start.valid.clone(), list(start.reason)
    numbers = np.zeros((points.shape[0], 13))
    for face in torch.nonzero(valid).flatten().tolist():
        rows = torch.nonzero(start.inliers[face]).flatten().cpu().numpy()
        if len(rows) > POINTS:
            rows = np.sort(np.random.default_rng(seed).choice(rows, POINTS, replace=False))
        some, seen = (values[face].double().cpu().numpy()[rows] for values in (points, image_points))
        found = _solve(some, seen, start.camera.pose[face].double().cpu(), image_size)
        if found is None:
            valid[face], reason[face] = False, "the perspective camera did not converge"
        else:
            numbers[face] = found
    values = torch.from_numpy(numbers)
    focal, rotation, translation = values[:, 0], values[:, 1:10].reshape(-1, 3, 3), values[:, 10:]
    extrinsic = torch.cat((rotation, translation[..., None]), dim=2)
    centre = torch.tensor([[(image_size[1] - 1) / 2], [(image_size[0] - 1) / 2]], dtype=torch.float64)
    matrix = torch.cat((focal[:, None, None] * extrinsic[:, :2] + centre * extrinsic[:, 2:], extrinsic[:, 2:]), dim=1)
    matrix[~valid.cpu(), 2, 3] = 1.0
    camera = kept_cameras(Camera.from_matrix("perspective", matrix.to(device, dtype)), valid)
    inliers = start.inliers & valid[:, None]
    error = (camera.project(torch.where(inliers[..., None], points, 0.0))[..., :2] - image_points).square().sum(dim=2)
    residual = (torch.where(inliers, error, 0.0).sum(dim=1) / inliers.sum(dim=1).clamp_min(1)).sqrt()
    return PerspectiveFit(
        camera,
        torch.zeros_like(residual),
        residual,
        inliers,
        valid,
        reason,
        focal.to(device, dtype),
        rotation.to(device, dtype),
        translation.to(device, dtype),
    )


def _solve(points: Floats, image: Floats, pose: Tensor, image_size: tuple[int, int]) -> Floats | None:
    """Focal length, rotation (by rows) and translation ``[13]``, or None without a solution."""
    height, width = image_size
    seen = image - ((width - 1) / 2, (height - 1) / 2)
    first = euler_to_matrix(pose[1:4]).numpy()

    # Unknowns: log scale at the object's origin, rotation from the start, the origin's image, 1000 / distance.
    def unknown(values: Floats) -> tuple[float, Floats, float]:
        turn = rotation_of(torch.from_numpy(values[1:4])).numpy()
        return float(np.exp(values[0])), turn @ first, float(values[6]) / 1000.0

    def error(values: Floats) -> Floats:
        scale, rotation, inverse = unknown(values)
        x, y, z = rotation @ points.T
        shrink = 1.0 - inverse * z
        u = (scale * x + values[4]) / shrink - seen[:, 0]
        v = (values[5] - scale * y) / shrink - seen[:, 1]
        return np.concatenate((u, v))

    reach = float(np.abs(points).max())
    low, high = 1000.0 / FARTHEST, 1000.0 / max(NEAREST, 1.8 * reach)
    start = np.zeros(7)
    start[0] = np.log(float(pose[0]))
    start[4:6] = pose[4:6].numpy() - ((width - 1) / 2, (height - 1) / 2)
    start[6] = min(1000.0 / START_DISTANCE, (low + high) / 2)
    bounds = np.full((2, 7), np.inf)
    bounds[0] = -np.inf
    bounds[:, 6] = low, high
    try:
        solution = least_squares(error, start, method="trf", bounds=bounds, x_scale="jac", xtol=1e-8, max_nfev=200)
    except ValueError:  # numbers that are not finite on the way
        return None
    if not solution.success or not np.isfinite(solution.x).all():
        return None
    scale, rotation, inverse = unknown(solution.x)
    # From y up and z to the viewer to the camera's own axes.
    rotation = rotation * np.array([[1.0], [-1.0], [-1.0]])
    translation = (solution.x[4] / scale, solution.x[5] / scale, 1.0 / inverse)
    return np.array([scale / inverse, *rotation.ravel(), *translation])
