"""Area under the cumulative error curve, and failure rate, of the normalised mean error."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.metrics.base import YawBin
from lightning_faces.metrics.functional import DepthRule, area_contribution, failure_contribution
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError


class _CumulativeError(NormalizedMeanError):
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


class AreaUnderCurve(_CumulativeError):  # noqa: N818  (an error of measurement, no exception)
    """Area under the curve of NME from 0 to a threshold, over the threshold: in [0, 1], higher is better.

    Args:
        threshold: A fraction; FAN's 0.07 by default.
        dimensions: As in :class:`.NormalizedMeanError`, and so are the following.
        normalizer: See there.
        depth: See there.
        visible_only: See there.
        yaw_bin: See there.
    """

    higher_is_better = True

    def contribution(self, error: Tensor) -> Tensor:
        """See :func:`.functional.area_contribution`."""
        return area_contribution(error, self.threshold)


class FailureRate(_CumulativeError):  # noqa: N818  (an error of measurement, no exception)
    """Fraction of samples whose NME is above a threshold.

    Args:
        threshold: A fraction; FAN's 0.07 by default.
        dimensions: As in :class:`.NormalizedMeanError`, and so are the following.
        normalizer: See there.
        depth: See there.
        visible_only: See there.
        yaw_bin: See there.
    """

    def contribution(self, error: Tensor) -> Tensor:
        """See :func:`.functional.failure_contribution`."""
        return failure_contribution(error, self.threshold)
