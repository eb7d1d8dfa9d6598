"""The scores of the platform, one row each: name, unit, direction, what it needs, and the metric.

To add a score, write its metric (a :class:`.PerSampleMetric`, in ``metrics/``) and a row in :data:`SCORES`. A row is
scored wherever prediction and batch have what it needs; see :class:`.Scorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.evaluation import score_values as values
from lightning_faces.evaluation.aggregate import aggregates_of
from lightning_faces.evaluation.score_values import SharedModel, Values
from lightning_faces.metrics import (
    AngleError,
    AveragePointError,
    CrossViewConsistencyError,
    FacialActionError,
    GeometryError,
    GroundTruthError,
    ICPError,
    MaskOverlap,
    NormalizedMeanError,
    ParameterError,
    PerSampleMetric,
    PerVertexError,
    PixelError,
    VisibilityError,
)
from lightning_faces.metrics.angle_error import Angle
from lightning_faces.metrics.functional import DepthRule

Stage = Literal["val", "test"]
Unit = Literal["fraction", "px", "mm", "rad", "deg", "sd"]
"""A fraction is 0.05 for 5 %; sd are standard deviations of a face model's coefficients."""


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        name: In records and tables.
        unit: Of its values.
        metric: Makes the metric, whose ``update`` takes keywords that ``values`` gives; of the face model that method
            and data share, which is there if ``face_model`` asks for it.
        values: The metric's keywords for a whole batch, ``index`` among them. Samples that lack a label, or whose
            prediction is not valid, are taken out afterwards.
        predicted: Fields of the prediction that it needs; "dense.NAME" is an image by name.
        labels: Target keys of the batch that it needs.
        face_model: What must be in common: "any" nothing, "same" the face model, "whole" with its bases at hand,
            "actions" such a one whose expressions are facial actions.
        depth: Whether landmarks need a depth.
        eyes: Whether landmarks need outer eye corners.
        higher_is_better: Direction.
        by_yaw: Record the three yaw bins and their mean too.
        by_threshold: Record the area under the cumulative error curve and the failure rate too.
        logged: Stages in which every method logs it; records have it in any case.
        slow: Scored on demand only.
    """

    name: str
    unit: Unit
    metric: Callable[[SharedModel], PerSampleMetric]
    values: Callable[[FacePrediction, FaceBatch, SharedModel], Values] = values.of_landmarks
    predicted: tuple[str, ...] = ("landmarks",)
    labels: tuple[str, ...] = ("landmarks",)
    face_model: Literal["any", "same", "whole", "actions"] = "any"
    depth: bool = False
    eyes: bool = False
    higher_is_better: bool = False
    by_yaw: bool = False
    by_threshold: bool = False
    logged: tuple[Stage, ...] = ()
    slow: bool = False

    def metrics(self) -> dict[str, tuple[str, bool]]:
        """Names of the metrics that a record may hold of it, with their units and whether more is better."""
        found: dict[str, tuple[str, bool]] = {self.name: (self.unit, self.higher_is_better)}
        for name in aggregates_of(self.name, self.by_yaw, self.by_threshold):
            area, failure = "_auc_" in name, "_failure_" in name
            found[name] = ("fraction" if area or failure else self.unit, area or self.higher_is_better)
        return found


BOTH: tuple[Stage, ...] = ("val", "test")
SAME: Literal["same"] = "same"
DENSE = ("vertices",), ("landmarks", "vertices"), SAME
COEFFICIENTS = ("coefficients",), ("coefficients",)
PIXELS = ("dense.pncc", "dense.offsets"), ("pncc", "offsets", "face_mask")
POSE = ("camera",), ("pose",)


def _depth_rule(rule: DepthRule) -> Score:
    return Score(f"nme_3d_{rule}", "fraction", lambda _: NormalizedMeanError(3, depth=rule), depth=True)


def _angle(angle: Angle) -> Score:
    return Score(f"{angle}_deg", "deg", lambda _: AngleError(angle), values.of_poses, *POSE)


SCORES: tuple[Score, ...] = (
    # Landmarks.
    Score("nme", "fraction", lambda _: NormalizedMeanError(), by_yaw=True, by_threshold=True, logged=BOTH),
    *(_depth_rule(rule) for rule in get_args(DepthRule)),
    Score("gte", "fraction", lambda _: GroundTruthError(), depth=True, eyes=True, logged=BOTH),
    Score("ape", "px", lambda _: AveragePointError(), depth=True),
    Score("cvgtce", "fraction", lambda _: CrossViewConsistencyError(), depth=True, eyes=True),
    Score("cvgtce_printed", "fraction", lambda _: CrossViewConsistencyError("unsquared"), depth=True, eyes=True),
    Score(
        "nme_visible", "fraction", lambda _: NormalizedMeanError(visible_only=True), values.of_visible_landmarks,
        labels=("landmarks", "visible"),
    ),
    Score(
        "visibility_error", "fraction", lambda _: VisibilityError(), values.of_visibility, ("visible",),
        ("landmarks", "visible"), logged=BOTH,
    ),
    # Vertices.
    Score("dense_nme", "fraction", lambda _: NormalizedMeanError(), values.of_vertices, *DENSE, logged=BOTH),
    Score("dense_nme_3d", "fraction", lambda _: NormalizedMeanError(3), values.of_vertices, *DENSE, logged=BOTH),
    Score(
        "vertex_mm", "mm", lambda _: PerVertexError(), values.of_scaled_vertices, ("vertices",),
        ("landmarks", "vertices", "pose"), "same",
    ),
    Score(
        "icp", "fraction", lambda _: ICPError(), values.of_surfaces, *DENSE, eyes=True, by_yaw=True, slow=True,
    ),
    # Images of positions.
    Score("pixel_mm", "mm", lambda _: PixelError(), values.of_pixels, *PIXELS, logged=BOTH),
    Score("pixel_median_mm", "mm", lambda _: PixelError("median"), values.of_pixels, *PIXELS, logged=BOTH),
    Score(
        "mask_iou", "fraction", lambda _: MaskOverlap(), values.of_masks, ("dense_mask",), ("face_mask",),
        higher_is_better=True, logged=BOTH,
    ),
    # Pose and coefficients.
    Score("pose_error", "rad", lambda _: ParameterError("pose"), values.of_poses, *POSE),
    *(_angle(angle) for angle in get_args(Angle)),
    Score(
        "identity_error", "sd", lambda shared: ParameterError("identity", shared.num_identity or 0),
        values.of_coefficients, *COEFFICIENTS, "same",
    ),
    Score(
        "expression_error", "sd", lambda shared: ParameterError("expression", shared.num_identity or 0),
        values.of_coefficients, *COEFFICIENTS, "same",
    ),
    Score(
        "geometry_mm", "mm", lambda shared: GeometryError(shared.whole), values.of_coefficients, *COEFFICIENTS, "whole",
        logged=BOTH,
    ),
    Score(
        "geometry_rms_mm", "mm", lambda shared: GeometryError(shared.whole, root_mean_square=True),
        values.of_coefficients, *COEFFICIENTS, "whole",
    ),
    Score(
        "action_error", "fraction", lambda shared: FacialActionError(shared.actions), values.of_actions, *COEFFICIENTS,
        "actions", logged=BOTH,
    ),
)  # fmt: skip
"""All scores, in the order of a record."""


def logged_scores(stage: Stage, scores: Sequence[Score] = SCORES) -> list[Score]:
    """The scores that every method logs in a stage, where its data have what they need."""
    return [score for score in scores if stage in score.logged]


def logged_names(stage: Stage) -> list[str]:
    """Names, without prefix, of what a method may log in a stage; in a test the aggregates too."""
    scores = logged_scores(stage)
    if stage == "val":
        return [score.name for score in scores]
    return [name for score in scores for name in score.metrics() if "_auc_" not in name and "_failure_" not in name]


def units(scores: Sequence[Score] = SCORES) -> dict[str, tuple[str, bool]]:
    """Unit of each metric that a record may hold, and whether more of it is better."""
    # Means of scores first, then what is aggregated of them.
    found: dict[str, tuple[str, bool]] = {score.name: (score.unit, score.higher_is_better) for score in scores}
    for score in scores:
        found.update({name: value for name, value in score.metrics().items() if name not in found})
    return found
