"""Error of the parameters of a morphable model."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import parameter_error

Group = Literal["pose", "identity", "expression"]


class ParameterError(PerSampleMetric):
    """Mean norm of the error of one group of parameters (PARM, table 1).

    Args:
        group: ``pose`` (the three Euler angles in radians, differences taken around the circle), ``identity`` or
            ``expression`` (coefficients in standard deviations).
        num_identity: How many of the coefficients, from the front, are identity's.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(self, group: Group, num_identity: int = 0, yaw_bin: YawBin | None = None) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        if group not in get_args(Group):
            raise ConfigurationError(f"Unknown parameter group {group!r}: choose one of {', '.join(get_args(Group))}.")
        self.angles = group == "pose"
        self.part = {"pose": slice(1, 4), "identity": slice(num_identity), "expression": slice(num_identity, None)}[
            group
        ]

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples.

        Args:
            preds: Predicted poses ``[B, 6]`` (scale, pitch, yaw, roll in radians, tx, ty) for the group ``pose``, else
                coefficients ``[B, K]``, identity then expression.
            target: True ones, same shape.
            index: Int64 ``[B]``.
            yaw: ``[B]`` degrees.
        """
        error = parameter_error(preds[:, self.part], target[:, self.part], angles=self.angles)
        self._store(index, yaw, index >= 0, error=error)
