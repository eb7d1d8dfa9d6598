"""Ground truth error of the 3DFAW challenge."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import ground_truth_error, scored_points


class GroundTruthError(PerSampleMetric):
    """Mean of the samples' GTE, a fraction (Zhao 2016, eq. 13).

    GTE is ``mean_k |s_k - g_k| / d`` in 3D with d the distance between the outer eye corners of the target, in 3D; the
    mean z over the points is removed from both sides, as in 3DFAW's labels.

    Args:
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        index: Tensor,
        yaw: Tensor | None = None,
        landmark_mask: Tensor | None = None,
    ) -> None:
        """Add samples: points ``[B, 68 or 66, 3]`` in the image frame, ``index`` and ``yaw`` (degrees) ``[B]``."""
        scored = scored_points(landmark_mask, target)
        self._store(index, yaw, scored.any(dim=-1), error=ground_truth_error(preds, target, mask=scored))
