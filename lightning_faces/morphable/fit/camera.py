"""Weak-perspective and affine cameras from correspondences between object points and image points, batched.

Object frame: millimetres, x to the image right of a frontal face, y up, z towards the viewer. Image frame: pixels, x
right, y down, the centre of the top-left pixel at (0, 0), z larger towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera, matrix_to_euler, similarity_transform
from lightning_faces.morphable.fit.checks import FLAT, Verdict, as_points, spread, usable, weighted_mean
from lightning_faces.morphable.fit.result import kept_cameras

SCORED = 128
"""Correspondences that a sampled camera is judged on."""
OUTLIER = 6.64
"""An outlier's squared error over the median: beyond 99 % of a normal distribution in the plane (chi-square with two
degrees of freedom: 9.21 / 1.386)."""


@dataclass(eq=False)
class CameraFit:
    """Cameras of a batch of faces.

    Attributes:
        camera: Of a face that is not valid, all 0 but the last element.
        depth: ``[B]`` pixels to add to the camera's depths, where image points with z were given; else 0.
        residual: ``[B]``, root mean square distance in the image of the points that the camera was fitted to, pixels.
        inliers: Bool ``[B, N]``, which points those are.
        valid: Bool ``[B]``.
        reason: Why a face is not valid, "" where it is.
    """

    camera: Camera
    depth: Tensor
    residual: Tensor
    inliers: Tensor
    valid: Tensor
    reason: list[str]


def check_correspondences(points: Tensor, image_points: Tensor, mask: Tensor | None, widths: tuple[int, ...]) -> Tensor:
    """Which correspondences can be used, bool ``[B, N]``.

    Raises:
        ConfigurationError: If the shapes do not belong together.
    """
    batch, count = points.shape[:2] if points.ndim == 3 else (0, 0)
    if points.ndim != 3 or points.shape[2] != 3:
        raise ConfigurationError(f"Object points have shape {tuple(points.shape)}: give [B, N, 3] in millimetres.")
    if image_points.ndim != 3 or image_points.shape[:2] != (batch, count) or image_points.shape[2] not in widths:
        shapes = " or ".join(f"[{batch}, {count}, {width}]" for width in widths)
        raise ConfigurationError(f"Image points have shape {tuple(image_points.shape)}: give {shapes} in pixels.")
    good = usable(points, image_points)
    if mask is None:
        return good
    if mask.shape != (batch, count):
        raise ConfigurationError(f"The mask has shape {tuple(mask.shape)}: give [{batch}, {count}].")
    return good & mask.bool()


def judge(points: Tensor, image_points: Tensor, weights: Tensor, least: int, flat_allowed: bool) -> Verdict:
    """Refuse faces whose correspondences do not determine a camera.

    Args:
        points: ``[B, N, 3]``, 0 where the weight is.
        image_points: ``[B, N, 2]``, likewise.
        weights: ``[B, N]``, 1 or 0.
        least: How many points a face needs.
        flat_allowed: Whether object points in a plane will do.
    """
    verdict = Verdict(points.shape[0], points.device)
    counts = weights.sum(dim=1)
    none, few = counts == 0, counts < least
    verdict.refuse(none, "it has no valid points")
    if few.any():
        verdict.refuse(few, [f"it has {int(n)} valid points, at least {least} are needed" for n in counts])
    size = spread(points, weights)
    verdict.refuse(size[:, 1] <= FLAT * size[:, 0], "its object points lie on a line")
    if not flat_allowed:
        verdict.refuse(size[:, 2] <= FLAT * size[:, 0], "its object points lie in a plane")
    size = spread(image_points, weights)
    verdict.refuse(size[:, 1] <= FLAT * size[:, 0], "its image points lie on a line")
    return verdict


@torch.no_grad()
def fit_weak_perspective(points: Tensor, image_points: Tensor, mask: Tensor | None = None) -> CameraFit:
    """Weak-perspective cameras by least squares: ``image = s F R X + t``.

    Image points with a depth have a closed form, the similarity (Umeyama 1991). Without one, the affine solution is
    moved to the nearest rotation and refined by Levenberg-Marquardt on the points' second moments.

    Args:
        points: ``[B, N, 3]``, millimetres, object frame.
        image_points: ``[B, N, 2]``, or ``[B, N, 3]`` with a depth whose origin is unknown, pixels.
        mask: Bool ``[B, N]``, which correspondences to use; those with NaN are left out anyway.

    Returns:
        The cameras, residual in the plane or in space as the points were.

    Raises:
        ConfigurationError: If the shapes do not belong together.

    Example:
        >>> corners = torch.tensor([[[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]])
        >>> true = Camera.from_pose(torch.tensor([[2.0, 0.1, 0.3, -0.2, 40.0, 50.0]]))
        >>> fit = fit_weak_perspective(corners, true.project(corners)[..., :2])
        >>> [round(x, 3) for x in fit.camera.pose[0].tolist()]
        [2.0, 0.1, 0.3, -0.2, 40.0, 50.0]
    """
    good = check_correspondences(points, image_points, mask, (2, 3))
    weights, points, image_points = _clean(good, points, image_points)
    solid = image_points.shape[2] == 3
    verdict = judge(points, image_points[..., :2], weights, 3 if solid else 4, flat_allowed=True)
    scale, rotation, shift = weak_perspective_of(points, image_points, weights, verdict.valid)
    too_small = ~(scale > 0) | ~rotation.isfinite().all(dim=2).all(dim=1)
    verdict.refuse(too_small, "its points are not an image of the object points")
    valid = verdict.valid
    pose = torch.where(valid[:, None], torch.cat((scale[:, None], matrix_to_euler(rotation), shift[:, :2]), dim=1), 0.0)
    depth = torch.where(valid, shift[:, 2], 0.0)
    camera = Camera.from_pose(pose)
    found = camera.project(points)
    found[..., 2] += depth[:, None]
    residual = _rms(found[..., : image_points.shape[2]] - image_points, weights)
    return CameraFit(camera, depth, torch.where(valid, residual, 0.0), good & valid[:, None], valid, verdict.reason)


def weak_perspective_of(
    points: Tensor, image_points: Tensor, weights: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale ``[B]``, rotation ``[B, 3, 3]`` and translation ``[B, 3]`` (image frame; z is 0 for flat image points).

    Arguments as for :func:`judge`; faces that are not valid get numbers without meaning, but numbers.
    """
    if image_points.shape[2] == 3:
        # A face without enough points would divide by 0: it takes a few that are good for anything.
        filler = torch.sin(torch.arange(1.0, points.shape[1] * 3 + 1, device=points.device).to(points))
        filler = filler.reshape(1, -1, 3).expand_as(points)
        ok = valid[:, None, None]
        upright = image_points * image_points.new_tensor([1.0, -1.0, 1.0])
        scale, rotation, shift = similarity_transform(
            torch.where(ok, points, filler),
            torch.where(ok, upright, filler),
            weights=torch.where(valid[:, None], weights, 1.0),
        )
        return scale, rotation, shift * shift.new_tensor([1.0, -1.0, 1.0])
    centre, image_centre = weighted_mean(points, weights), weighted_mean(image_points, weights)
    total = weights.sum(dim=1).clamp_min(1.0)[:, None, None]
    centred = (points - centre) * weights[..., None]
    # Image y up, so that both frames are right-handed here.
    upright = (image_points - image_centre) * image_points.new_tensor([1.0, -1.0])
    second = centred.transpose(1, 2) @ (points - centre) / total
    cross = upright.transpose(1, 2) @ centred / total
    ok = valid[:, None, None]
    second = torch.where(ok, second, torch.eye(3).to(second))
    cross = torch.where(ok, cross, torch.eye(3)[:2].to(second))
    scale, rotation = _scaled_rotation(second, cross)
    projected = (scale[:, None, None] * rotation[:, :2] @ centre.transpose(1, 2))[..., 0]
    shift = image_centre[:, 0] - projected * projected.new_tensor([1.0, -1.0])
    return scale, rotation, torch.nn.functional.pad(shift, (0, 1))


def _scaled_rotation(second: Tensor, cross: Tensor, steps: int = 12) -> tuple[Tensor, Tensor]:
    """The s and R that minimise ``E |u - s R[:2] x|^2`` given ``E x x^T`` ``[B, 3, 3]`` and ``E u x^T`` ``[B, 2, 3]``.

    Each step costs the same for any number of points.
    """
    starts = _affine_starts(second, cross)
    batch, count = second.shape[0], len(starts)
    second, cross = second.repeat(count, 1, 1), cross.repeat(count, 1, 1)
    u, singular, vt = torch.linalg.svd(torch.cat(starts), full_matrices=False)
    rows = u @ vt
    rotation = torch.cat((rows, torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]), dim=1)
    log_scale = singular.mean(dim=1).clamp_min(torch.finfo(singular.dtype).tiny).log()
    damping = torch.full_like(log_scale, 1e-3)

    def loss(log_scale: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        linear = log_scale.exp()[:, None, None] * rotation[:, :2]
        return linear, ((linear @ second - 2.0 * cross) * linear).sum(dim=(1, 2))

    linear, current = loss(log_scale, rotation)
    for _ in range(steps):
        # Derivatives by the logarithm of the scale and by a small rotation before R: R[:2] (e_k x x).
        turned = linear[:, None] @ _CROSS.to(linear)
        jacobian = torch.cat((linear[:, None], turned), dim=1)
        weighted = jacobian @ second[:, None]
        normal = weighted.flatten(2) @ jacobian.flatten(2).transpose(1, 2)
        gradient = (jacobian * (cross - linear @ second)[:, None]).sum(dim=(2, 3))
        normal = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-12)
        step = torch.linalg.solve_ex(normal, gradient)[0].nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
        new_scale = log_scale + step[:, 0]
        new_rotation = rotation @ rotation_of(step[:, 1:])
        new_linear, new = loss(new_scale, new_rotation)
        better = new <= current
        log_scale = torch.where(better, new_scale, log_scale)
        rotation = torch.where(better[:, None, None], new_rotation, rotation)
        linear = torch.where(better[:, None, None], new_linear, linear)
        current = torch.where(better, new, current)
        damping = torch.where(better, damping * 0.1, damping * 10.0)
    best = current.reshape(count, batch).argmin(dim=0) * batch + torch.arange(batch, device=current.device)
    return log_scale.exp()[best], rotation[best]


def _affine_starts(second: Tensor, cross: Tensor) -> list[Tensor]:
    """Affine maps ``[B, 2, 3]`` to start from: least squares, and two that do not need depth.

    Points that lie nearly in a plane say nothing of how the image moves with the distance from it. But the map of the
    plane alone, M ``[2, 2]``, has two completions (M, c) whose rows are orthogonal and of one length:
    ``c c^T = s^2 - M M^T`` with s the larger singular value. They are the two ways in which the plane may be tilted.
    """
    eye = torch.eye(3).to(second)
    ridge = 1e-4 * second.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] * eye
    affine = cross @ torch.linalg.inv(second + ridge)
    variance, axes = torch.linalg.eigh(second)  # the weakest axis first
    plane = cross @ axes[..., 1:] / variance[:, None, 1:].clamp_min(torch.finfo(second.dtype).tiny)
    squared, direction = torch.linalg.eigh((plane @ plane.transpose(1, 2)).nan_to_num(0.0, 0.0, 0.0))
    depth = (squared[:, 1] - squared[:, 0]).clamp_min(0.0).sqrt()[:, None, None] * direction[..., :1]
    tilted = [torch.cat((sign * depth, plane), dim=2) @ axes.transpose(1, 2) for sign in (1.0, -1.0)]
    return [affine, *(start.nan_to_num(0.0, 0.0, 0.0) for start in tilted)]


_CROSS = torch.tensor(
    [[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]]
)
"""``_CROSS[k] @ x`` is the cross product of the k-th axis with x."""


def rotation_of(vector: Tensor) -> Tensor:
    """Rotation matrices ``[..., 3, 3]`` of rotation vectors ``[..., 3]`` in radians (Rodrigues' formula)."""
    angle = torch.linalg.vector_norm(vector, dim=-1)[..., None, None]
    skew = (vector[..., None, None] * _CROSS.to(vector)).sum(dim=-3)
    small = angle < 1e-6
    safe = torch.where(small, 1.0, angle)
    first = torch.where(small, 1.0, safe.sin() / safe)
    second = torch.where(small, 0.5, (1.0 - safe.cos()) / safe.square())
    return torch.eye(3).to(vector) + first * skew + second * (skew @ skew)


@torch.no_grad()
def fit_affine(
    points: Tensor, image_points: Tensor, mask: Tensor | None = None, trials: int = 100, seed: int = 0
) -> CameraFit:
    """Affine cameras by least squares (Pix2face 2017, eq. 1), robust to outliers.

    Cameras through four correspondences each are drawn, the one with the least median of squared errors is kept
    (Rousseeuw 1984: up to half of the correspondences may be wrong, and no threshold in pixels is needed), and the
    correspondences that agree with it are solved by least squares, three times. The draws depend on the seed alone, so
    that a face gets the same camera in any batch.

    Args:
        points: ``[B, N, 3]``, millimetres, object frame.
        image_points: ``[B, N, 2]`` pixels.
        mask: Bool ``[B, N]``, which correspondences to use; those with NaN are left out anyway.
        trials: How many cameras are drawn; 0 for plain least squares over all correspondences.
        seed: Of the draws.

    Returns:
        The cameras; ``inliers`` are the correspondences that agreed.

    Raises:
        ConfigurationError: If the shapes do not belong together.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> points = torch.randn(1, 50, 3, generator=generator) * 40
        >>> true = Camera.from_pose(torch.tensor([[2.0, 0.1, 0.3, -0.2, 40.0, 50.0]]))
        >>> image = true.project(points)[..., :2]
        >>> image[:, :20] = 0.0  # wrong
        >>> fit = fit_affine(points, image)
        >>> int(fit.inliers.sum()), bool((fit.camera.matrix - true.matrix).abs().max() < 1e-3)
        (30, True)
    """
    good = check_correspondences(points, image_points, mask, (2,))
    weights, points, image_points = _clean(good, points, image_points)
    verdict = judge(points, image_points, weights, 4, flat_allowed=False)
    if trials > 0 and points.numel():
        matrix, weights = _robust(points, image_points, weights, verdict.valid, trials, seed)
        size = spread(points, weights)
        verdict.refuse(size[:, 2] <= FLAT * size[:, 0], "the object points that agree lie in a plane")
    else:
        matrix = _least_squares(points, image_points, weights, verdict.valid)
    singular = torch.linalg.svdvals(matrix[..., :3])
    verdict.refuse(~(singular[:, 1] > FLAT * singular[:, 0]), "its points are not an image of the object points")
    valid = verdict.valid
    error = points @ matrix[..., :3].transpose(1, 2) + matrix[:, None, :, 3] - image_points
    residual = torch.where(valid, _rms(error, weights), 0.0)
    inliers = (weights > 0) & valid[:, None]
    last = matrix.new_tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(matrix.shape[0], 1, 4)
    camera = kept_cameras(Camera.from_matrix("affine", torch.cat((matrix, last), dim=1)), valid)
    return CameraFit(camera, torch.zeros_like(residual), residual, inliers, valid, verdict.reason)


def _robust(
    points: Tensor, image_points: Tensor, weights: Tensor, valid: Tensor, trials: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Least median of squares: matrices ``[B, 2, 4]`` and the weights ``[B, N]``, 0 for outliers."""
    batch, count, _ = points.shape
    # The usable points of each face first; a fraction in [0, 1) then picks one whatever their number.
    order = torch.argsort(weights, dim=1, descending=True, stable=True)
    total = weights.sum(dim=1)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(trials * 4, generator=generator, dtype=torch.float64).to(total)
    scored = (torch.arange(min(SCORED, count), device=total.device).to(total) + 0.5) / min(SCORED, count)

    def pick(values: Tensor, fraction: Tensor) -> Tensor:
        rank = (fraction * total[:, None]).long().clamp(0, count - 1)
        rows = order.gather(1, torch.minimum(rank, (total.long() - 1).clamp_min(0)[:, None]))
        return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))

    samples, images = pick(points, draws), pick(image_points, draws)
    samples, images = samples.reshape(batch, trials, 4, 3), images.reshape(batch, trials, 4, 2)
    inverse, failed = torch.linalg.inv_ex(samples[:, :, 1:] - samples[:, :, :1])
    linear = (inverse @ (images[:, :, 1:] - images[:, :, :1])).transpose(2, 3)
    offset = images[:, :, 0] - (linear @ samples[:, :, 0, :, None])[..., 0]
    judged, seen = pick(points, scored), pick(image_points, scored)
    found = judged[:, None] @ linear.transpose(2, 3) + offset[:, :, None]
    median = (found - seen[:, None]).square().sum(dim=3).nan_to_num(torch.inf).median(dim=2)[0]
    median = torch.where(failed == 0, median, torch.inf)
    best = median.argmin(dim=1)
    row = torch.arange(batch, device=best.device)
    matrix = torch.cat((linear[row, best], offset[row, best][..., None]), dim=2).nan_to_num(0.0, 0.0, 0.0)
    agree = weights
    floor = (1e-3 * spread(image_points, weights)[:, 0]).square()
    for _ in range(3):
        error = judged @ matrix[..., :3].transpose(1, 2) + matrix[:, None, :, 3] - seen
        limit = torch.maximum(OUTLIER * error.square().sum(dim=2).median(dim=1)[0], floor)
        error = points @ matrix[..., :3].transpose(1, 2) + matrix[:, None, :, 3] - image_points
        near = (error.square().sum(dim=2) <= limit[:, None]).to(weights) * weights
        agree = torch.where((near.sum(dim=1) >= 4)[:, None], near, weights)
        matrix = _least_squares(points, image_points, agree, valid)
    return matrix, agree


def _least_squares(points: Tensor, image_points: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Matrices ``[B, 2, 4]`` by the normal equations about the centre; of faces that are not valid, any numbers."""
    centre, image_centre = weighted_mean(points, weights), weighted_mean(image_points, weights)
    centred = (points - centre) * weights[..., None]
    second = centred.transpose(1, 2) @ (points - centre)
    cross = centred.transpose(1, 2) @ (image_points - image_centre)
    second = torch.where(valid[:, None, None], second, torch.eye(3).to(second))
    linear = torch.linalg.solve_ex(second, cross)[0].nan_to_num(0.0, 0.0, 0.0).transpose(1, 2)
    offset = image_centre.transpose(1, 2) - linear @ centre.transpose(1, 2)
    return torch.cat((linear, offset), dim=2)


def _clean(good: Tensor, points: Tensor, image_points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of one type with the points, and 0 in place of what cannot be used."""
    dtype = torch.promote_types(as_points(points).dtype, as_points(image_points).dtype)
    keep = good[..., None]
    return good.to(dtype), torch.where(keep, points, 0.0).to(dtype), torch.where(keep, image_points, 0.0).to(dtype)


def _rms(error: Tensor, weights: Tensor) -> Tensor:
    """Root mean square length ``[B]`` of errors ``[B, N, D]``."""
    return ((error.square().sum(dim=2) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)).sqrt()
