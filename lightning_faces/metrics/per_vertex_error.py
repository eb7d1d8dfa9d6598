"""Per-vertex error in millimetres."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import per_vertex_error


class PerVertexError(PerSampleMetric):
    """Mean distance of corresponding vertices after similarity alignment, millimetres (Richardson 2016, fig. 11).

    Args:
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)

    def update(self, preds: Tensor, target: Tensor, index: Tensor, pose: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples.

        Args:
            preds: Predicted vertices ``[B, V, 3]``.
            target: True vertices ``[B, V, 3]``, image frame.
            index: Int64 ``[B]``.
            pose: True pose ``[B, 6]``, whose first entry is the scale in pixels per millimetre.
            yaw: ``[B]`` degrees.
        """
        self._store(index, yaw, index >= 0, error=per_vertex_error(preds, target, scale=pose[:, 0]))
