"""Per-sample errors as pure functions: ``(preds [B, L, D], target [B, L, D], ...) -> [B]``, always in float64.

All values are fractions (0.05 = 5 %) unless a docstring gives a unit. Points are in one frame for both arguments: the
image frame (pixels; x right, y down, z in the same unit and larger towards the viewer) or any other with equal units on
all axes; every normalised error is the same in all of them.

Depth has no absolute origin in weak perspective, so each 3D error states its depth rule:

* ``raw``: z as it is.
* ``mean``: the mean z over the scored points is taken from both sides (3DFAW; most likely PRNet's own rule).
* ``min``: the minimum z over the scored points is taken from both sides (face3d, 3DDFA).
* ``similarity``: the prediction is first brought onto the target by the least-squares similarity (Umeyama 1991).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.alignment import apply_similarity, similarity_transform
from lightning_faces.geometry.landmarks import outer_eye_corners

Normalizer = Literal["bbox", "interocular", "outer_interocular", "diagonal"]
DepthRule = Literal["raw", "mean", "min", "similarity"]
Criterion = Literal["squared", "unsquared"]


_RIGHT_EYE, _LEFT_EYE = slice(36, 42), slice(42, 48)
_SCHEMES_WITH_EYES = (68, 66)


def normalized_mean_error(
    preds: Tensor,
    target: Tensor,
    normalizer: Normalizer = "bbox",
    *,
    size: Tensor | None = None,
    depth: DepthRule = "mean",
    mask: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """Mean point-to-point distance over a size of the face (NME): ``mean_k |p_k - g_k| / size``.

    With two coordinates, all 68 points and the default normaliser this is the NME of the AFLW2000-3D benchmark (Zhu et
    al. 2016) and the NMEA of PARM (eq. 14); with three, PRNet's (Feng et al. 2018, sec. 4.2). Dense points work alike.

    Args:
        preds: Predicted points ``[B, L, D]``, D = 2 or 3.
        target: True points ``[B, L, D]``.
        normalizer: What the error is divided by, measured on ``reference``: ``bbox`` is ``sqrt(w h)`` of the tight box
            of its points in x and y, ``diagonal`` that box's diagonal, ``interocular`` the distance of the eye centres
            (means of six points each) and ``outer_interocular`` that of the outer eye corners, both in D dimensions.
        size: ``[B]`` a given size in the points' unit, instead of ``normalizer``.
        depth: Depth rule, for D = 3 (see the module).
        mask: Which points are scored: bool ``[B, L]``, or ``[B, L, D]`` where a point needs all D coordinates.
        reference: Points ``[B, N, D]`` that the normaliser is measured on (for dense points: the 68 true landmarks);
            the target if None.

    Returns:
        ``[B]``; NaN for a sample without a scored point.

    Raises:
        ConfigurationError: If shapes differ, or an option is unknown or does not fit the points.

    Example:
        >>> target = torch.tensor([[[0.0, 0.0], [40.0, 0.0], [20.0, 10.0]]])
        >>> normalized_mean_error(target + torch.tensor([1.0, 0.0]), target)  # 1 pixel over sqrt(40 * 10)
        tensor([0.0500], dtype=torch.float64)
    """
    preds, target, scored = _prepare(preds, target, mask)
    if size is None:
        if reference is None:
            size = _face_measure(target, scored, normalizer)
        else:
            reference = reference[..., : target.shape[-1]].to(torch.float64)
            size = _face_measure(reference, torch.ones_like(reference[..., 0], dtype=torch.bool), normalizer)
    if preds.shape[-1] == 3:
        preds, target = _apply_depth_rule(preds, target, scored, depth)
    return _masked_mean(_norm(preds - target), scored) / size.to(torch.float64)


def ground_truth_error(preds: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Ground truth error (GTE) of the 3DFAW challenge: ``mean_k |s_k - g_k| / d`` (Zhao 2016, eq. 13).

    d is the Euclidean distance in 3D between the outer eye corners of the *target*. x and y are compared as they are;
    the mean z over the points is removed from both sides, as 3DFAW's own labels have zero-mean depth.

    Args:
        preds: Predicted points ``[B, 68 or 66, 3]``, image frame.
        target: True points, same shape.
        mask: Which points are scored, as in :func:`normalized_mean_error`.

    Returns:
        ``[B]``.

    Example:
        >>> target = torch.zeros(1, 68, 3)
        >>> target[0, 45, 0] = 50.0  # the outer eye corners are 50 pixels apart
        >>> ground_truth_error(target + torch.tensor([0.0, 1.0, 7.0]), target)
        tensor([0.0200], dtype=torch.float64)
    """
    return normalized_mean_error(preds, target, "outer_interocular", depth="mean", mask=mask)


def average_point_error(
    preds: Tensor, target: Tensor, *, depth: DepthRule = "mean", mask: Tensor | None = None
) -> Tensor:
    """Average point-wise estimation error (APE), un-normalised: ``mean_k |s_k - g_k|`` (Zhao 2016, eq. 15).

    Args:
        preds: Predicted points ``[B, L, D]``.
        target: True points, same shape.
        depth: Depth rule, for D = 3.
        mask: Which points are scored, as in :func:`normalized_mean_error`.

    Returns:
        ``[B]`` in the unit of the points (the paper states none).

    Example:
        >>> target = torch.zeros(1, 4, 2)
        >>> average_point_error(target + torch.tensor([3.0, 4.0]), target)
        tensor([5.], dtype=torch.float64)
    """
    preds, target, scored = _prepare(preds, target, mask)
    if preds.shape[-1] == 3:
        preds, target = _apply_depth_rule(preds, target, scored, depth)
    return _masked_mean(_norm(preds - target), scored)


def cross_view_consistency_error(
    preds: Tensor, target: Tensor, *, criterion: Criterion = "squared", mask: Tensor | None = None
) -> Tensor:
    """Cross-view consistency error (CVGTCE): ``mean_k |(c R s_k + t) - g_k| / d`` (Zhao 2016, eq. 14).

    Sample b of ``target`` is the same person in another view than sample b of ``preds``; d is the target's 3D distance
    between the outer eye corners. The paper prints ``argmin_{c,R,t} sum_k |g_k - (c R s_k + t)|``, distances that are
    not squared; what the usual code (Umeyama's closed form) minimises is the sum of squares.

    Args:
        preds: Predicted points of one view ``[B, 68 or 66, 3]``.
        target: True points of another view, same shape.
        criterion: ``squared`` for least squares in closed form, ``unsquared`` for the criterion as printed (iteratively
            reweighted least squares from the closed form; each step lowers the printed sum).
        mask: Which points are fitted and scored, as in :func:`normalized_mean_error`.

    Returns:
        ``[B]``.

    Example:
        >>> target = (torch.arange(204.0).reshape(1, 68, 3) * 7) % 17
        >>> cross_view_consistency_error(2 * target + 5, target).round(decimals=6)  # the same shape
        tensor([0.], dtype=torch.float64)
    """
    preds, target, scored = _prepare(preds, target, mask)
    size = _face_measure(target, scored, "outer_interocular")
    if criterion not in get_args(Criterion):
        raise _unknown("criterion", criterion, get_args(Criterion))
    return _masked_mean(_norm(_aligned(preds, target, scored, criterion) - target), scored) / size


def per_vertex_error(preds: Tensor, target: Tensor, *, scale: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean distance of corresponding vertices after a least-squares similarity alignment (Richardson 2016, fig. 11).

    Args:
        preds: Predicted vertices ``[B, V, 3]`` in any frame.
        target: True vertices ``[B, V, 3]``.
        scale: Units of the target per millimetre ``[B]`` (in the image frame: the true pose's scale in px/mm).
        mask: Which vertices are fitted and scored ``[B, V]``.

    Returns:
        ``[B]`` in millimetres.

    Example:
        >>> target = torch.eye(3)[None] * 10
        >>> per_vertex_error(2 * target + 1, target, scale=torch.tensor([2.0])).round(decimals=6)
        tensor([0.], dtype=torch.float64)
    """
    return average_point_error(preds, target, depth="similarity", mask=mask) / scale.to(torch.float64)


def iterative_closest_point_error(
    preds: Tensor,
    target: Tensor,
    *,
    size: Tensor,
    with_scale: bool = False,
    max_iterations: int = 100,
    tolerance: float = 1e-7,
    mask: Tensor | None = None,
    target_mask: Tensor | None = None,
) -> Tensor:
    """Mean distance to the nearest true point after iterative closest points (PRNet, sec. 4.3; Florence protocol).

    Each predicted point is matched to its nearest true point (Euclidean, in 3D), the prediction is moved by the
    least-squares rigid (VRN's ``pcregrigid``) or similarity transform of the matches, and so on; the error is the mean
    distance (un-squared, as the papers' curves are labelled NME) of the last matches over ``size``. The point sets need
    no correspondence and may differ in number. The result depends on the starting position as always in ICP: give both
    sides in one frame.

    Args:
        preds: Predicted points ``[B, N, 3]``.
        target: True points ``[B, M, 3]``.
        size: ``[B]`` the 3D distance between the target's outer eye corners, in the points' unit.
        with_scale: Fit the scale too.
        max_iterations: Upper bound of the iterations.
        tolerance: Stop when the root mean square distance falls by less than this fraction of ``size``.
        mask: Which predicted points are used ``[B, N]``.
        target_mask: Which true points are used ``[B, M]``.

    Returns:
        ``[B]``, on the CPU's arithmetic whatever the device; NaN for a sample with non-finite points.

    Example:
        >>> target = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0))
        >>> moved = target.flip(1) + torch.tensor([0.01, 0.0, 0.0])
        >>> iterative_closest_point_error(moved, target, size=torch.ones(1)).round(decimals=6)
        tensor([0.], dtype=torch.float64)
    """
    errors = []
    sizes = size.detach().to("cpu", torch.float64).numpy()
    for b in range(preds.shape[0]):
        moving = _points_of(preds[b], None if mask is None else mask[b])
        fixed = _points_of(target[b], None if target_mask is None else target_mask[b])
        if not (moving.size and fixed.size and np.isfinite(moving).all() and np.isfinite(fixed).all()):
            errors.append(float("nan"))
            continue
        distance = _iterate_closest_points(moving, fixed, with_scale, max_iterations, tolerance * sizes[b])
        errors.append(float(distance.mean() / sizes[b]))
    return torch.tensor(errors, dtype=torch.float64, device=preds.device)


def outer_interocular_distance(landmarks: Tensor) -> Tensor:
    """Distance between the outer eye corners of the landmarks ``[..., L, D]`` of a scheme, ``[...]``, in their unit.

    Raises:
        ConfigurationError: If there is no scheme of L landmarks, or it lacks those corners.

    Example:
        >>> landmarks = torch.zeros(68, 3)
        >>> landmarks[45, 0] = 50.0
        >>> outer_interocular_distance(landmarks)
        tensor(50.)
    """
    try:
        right, left = outer_eye_corners(landmarks.shape[-2])
    except ValueError:  # ConfigurationError is one too
        raise _no_eyes(landmarks) from None
    return _norm(landmarks[..., right, :] - landmarks[..., left, :])


def cumulative_error_curve(errors: Tensor, thresholds: Tensor) -> Tensor:
    """Cumulative error distribution (CED): the fraction of samples with error <= threshold.

    Args:
        errors: ``[N]``.
        thresholds: ``[T]``.

    Returns:
        ``[T]`` in [0, 1]. NaN counts as a failure at every threshold.

    Example:
        >>> cumulative_error_curve(torch.tensor([0.02, 0.04, 0.09]), torch.tensor([0.03, 0.08]))
        tensor([0.3333, 0.6667])
    """
    ordered = errors.to(torch.float64).sort().values
    found = torch.searchsorted(ordered, thresholds.to(torch.float64), right=True)
    return torch.minimum(found, (~ordered.isnan()).sum()) / errors.numel()


def area_under_curve(errors: Tensor, threshold: float) -> Tensor:
    """Area under the CED from 0 to ``threshold``, over ``threshold``: in [0, 1], higher is better.

    The exact area under the step function, ``mean(max(0, 1 - error / threshold))``, needs no grid of thresholds.

    Args:
        errors: ``[N]``.
        threshold: Upper end of the curve as a fraction (FAN: 0.07).

    Returns:
        Scalar.

    Example:
        >>> area_under_curve(torch.tensor([0.0, 0.035, 0.2]), 0.07)
        tensor(0.5000, dtype=torch.float64)
    """
    return area_contribution(errors, threshold).mean()


def area_contribution(errors: Tensor, threshold: float) -> Tensor:
    """Each sample's part ``max(0, 1 - error / threshold)`` of the area under the CED; their mean is the area."""
    return (1.0 - errors.to(torch.float64) / threshold).clamp(min=0.0)


def failure_rate(errors: Tensor, threshold: float) -> Tensor:
    """Fraction of samples with an error above ``threshold``; scalar. NaN stays NaN.

    Example:
        >>> failure_rate(torch.tensor([0.03, 0.04, 0.06, 0.08]), 0.07)
        tensor(0.2500, dtype=torch.float64)
    """
    return failure_contribution(errors, threshold).mean()


def failure_contribution(errors: Tensor, threshold: float) -> Tensor:
    """1 where the error is above ``threshold``, else 0; NaN stays NaN."""
    errors = errors.to(torch.float64)
    return torch.where(errors.isnan(), errors, (errors > threshold).to(torch.float64))


def scored_points(mask: Tensor | None, target: Tensor) -> Tensor:
    """Bool ``[B, L]``: the points of ``target`` ``[B, L, D]`` that a mask ``[B, L]`` or ``[B, L, >=D]`` marks whole."""
    if mask is None:
        return torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    return mask if mask.dim() == target.dim() - 1 else mask[..., : target.shape[-1]].all(dim=-1)


def _prepare(preds: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if preds.shape != target.shape or preds.dim() != 3 or preds.shape[-1] not in (2, 3):
        raise ConfigurationError(
            f"Predicted points of shape {tuple(preds.shape)} cannot be compared to {tuple(target.shape)}: both must be "
            "[B, L, 2] or [B, L, 3] of the same landmark scheme."
        )
    return preds.to(torch.float64), target.to(torch.float64), scored_points(mask, target)


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean length of vectors ``[..., D]``, shape ``[...]``."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return length


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where the mask holds; NaN where it holds nowhere."""
    return torch.where(mask, values, 0.0).sum(dim=-1) / mask.sum(dim=-1)


def _face_measure(points: Tensor, scored: Tensor, normalizer: Normalizer) -> Tensor:
    if normalizer in ("bbox", "diagonal"):
        xy = points[..., :2]
        low = torch.where(scored[..., None], xy, float("inf")).amin(dim=-2)
        high = torch.where(scored[..., None], xy, float("-inf")).amax(dim=-2)
        sides = high - low
        return sides.prod(dim=-1).sqrt() if normalizer == "bbox" else _norm(sides)
    if normalizer == "outer_interocular":
        return outer_interocular_distance(points)
    if normalizer == "interocular":
        if points.shape[-2] not in _SCHEMES_WITH_EYES:
            raise _no_eyes(points)
        return _norm(points[..., _RIGHT_EYE, :].mean(dim=-2) - points[..., _LEFT_EYE, :].mean(dim=-2))
    raise _unknown("normaliser", normalizer, get_args(Normalizer))


def _apply_depth_rule(preds: Tensor, target: Tensor, scored: Tensor, depth: DepthRule) -> tuple[Tensor, Tensor]:
    if depth == "raw":
        return preds, target
    if depth == "similarity":
        return _aligned(preds, target, scored, "squared"), target
    if depth not in ("mean", "min"):
        raise _unknown("depth rule", depth, get_args(DepthRule))

    def shifted(points: Tensor) -> Tensor:
        z = points[..., 2]
        lowest = torch.where(scored, z, float("inf")).amin(dim=-1)
        origin = _masked_mean(z, scored) if depth == "mean" else lowest
        return torch.cat((points[..., :2], (z - origin[..., None])[..., None]), dim=-1)

    return shifted(preds), shifted(target)


def _aligned(preds: Tensor, target: Tensor, scored: Tensor, criterion: Criterion) -> Tensor:
    """``preds`` moved onto ``target`` by the best similarity; NaN where a sample cannot be aligned."""
    # The singular value decomposition of a whole batch fails on one sample's NaN, so such a sample is set aside.
    usable = (preds.isfinite() & target.isfinite()).flatten(1).all(dim=-1) & scored.any(dim=-1)
    source, goal = (torch.where(usable[:, None, None], points, 0.0) for points in (preds, target))
    weights = (scored | ~usable[:, None]).to(preds.dtype)
    if criterion == "squared":
        fit = similarity_transform(source, goal, weights=weights)
    else:
        fit = _fit_unsquared(source, goal, weights)
    return torch.where(usable[:, None, None], apply_similarity(source, *fit), float("nan"))


def _fit_unsquared(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity that minimises the weighted sum of distances, by iteratively reweighted least squares."""
    # A point that is met exactly would get infinite weight; the floor changes the minimum by less than 1e-9 of it.
    floor = 1e-10 * _norm(target - target.mean(dim=-2, keepdim=True)).amax(dim=-1).clamp(min=1e-30)
    current = weights
    previous = torch.full_like(floor, float("inf"))
    for _ in range(1000):
        fit = similarity_transform(source, target, weights=current)
        distances = _norm(apply_similarity(source, *fit) - target).nan_to_num(nan=0.0)
        total = (weights * distances).sum(dim=-1)
        if bool((previous - total <= 1e-13 * total).all()):
            break
        previous = total
        current = weights / torch.maximum(distances, floor[..., None])
    return fit


def _points_of(points: Tensor, mask: Tensor | None) -> NDArray[np.float64]:
    if mask is not None:
        points = points[mask]
    result: NDArray[np.float64] = points.detach().to("cpu", torch.float64).numpy()
    return result


def _iterate_closest_points(
    moving: NDArray[np.float64], fixed: NDArray[np.float64], with_scale: bool, max_iterations: int, tolerance: float
) -> NDArray[np.float64]:
    tree = cKDTree(fixed)
    start = torch.from_numpy(moving)
    previous = np.inf
    distance, nearest = tree.query(moving)
    for _ in range(max_iterations):
        fit = similarity_transform(start, torch.from_numpy(fixed[nearest]), with_scale=with_scale)
        moved = apply_similarity(start, *fit).numpy()
        distance, nearest = tree.query(moved)
        spread = float(np.sqrt(np.square(distance).mean()))
        if previous - spread <= tolerance:
            break
        previous = spread
    result: NDArray[np.float64] = distance
    return result


def _no_eyes(points: Tensor) -> ConfigurationError:
    return ConfigurationError(
        f"The distance of the eyes cannot be measured on {points.shape[-2]} points: give the true 68 or 66 landmarks "
        "as reference, or choose the normaliser bbox."
    )


def _unknown(what: str, value: object, known: tuple[str, ...]) -> ConfigurationError:
    return ConfigurationError(f"Unknown {what} {value!r}: choose one of {', '.join(known)}.")
