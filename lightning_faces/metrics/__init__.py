"""Metrics of 3D face alignment and reconstruction.

The pure per-sample functions are in :mod:`.functional` (points) and :mod:`.functional_model` (parameters and images).
"""

from lightning_faces.metrics.angle_error import AngleError
from lightning_faces.metrics.average_point_error import AveragePointError
from lightning_faces.metrics.base import PerSample, PerSampleMetric
from lightning_faces.metrics.cross_view_consistency_error import CrossViewConsistencyError
from lightning_faces.metrics.cumulative_error import AreaUnderCurve, FailureRate
from lightning_faces.metrics.facial_action_error import FacialActionError
from lightning_faces.metrics.geometry_error import GeometryError
from lightning_faces.metrics.ground_truth_error import GroundTruthError
from lightning_faces.metrics.icp_error import ICPError
from lightning_faces.metrics.mask_overlap import MaskOverlap
from lightning_faces.metrics.normalized_mean_error import NormalizedMeanError
from lightning_faces.metrics.parameter_error import ParameterError
from lightning_faces.metrics.per_vertex_error import PerVertexError
from lightning_faces.metrics.pixel_error import PixelError
from lightning_faces.metrics.visibility_error import VisibilityError

__all__ = [
    "AngleError",
    "AreaUnderCurve",
    "AveragePointError",
    "CrossViewConsistencyError",
    "FacialActionError",
    "FailureRate",
    "GeometryError",
    "GroundTruthError",
    "ICPError",
    "MaskOverlap",
    "NormalizedMeanError",
    "ParameterError",
    "PerSample",
    "PerSampleMetric",
    "PerVertexError",
    "PixelError",
    "VisibilityError",
]
