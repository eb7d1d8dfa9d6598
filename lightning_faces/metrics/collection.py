"""The metrics that every method logs, and their arguments from a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_faces.batch import FaceBatch
from lightning_faces.metrics.base import YAW_BINS
from lightning_faces.metrics.ground_truth_error import GroundTruthError
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError


def landmark_metrics(yaw_bins: bool = False) -> MetricCollection:
    """The collection to clone per stage: ``nme`` (2D, box) and ``gte``.

    Args:
        yaw_bins: With ``nme_0_30``, ``nme_30_60``, ``nme_60_90`` and their mean ``nme_mean`` too.

    Returns:
        Metrics whose ``compute`` is a scalar, so that Lightning logs the objects. Their ``update`` takes the keywords
        of :func:`landmark_arguments`. What shares its state is listed, never guessed from the first batch's values.
    """
    metrics: dict[str, Any] = {"nme": NormalizedMeanError()}
    if yaw_bins:
        metrics.update({f"nme_{name}": NormalizedMeanError(yaw_bin=name) for name, _, _ in YAW_BINS})  # type: ignore[arg-type]
        metrics["nme_mean"] = NormalizedMeanError(yaw_bin="mean")
    groups = [list(metrics), ["gte"]]
    metrics["gte"] = GroundTruthError()
    return MetricCollection(metrics, compute_groups=groups)


def landmark_arguments(landmarks: Tensor, batch: FaceBatch) -> dict[str, Tensor]:
    """Keyword arguments of every landmark metric's ``update``, for the samples of a batch that have landmarks.

    Args:
        landmarks: Predicted landmarks ``[B, 68, 3]``, image frame.
        batch: The batch with its targets.

    Returns:
        ``preds``, ``target``, ``index``, ``subject``, ``view`` and, where the batch has them, ``yaw`` (NaN where
        unknown), ``face_size``, ``visible`` and ``landmark_mask``. All rows of samples without landmarks are left out.
    """
    has = batch["has"]
    rows = has["landmarks"]
    arguments = {
        "preds": landmarks[rows],
        "target": batch["landmarks"][rows],
        "index": batch["index"][rows],
        "subject": batch["subject"][rows],
        "view": batch["view"][rows],
    }
    if "yaw" in has:
        arguments["yaw"] = torch.where(has["yaw"], batch["yaw"], float("nan"))[rows]
    for key in ("face_size", "visible", "landmark_mask"):
        if key in has and bool(has[key][rows].all()):
            arguments[key] = batch[key][rows]
    return arguments
