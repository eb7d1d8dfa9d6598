"""Overlap of a predicted face mask with the true one."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import intersection_over_union


class MaskOverlap(PerSampleMetric):
    """Intersection over union of masks, in [0, 1], higher is better.

    Args:
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    higher_is_better = True

    def __init__(self, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples: bool ``[B, 1, H, W]`` twice, ``index`` and ``yaw`` (degrees) ``[B]``; empty twice is 1."""
        self._store(index, yaw, index >= 0, error=intersection_over_union(preds, target))
