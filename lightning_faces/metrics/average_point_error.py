"""Average point error."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import DepthRule, average_point_error, scored_points


class AveragePointError(PerSampleMetric):
    """Mean of the samples' APE, un-normalised and in the points' unit: pixels in the image frame (Zhao 2016, eq. 15).

    Args:
        depth: Depth rule ``raw | mean | min | similarity``.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, depth: DepthRule = "mean", yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        self.depth: DepthRule = depth

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        index: Tensor,
        yaw: Tensor | None = None,
        landmark_mask: Tensor | None = None,
    ) -> None:
        """Add samples: points ``[B, L, 3]`` in one frame, ``index`` and ``yaw`` (degrees) ``[B]``."""
        scored = scored_points(landmark_mask, target)
        error = average_point_error(preds, target, depth=self.depth, mask=scored)
        self._store(index, yaw, scored.any(dim=-1), error=error)
