"""Geometry error of coefficients in millimetres."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional_model import geometry_error
from lightning_faces.morphable.model import MorphableModel


class GeometryError(PerSampleMetric):
    """Distance of corresponding vertices of the shapes that coefficients stand for, in the object frame, millimetres.

    No alignment: both shapes are of one face model, neither turned nor moved. It is the error that Richardson's loss
    (3) squares.

    Args:
        face_model: The model of the coefficients.
        root_mean_square: The root of the mean square over the vertices instead of the mean.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    def __init__(
        self, face_model: MorphableModel, root_mean_square: bool = False, yaw_bin: YawBin | None = None
    ) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        # In a tuple, since a module's module would be one of its own.
        self._face_model = (face_model,)
        self.root_mean_square = root_mean_square

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples: coefficients ``[B, K]``, identity then expression, ``index`` and ``yaw`` (degrees) ``[B]``."""
        error = geometry_error(preds, target, self._face_model[0], self.root_mean_square)
        self._store(index, yaw, index >= 0, error=error)
