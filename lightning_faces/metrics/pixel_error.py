"""Error of an image of 3D positions in millimetres."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import Statistic, pixel_error


class PixelError(PerSampleMetric):
    """3D distance per valid pixel of images of positions, such as PNCC + offsets (pix2face 2017), in their unit.

    Args:
        statistic: ``mean`` or ``median`` over a face's pixels; the result is the mean over faces of that.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, statistic: Statistic = "mean", yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        self.statistic: Statistic = statistic

    def update(self, preds: Tensor, target: Tensor, mask: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples; a face without a valid pixel is not counted.

        Args:
            preds: Predicted positions ``[B, 3, H, W]``.
            target: True positions, same shape and frame.
            mask: Bool ``[B, 1, H, W]``, the pixels that are scored.
            index: Int64 ``[B]``.
            yaw: ``[B]`` degrees.
        """
        error = pixel_error(preds, target, mask, self.statistic)
        self._store(index, yaw, mask.flatten(1).any(dim=1), error=error)
