"""Error of one angle of the head's pose in degrees."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import angle_error

Angle = Literal["pitch", "yaw", "roll"]


class AngleError(PerSampleMetric):
    """Mean absolute error of pitch, yaw or roll in degrees, differences taken around the circle.

    Args:
        angle: Which one, in the order and signs of 300W-LP (see ``geometry/rotation.py``).
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, angle: Angle, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        if angle not in get_args(Angle):
            raise ConfigurationError(f"Unknown angle {angle!r}: choose one of {', '.join(get_args(Angle))}.")
        self.place = 1 + get_args(Angle).index(angle)

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples: poses ``[B, 6]`` (scale, pitch, yaw, roll in radians, tx, ty), ``index`` and ``yaw`` ``[B]``."""
        error = angle_error(preds[:, self.place], target[:, self.place])
        self._store(index, yaw, index >= 0, error=error)
