"""Metrics of 3D face alignment and reconstruction; pure per-sample functions are in :mod:`.functional`."""

from lightning_faces.metrics.base import YAW_BINS, PerSample, PerSampleMetric, yaw_bin_mask
from lightning_faces.metrics.collection import landmark_arguments, landmark_metrics
from lightning_faces.metrics.ground_truth_error import GroundTruthError
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError

__all__ = [
    "YAW_BINS",
    "GroundTruthError",
    "NormalizedMeanError",
    "PerSample",
    "PerSampleMetric",
    "landmark_arguments",
    "landmark_metrics",
    "yaw_bin_mask",
]
