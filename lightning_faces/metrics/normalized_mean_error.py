"""Normalised mean error."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics.base import PerSampleMetric, YawBin
from lightning_faces.metrics.functional import DepthRule, Normalizer, normalized_mean_error, scored_points


class NormalizedMeanError(PerSampleMetric):
    """Mean of the samples' normalised mean errors, a fraction (see :func:`.functional.normalized_mean_error`).

    Sparse and dense points alike; only one number per sample is kept, so 2,000 faces of 45,000 points stream in
    constant memory.

    Args:
        dimensions: 2 (x and y in the image) or 3.
        normalizer: ``bbox`` (``sqrt(w h)``; the batch's ``face_size`` if given, else the target's own box),
            ``interocular``, ``outer_interocular``, ``diagonal``, or ``given``: the ``face_size`` of ``update``.
        depth: Depth rule ``raw | mean | min | similarity``, for 3 dimensions.
        visible_only: Score visible points only; otherwise all (PARM's NMEA).
        yaw_bin: ``0_30``, ``30_60``, ``60_90`` degrees of ``|yaw|``, or ``mean`` of the three; None for the plain mean.
    """

    def __init__(
        self,
        dimensions: int = 2,
        normalizer: str = "bbox",
        depth: DepthRule = "mean",
        visible_only: bool = False,
        yaw_bin: YawBin | None = None,
    ) -> None:
        super().__init__("error", yaw_bin=yaw_bin)
        for what, value, known in (
            ("number of dimensions", dimensions, (2, 3)),
            ("normaliser", normalizer, (*get_args(Normalizer), "given")),
            ("depth rule", depth, get_args(DepthRule)),
        ):
            if value not in known:
                raise ConfigurationError(f"Unknown {what} {value!r}: choose one of {', '.join(map(str, known))}.")
        self.dimensions = dimensions
        self.normalizer = normalizer
        self.depth: DepthRule = depth
        self.visible_only = visible_only

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        index: Tensor,
        yaw: Tensor | None = None,
        face_size: Tensor | None = None,
        visible: Tensor | None = None,
        landmark_mask: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            preds: Predicted points ``[B, L, >=D]``, image frame; further coordinates are ignored.
            target: True points, same shape.
            index: Int64 ``[B]``, the samples' positions in their data set.
            yaw: ``[B]`` degrees.
            face_size: ``[B]`` in the points' unit.
            visible: Bool ``[B, L]``.
            landmark_mask: Bool ``[B, L]`` or ``[B, L, >=D]``, which points or coordinates are annotated.
            reference: Points ``[B, N, >=D]`` that the normaliser is measured on, for dense points (not used where
                ``face_size`` is).

        Raises:
            ConfigurationError: If visibility or a given size is asked for and absent, or shapes do not fit.
        """
        if self.visible_only and visible is None:
            raise ConfigurationError("The error over visible points needs the target `visible`, which this data lacks.")
        if self.normalizer == "given" and face_size is None:
            raise ConfigurationError("The normaliser `given` needs a `face_size` for each sample.")
        preds, target = preds[..., : self.dimensions], target[..., : self.dimensions]
        scored = scored_points(landmark_mask, target)
        if self.visible_only and visible is not None:
            scored = scored & visible
        error = normalized_mean_error(
            preds,
            target,
            self.normalizer if self.normalizer != "given" else "bbox",  # type: ignore[arg-type]
            size=face_size if self.normalizer in ("bbox", "given") else None,
            depth=self.depth,
            mask=scored,
            reference=reference,
        )
        self._store(index, yaw, scored.any(dim=-1), error=error)
