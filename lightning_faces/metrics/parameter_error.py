"""Error of the parameters of a morphable model."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import parameter_error

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
        self.group = group
        self.num_identity = num_identity

    def update(
        self,
        preds_pose: Tensor,
        target_pose: Tensor,
        preds_coefficients: Tensor,
        target_coefficients: Tensor,
        index: Tensor,
        yaw: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            preds_pose: ``[B, 6]``: scale, pitch, yaw, roll in radians, tx, ty.
            target_pose: ``[B, 6]``.
            preds_coefficients: ``[B, K]``, identity then expression.
            target_coefficients: ``[B, K]``.
            index: Int64 ``[B]``.
            yaw: ``[B]`` degrees.
        """
        if self.group == "pose":
            error = parameter_error(preds_pose[:, 1:4], target_pose[:, 1:4], angles=True)
        else:
            part = slice(self.num_identity) if self.group == "identity" else slice(self.num_identity, None)
            error = parameter_error(preds_coefficients[:, part], target_coefficients[:, part])
        self._store(index, yaw, index >= 0, error=error)
