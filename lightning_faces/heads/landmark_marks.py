"""What a network knows of each landmark beside its place: whether it can be seen, and how sure the place is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term, full_precision, masked_term

START = 0.03
"""Standard deviation that a training begins with, over the image's side."""
LEAST = 1e-3
"""The least standard deviation, over the image's side: the likelihood of a perfect place has no bound."""


class MarkedLandmarks(NamedTuple):
    """Landmarks, and a value for each.

    Attributes:
        points: ``[B, S, L, 2]`` in pixels, from each of S heads.
        values: ``[B, L]`` logits of the visibility, or ``[B, S, L]`` standard deviations in pixels.
    """

    points: Tensor
    values: Tensor


def _linear(name: str, shape: FeatureShape, out: int) -> nn.Linear:
    if shape.pooled == 0:
        raise ConfigurationError(f"{name} reads pooled features, which the backbone was not asked for.")
    return nn.Linear(shape.pooled, out)


def flat_landmarks(points: Tensor) -> Tensor:
    """Points ``[B, L, 2]`` as landmarks ``[B, L, 3]`` without depth."""
    return torch.cat((points, torch.zeros_like(points[..., :1])), dim=-1)


class VisibilityHead(Head):
    """Whether each landmark can be seen, from the pooled features; its term is ``visibility``, the cross entropy.

    It marks the landmarks of other heads.

    Args:
        shape: What the backbone gives.
        points: Number of landmarks L.

    Raises:
        ConfigurationError: If the backbone gives no pooled features.
    """

    requires = frozenset({"visible"})

    def __init__(self, shape: FeatureShape, points: int = 68) -> None:
        super().__init__()
        self.layer = _linear("VisibilityHead", shape, points)

    def forward(self, inputs: tuple[Features, Tensor]) -> MarkedLandmarks:
        """Features, and landmarks ``[B, S, L, 2]`` in pixels, to landmarks with logits ``[B, L]``."""
        features, points = inputs
        assert features.pooled is not None
        return MarkedLandmarks(points, last_layer(self.layer, features.pooled))

    @without_autocast
    def terms(self, output: MarkedLandmarks, batch: FaceBatch) -> dict[str, Term]:
        """``visibility``: the mean over landmarks whose visibility is known."""
        target = batch["visible"].to(output.values.dtype)
        error = nn.functional.binary_cross_entropy_with_logits(output.values, target, reduction="none")
        return {"visibility": masked_term(error, batch["has"]["visible"][:, None].expand_as(error))}

    @without_autocast
    def read(self, output: MarkedLandmarks, batch: FaceBatch) -> FacePrediction:
        """The landmarks of the first head, with probabilities."""
        return FacePrediction(landmarks=flat_landmarks(output.points[:, 0]), visible=output.values.sigmoid())


class UncertaintyHead(Head):
    """How far off each landmark may be, by each of the heads that give landmarks, from the pooled features.

    Its term ``uncertainty`` is the negative logarithm of the likelihood of the true place in pixels under a normal
    distribution around the found one, ``log s^2 + |d|^2 / (2 s^2)`` for two coordinates, without its constant (Wood et
    al. 2022, eq. 2). The gradient goes to places and standard deviations, as there.

    Args:
        shape: What the backbone gives.
        sources: Number S of heads that give landmarks.
        points: Number of landmarks L.
        weight: Weight of the term.

    Raises:
        ConfigurationError: If the backbone gives no pooled features.
    """

    requires = frozenset({"landmarks"})

    def __init__(self, shape: FeatureShape, sources: int = 1, points: int = 68, weight: float = 0.01) -> None:
        super().__init__()
        self.image_size, self.weight = shape.image_size, weight
        self.layer = _linear("UncertaintyHead", shape, sources * points)
        nn.init.constant_(self.layer.bias, math.log(START))
        with torch.no_grad():
            self.layer.weight.mul_(0.1)

    def forward(self, inputs: tuple[Features, Tensor]) -> MarkedLandmarks:
        """Features, and landmarks ``[B, S, L, 2]`` in pixels, to landmarks with standard deviations."""
        features, points = inputs
        assert features.pooled is not None
        logarithm = last_layer(self.layer, features.pooled).reshape(points.shape[:-1])
        # Beyond the image's side it makes no difference, and an exponential would overflow.
        return MarkedLandmarks(points, self.image_size * (LEAST + logarithm.clamp(max=0.0).exp()))

    @without_autocast
    def terms(self, output: MarkedLandmarks, batch: FaceBatch) -> dict[str, Term]:
        """``uncertainty``, the mean over heads and landmarks with both coordinates."""
        difference = output.points - full_precision(batch["landmarks"])[:, None, :, :2]
        variance = output.values.square()
        error = variance.log() + difference.square().sum(dim=-1) / (2 * variance)
        mask = batch["landmark_mask"][..., :2].all(dim=-1) & batch["has"]["landmarks"][:, None]
        term = masked_term(error, mask[:, None].expand_as(error))
        return {"uncertainty": Term(term.value, term.count, self.weight)}

    @without_autocast
    def read(self, output: MarkedLandmarks, batch: FaceBatch) -> FacePrediction:
        """The landmarks of the first head, with standard deviations in pixels."""
        return FacePrediction(landmarks=flat_landmarks(output.points[:, 0]), uncertainty=output.values[:, 0])
