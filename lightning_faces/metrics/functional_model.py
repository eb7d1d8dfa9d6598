"""Per-sample errors of what a face model or a network's images give: parameters, coefficients, pixels, visibility.

Pure functions ``(preds [B, ...], target [B, ...], ...) -> [B]`` in float64, like those on points in :mod:`.functional`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.model import MorphableModel

Statistic = Literal["mean", "median"]


def parameter_error(preds: Tensor, target: Tensor, *, angles: bool = False) -> Tensor:
    """Norm of the difference of one group of parameters: ``|p - g|_2`` (PARM, table 1: "mean norm error").

    Args:
        preds: Predicted parameters ``[B, K]``: the three Euler angles in radians, or the coefficients of identity or
            expression in standard deviations.
        target: True parameters ``[B, K]``.
        angles: Take differences of angles around the circle, to (-pi, pi].

    Returns:
        ``[B]`` in the parameters' unit.

    Raises:
        ConfigurationError: If shapes differ.

    Example:
        >>> parameter_error(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([5.], dtype=torch.float64)
    """
    difference = _difference(preds, target)
    if angles:
        difference = _around_the_circle(difference)
    return torch.linalg.vector_norm(difference, dim=-1)


def angle_error(preds: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of angles around the circle.

    Args:
        preds: ``[B]`` radians.
        target: ``[B]`` radians.

    Returns:
        ``[B]`` degrees, 0 to 180.

    Raises:
        ConfigurationError: If shapes differ.

    Example:
        >>> angle_error(torch.tensor([3.0]), torch.tensor([-3.0])).round(decimals=2)
        tensor([16.2300], dtype=torch.float64)
    """
    return torch.rad2deg(_around_the_circle(_difference(preds, target)).abs())


def geometry_error(preds: Tensor, target: Tensor, face_model: MorphableModel, root_mean_square: bool = False) -> Tensor:
    """Distance of the vertices that two sets of coefficients stand for, in the object frame, without alignment.

    The square of the root mean square is loss (3) of Richardson 2016 over the number of vertices.

    Args:
        preds: Predicted coefficients ``[B, K]``, identity then expression, in standard deviations.
        target: True coefficients, same shape.
        face_model: Their face model.
        root_mean_square: The root of the mean square over the vertices instead of the mean.

    Returns:
        ``[B]`` in millimetres.

    Raises:
        ConfigurationError: If shapes differ, or are not those of the model.

    Example:
        >>> model = MorphableModel.load()
        >>> coefficients = torch.zeros(1, model.num_coefficients)
        >>> geometry_error(coefficients, coefficients, model)
        tensor([0.], dtype=torch.float64)
    """
    difference = _difference(preds, target)
    if difference.shape[-1] != face_model.num_coefficients:
        raise ConfigurationError(
            f"{difference.shape[-1]} coefficients are none of the face model {face_model.name!r}, which has "
            f"{face_model.num_coefficients}: give identity and expression of one model."
        )
    split = face_model.num_identity
    # The bases take gigabytes in float64 for a model of 50,000 vertices; the difference loses nothing in float32.
    difference = difference.to(device=face_model.mean.device, dtype=torch.float32)
    moved = (difference[:, :split] * face_model.identity_std) @ face_model.identity_basis.flatten(1)
    moved = moved + (difference[:, split:] * face_model.expression_std) @ face_model.expression_basis.flatten(1)
    distance = torch.linalg.vector_norm(moved.double().reshape(len(moved), face_model.num_vertices, 3), dim=-1)
    error = distance.square().mean(dim=1).sqrt() if root_mean_square else distance.mean(dim=1)
    return error.to(preds.device)


def pixel_error(preds: Tensor, target: Tensor, mask: Tensor, statistic: Statistic = "mean") -> Tensor:
    """3D distance per valid pixel of images of positions, such as PNCC + offsets (pix2face 2017, section 3).

    Args:
        preds: Predicted positions ``[B, 3, H, W]``.
        target: True positions, same shape and frame.
        mask: Bool ``[B, 1, H, W]``, the pixels that count.
        statistic: ``mean`` or ``median`` over them (of an even number, the mean of the middle two).

    Returns:
        ``[B]`` in the positions' unit (millimetres for PNCC + offsets); NaN for a face without a valid pixel.

    Raises:
        ConfigurationError: If shapes differ or the statistic is unknown.

    Example:
        >>> target = torch.zeros(1, 3, 1, 4)
        >>> preds = target.clone()
        >>> preds[0, 2, 0] = torch.tensor([1.0, 2.0, 9.0, 500.0])
        >>> mask = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 4)
        >>> pixel_error(preds, target, mask), pixel_error(preds, target, mask, "median")
        (tensor([4.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    if statistic not in get_args(Statistic):
        raise ConfigurationError(f"Unknown statistic {statistic!r}: choose one of {', '.join(get_args(Statistic))}.")
    distance = torch.linalg.vector_norm(_difference(preds, target), dim=1)
    marked = mask[:, 0]
    if statistic == "mean":
        return torch.where(marked, distance, 0.0).flatten(1).sum(dim=1) / marked.flatten(1).sum(dim=1)
    # Pixels that do not count are sorted to the end, and the middle is taken of the others.
    ordered = torch.where(marked, distance, torch.inf).flatten(1).sort(dim=1).values
    count = marked.flatten(1).sum(dim=1, keepdim=True)
    low = ordered.gather(1, ((count - 1) // 2).clamp(min=0))
    high = ordered.gather(1, (count // 2).clamp(max=ordered.shape[1] - 1))
    return torch.where(count > 0, (low + high) / 2, torch.nan)[:, 0]


def intersection_over_union(preds: Tensor, target: Tensor) -> Tensor:
    """Overlap of masks.

    Args:
        preds: Bool ``[B, 1, H, W]``.
        target: Bool, same shape.

    Returns:
        ``[B]`` in [0, 1]; 1 where both are empty.

    Example:
        >>> target = torch.tensor([True, True, False, False]).reshape(1, 1, 1, 4)
        >>> intersection_over_union(target.roll(1, -1), target)
        tensor([0.3333], dtype=torch.float64)
    """
    both = (preds & target).flatten(1).sum(dim=1).double()
    either = (preds | target).flatten(1).sum(dim=1).double()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def visibility_error(preds: Tensor, target: Tensor) -> Tensor:
    """Fraction of landmarks whose predicted visibility, at a probability of 0.5, is wrong.

    Args:
        preds: Probabilities ``[B, L]``.
        target: Bool ``[B, L]``.

    Returns:
        ``[B]``; NaN where a probability is.

    Example:
        >>> visibility_error(torch.tensor([[0.9, 0.4, 0.2, 0.1]]), torch.tensor([[True, True, False, False]]))
        tensor([0.2500], dtype=torch.float64)
    """
    wrong = ((preds > 0.5) != target).double()
    return torch.where(preds.isnan(), torch.nan, wrong).mean(dim=1)


def _difference(preds: Tensor, target: Tensor) -> Tensor:
    if preds.shape != target.shape:
        raise ConfigurationError(
            f"A prediction of shape {tuple(preds.shape)} cannot be compared to a target of {tuple(target.shape)}."
        )
    return preds.to(torch.float64) - target.to(torch.float64)


def _around_the_circle(angles: Tensor) -> Tensor:
    return torch.remainder(angles + torch.pi, 2 * torch.pi) - torch.pi
