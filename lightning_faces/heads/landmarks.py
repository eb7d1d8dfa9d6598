"""2D landmarks with the loss of Zhao et al. (2016): a local term, and one on pairs of landmarks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.frames import image_to_unit, unit_to_image
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term, full_precision, masked_term


def local_loss(points: Tensor, target: Tensor, mask: Tensor, squared: bool = True) -> Term:
    """Squared distance, mean over landmarks and faces (Zhao et al. 2016, eq. 2).

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``.
        squared: As printed; without, the mean distance, which rare large errors dominate less.
    """
    error = points - target
    return masked_term(error.square().sum(dim=-1) if squared else torch.linalg.vector_norm(error, dim=-1), mask)


def pairwise_loss(points: Tensor, target: Tensor, mask: Tensor, norm: float = 2.0) -> Term:
    """Squared difference of the distances within all pairs of landmarks (eq. 4), mean over faces.

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``; a pair counts where both its points are marked.
        norm: The b of the b-norm.

    Returns:
        ``2 / (l (l + 1)) sum_{j<k} (|f_j - f_k|_b - |o_j - o_k|_b)^2`` as printed (l + 1, although there are
        l (l - 1) / 2 pairs), with l the number of marked points.
    """
    mode = "donot_use_mm_for_euclid_dist"
    difference = torch.cdist(points, points, norm, mode) - torch.cdist(target, target, norm, mode)
    return _mean_over_pairs(difference.square(), mask)


def error_difference_loss(points: Tensor, target: Tensor, mask: Tensor, exponent: float = 2.0) -> Term:
    """The constraint that the paper sets its pairwise term against (eq. 3): equal errors at all landmarks.

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``.
        exponent: The c >= 1 of the equation.

    Returns:
        ``2 / (l (l + 1)) sum_{j<k} |(f_j - o_j) - (f_k - o_k)|^c``, mean over faces.
    """
    error = points - target
    squared = (error[:, :, None] - error[:, None]).square().sum(dim=-1)
    # The derivative of |d|^c at d = 0 is infinite for the square root, although the limit is 0 for c > 1.
    return _mean_over_pairs((squared + 1e-12).pow(exponent / 2) if exponent != 2 else squared, mask)


def _mean_over_pairs(values: Tensor, mask: Tensor) -> Term:
    both = mask[:, :, None] & mask[:, None]
    count = mask.sum(dim=1)
    upper = (values * both).triu(diagonal=1).sum(dim=(1, 2))
    faces = count > 1
    return masked_term((2 * upper / (count * (count + 1)).clamp(min=1))[:, None], faces[:, None])


class LandmarkHead(Head):
    """2D landmarks from the pooled features; its terms are ``local`` (eq. 2) and ``pairwise`` (eq. 3 or 4).

    Its output is ``[B, l, 2]`` in units in which the image spans [-1, 1].

    Args:
        shape: What the backbone gives.
        points: Number of landmarks l.
        hidden: Width of a layer before the last one; None for the last one alone.
        squared: Squared distances in eq. 2, as printed.
        pairwise: Which second term the loss has: "distances" (eq. 4), "errors" (eq. 3) or "none".
        pairwise_weight: Its weight beside the local term (eq. 2); the paper gives none.
        pairwise_norm: The b of eq. 4.
        error_exponent: The c of eq. 3.

    Raises:
        ConfigurationError: If the backbone gives no pooled features.
    """

    requires = frozenset({"landmarks"})

    def __init__(
        self,
        shape: FeatureShape,
        points: int = 68,
        hidden: int | None = None,
        squared: bool = True,
        pairwise: Literal["distances", "errors", "none"] = "distances",
        pairwise_weight: float = 1.0,
        pairwise_norm: float = 2.0,
        error_exponent: float = 2.0,
    ) -> None:
        super().__init__()
        if shape.pooled == 0:
            raise ConfigurationError("LandmarkHead reads pooled features, which the backbone was not asked for.")
        self.image_size, self.squared = shape.image_size, squared
        self.pairwise, self.pairwise_weight = pairwise, pairwise_weight
        self.pairwise_norm, self.error_exponent = pairwise_norm, error_exponent
        layers: list[nn.Module] = []
        width = shape.pooled
        if hidden is not None:
            # The norm is not in the paper: without it a high learning rate kills all hidden units in the first epoch.
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.points = points
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2 * points))

    def forward(self, features: Features) -> Tensor:
        """Pooled features ``[B, pooled]`` to landmarks ``[B, l, 2]`` in units in which the image spans [-1, 1]."""
        hidden = self.layers[:-1](features.pooled)
        return last_layer(self.layers[-1], hidden).reshape(-1, self.points, 2)

    @without_autocast
    def terms(self, output: Tensor, batch: FaceBatch) -> dict[str, Term]:
        """``local``, and ``pairwise`` unless there is none; a landmark counts where both coordinates are annotated."""
        target = image_to_unit(full_precision(batch["landmarks"]), self.image_size)[..., :2]
        known = batch["landmark_mask"] & batch["has"]["landmarks"][:, None, None]
        mask = known[..., 0] & known[..., 1]
        terms = {"local": local_loss(output, target, mask, self.squared)}
        if self.pairwise == "distances":
            pairwise = pairwise_loss(output, target, mask, self.pairwise_norm)
            terms["pairwise"] = replace(pairwise, weight=self.pairwise_weight)
        elif self.pairwise == "errors":
            pairwise = error_difference_loss(output, target, mask, self.error_exponent)
            terms["pairwise"] = replace(pairwise, weight=self.pairwise_weight)
        return terms

    @without_autocast
    def read(self, output: Tensor, batch: FaceBatch) -> FacePrediction:
        """Landmarks without depth: z is 0."""
        points = torch.cat((output, torch.zeros_like(output[..., :1])), dim=-1)
        return FacePrediction(landmarks=unit_to_image(points, self.image_size))
