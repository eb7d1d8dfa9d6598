"""Error after iterative closest points."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import iterative_closest_point_error, outer_interocular_distance


class ICPError(PerSampleMetric):
    """Mean distance to the nearest true point after ICP, over the true 3D outer interocular distance, a fraction.

    The reconstruction error of VRN and PRNet on Florence and AFLW2000-3D (PRNet, sec. 4.3); see
    :func:`.functional.iterative_closest_point_error`.

    Args:
        with_scale: Fit a similarity instead of a rigid motion.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, with_scale: bool = False, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        self.with_scale = with_scale

    def update(
        self, preds: Tensor, target: Tensor, index: Tensor, reference: Tensor, yaw: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            preds: Predicted points ``[B, N, 3]``.
            target: True points ``[B, M, 3]``, same frame; no correspondence is needed.
            index: Int64 ``[B]``.
            reference: True landmarks ``[B, 68 or 66, 3]``, same frame, whose outer eye corners give the distance.
            yaw: ``[B]`` degrees.
        """
        size = outer_interocular_distance(reference.double())
        error = iterative_closest_point_error(preds, target, size=size, with_scale=self.with_scale)
        self._store(index, yaw, size > 0, error=error)
