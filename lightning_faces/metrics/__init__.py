"""Metrics of 3D face alignment and reconstruction; pure per-sample functions are in :mod:`.functional`."""

from lightning_faces.metrics.area_under_curve import AreaUnderCurve
from lightning_faces.metrics.average_point_error import AveragePointError
from lightning_faces.metrics.base import YAW_BINS, PerSample, PerSampleMetric, yaw_bin_mask
from lightning_faces.metrics.collection import landmark_arguments, landmark_metrics
from lightning_faces.metrics.cross_view_consistency_error import CrossViewConsistencyError
from lightning_faces.metrics.failure_rate import FailureRate
from lightning_faces.metrics.ground_truth_error import GroundTruthError
from lightning_faces.metrics.icp_error import ICPError
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError
from lightning_faces.metrics.parameter_error import ParameterError
from lightning_faces.metrics.per_vertex_error import PerVertexError

__all__ = [
    "YAW_BINS",
    "AreaUnderCurve",
    "AveragePointError",
    "CrossViewConsistencyError",
    "FailureRate",
    "GroundTruthError",
    "ICPError",
    "NormalizedMeanError",
    "ParameterError",
    "PerSample",
    "PerSampleMetric",
    "PerVertexError",
    "landmark_arguments",
    "landmark_metrics",
    "yaw_bin_mask",
]
