"""Error of the coefficients of facial actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_faces.metrics.base import PerSample, PerSampleMetric, YawBin


class FacialActionError(PerSampleMetric):
    """Mean absolute error of the coefficients of facial actions (blendshapes: 0 is at rest, 1 the full action).

    Args:
        names: Names of the actions, in the order of the coefficients.
        yaw_bin: As in :class:`.NormalizedMeanError`.
    """

    WORST = 5
    """How many actions a remark names."""

    def __init__(self, names: Sequence[str], yaw_bin: YawBin | None = None) -> None:
        super().__init__("errors", yaw_bin=yaw_bin)
        self.names = tuple(names)

    def update(self, preds: Tensor, target: Tensor, index: Tensor, yaw: Tensor | None = None) -> None:
        """Add samples: coefficients ``[B, K]`` of the K actions alone, ``index`` and ``yaw`` (degrees) ``[B]``."""
        self._store(index, yaw, index >= 0, errors=(preds.double() - target.double()).abs())

    def errors_of(self, rows: dict[str, Tensor]) -> PerSample:
        """A face's error is the mean over the actions."""
        errors = rows["errors"]
        return PerSample(rows["index"], errors.mean(dim=1) if errors.dim() == 2 else errors, rows["yaw"])

    def per_action(self, rows: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Mean absolute error of each action over all samples, the worst first; empty without a sample."""
        errors = (self.rows() if rows is None else rows)["errors"]
        if len(errors) == 0:
            return {}
        means = errors.mean(dim=0)
        return {self.names[i]: float(means[i]) for i in torch.argsort(means, descending=True, stable=True).tolist()}

    def remarks(self, rows: dict[str, Tensor]) -> list[str]:
        """Names the worst actions."""
        worst = list(self.per_action(rows).items())[: self.WORST]
        return [f"Worst facial actions: {', '.join(f'{name} {value:.3f}' for name, value in worst)}."] if worst else []
