"""Error of the visibility of landmarks."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import visibility_error


class VisibilityError(PerSampleMetric):
    """Fraction of landmarks that are called visible and are hidden, or the other way round.

    Args:
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples: probabilities ``[B, L]``, bool ``[B, L]``, ``index`` and ``yaw`` (degrees) ``[B]``."""
        self._store(index, yaw, index >= 0, error=visibility_error(preds, target))
