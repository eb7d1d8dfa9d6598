"""Failure rate of the normalised mean error."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import YawBin
from lightning_faces.metrics.functional import DepthRule, failure_contribution
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError


class FailureRate(NormalizedMeanError):  # noqa: N818  (an error of measurement, no exception)
    """Fraction of samples whose NME is above a threshold.

    Args:
        threshold: A fraction; FAN's 0.07 by default.
        dimensions: As in :class:`.NormalizedMeanError`, and so are the following.
        normalizer: See there.
        depth: See there.
        visible_only: See there.
        yaw_bin: See there.
    """

    higher_is_better = False

    def __init__(
        self,
        threshold: float = 0.07,
        dimensions: int = 2,
        normalizer: str = "bbox",
        depth: DepthRule = "mean",
        visible_only: bool = False,
        yaw_bin: YawBin | None = None,
    ) -> None:
        super().__init__(dimensions, normalizer, depth, visible_only, yaw_bin)
        self.threshold = threshold

    def contribution(self, error: Tensor) -> Tensor:
        """See :func:`.functional.failure_contribution`."""
        return failure_contribution(error, self.threshold)
