"""What is said of a face beside its landmarks, under names: pose, coefficients, facial actions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_faces.batch import FacePrediction
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_landmarks
from lightning_faces.predict.predictor import FoundFace
from lightning_faces.rendering.maps import FaceMaps


@dataclass(frozen=True)
class NamedFace:
    """A face with a value for all that the outputs need.

    Attributes:
        found: The face as the method gives it.
        prediction: The same, with camera, coefficients, vertices and visibility where a face model gave them.
        fitted: Names of the values that do not come from the method: the face model was fitted to its landmarks.
    """

    found: FoundFace
    prediction: FacePrediction
    fitted: tuple[str, ...]


class FaceCompleter:
    """Fits a face model to landmarks where a method predicts landmarks alone.

    Args:
        method: Whose face model is used; one without gets the embedded one.
    """

    def __init__(self, method: FaceMethod) -> None:
        own = next((module for module in method.modules() if isinstance(module, MorphableModel)), None)
        self.model = (MorphableModel.load("embedded") if own is None else own).cpu()
        self.scheme = method.spec.landmark_scheme or "68"
        self._maps: FaceMaps | None = None

    def complete(self, face: FoundFace) -> NamedFace:
        """Add what the method does not predict; of a face that is not believed, nothing."""
        given = face.prediction
        if not face.believed:
            return NamedFace(face, given, ())
        added: dict[str, Any] = {}
        if given.camera is None or given.coefficients is None:
            flat = bool((given.landmarks[..., 2] == 0).all())
            fit = fit_landmarks(given.landmarks[..., :2] if flat else given.landmarks, self.scheme, self.model)
            if not bool(fit.valid[0]):
                return NamedFace(face, given, ())
            offered = {"camera": fit.camera, "coefficients": fit.coefficients, "vertices": fit.vertices}
            added = {name: value for name, value in offered.items() if getattr(given, name) is None}
        prediction = replace(given, **added)
        if prediction.visible is None and prediction.vertex_ids is None and prediction.vertices is not None:
            added["visible"] = self.visible(prediction.vertices)
            prediction = replace(prediction, visible=added["visible"])
        return NamedFace(face, prediction, tuple(sorted(added)))

    def visible(self, vertices: Tensor) -> Tensor | None:
        """Which landmarks ``[B, 68]`` of a surface face the viewer; None for another scheme than the 68 points."""
        if self.scheme != "68" or "bfm" not in self.model.landmark_embeddings:
            return None
        if self._maps is None:
            self._maps = FaceMaps(self.model, 8, 8)
        return self._maps.visible_by_normal(vertices).float()


def record(face: NamedFace, model: MorphableModel) -> dict[str, Any]:
    """A face as plain numbers and text.

    Args:
        face: The face.
        model: The face model of its coefficients.

    Returns:
        ``box`` and ``landmarks`` in pixels of the photograph; ``confidence`` of the detector; ``valid`` and ``reason``;
        ``visible``, probabilities, and ``uncertainty``, standard deviations in pixels, of the landmarks; ``pose`` with
        angles in degrees, and ``matrix``, 4x4 from millimetres of the object frame to pixels; the ``camera``'s own 3x4
        matrix; ``coefficients`` and ``actions`` by name, actions from 0 to 1; ``fitted``, the names of those that come
        from a face model that was fitted to the landmarks. What there is not is None.
    """
    found, prediction = face.found, face.prediction
    identity, expression = coefficient_names(model)
    coefficients = prediction.coefficients
    named: dict[str, float] | None = None
    actions: dict[str, float] | None = None
    if coefficients is not None:
        values = _rounded(coefficients[0], 4)
        names = identity + expression
        if len(values) != len(names):
            names = [f"coefficient_{i + 1}" for i in range(len(values))]
        named = dict(zip(names, values))
        if model.expression_kind == "blendshapes" and model.expression_names and len(values) == len(names):
            actions = {name: min(max(named[name], 0.0), 1.0) for name in expression if name in named}
    camera, pose, matrix = prediction.camera, None, None
    if camera is not None:
        numbers = camera.pose[0].double()
        matrix = [_rounded(row, 6) for row in pose_matrix(numbers)]
        pose = {
            "scale": round(float(numbers[0]), 6),
            **{name: round(math.degrees(float(numbers[k])), 3) for k, name in enumerate(("pitch", "yaw", "roll"), 1)},
            "tx": round(float(numbers[4]), 3),
            "ty": round(float(numbers[5]), 3),
        }
    return {
        "valid": found.believed,
        "reason": found.reason,
        "box": _rounded(torch.from_numpy(found.box), 3),
        "confidence": found.confidence,
        "landmarks": [_rounded(point, 4) for point in prediction.landmarks[0]],
        "visible": None if prediction.visible is None else _rounded(prediction.visible[0], 3),
        "uncertainty": None if prediction.uncertainty is None else _rounded(prediction.uncertainty[0], 3),
        "pose": pose,
        "matrix": matrix,
        "camera": None
        if camera is None
        else {"kind": camera.kind, "matrix": [_rounded(row, 6) for row in camera.matrix[0]]},
        "coefficients": named,
        "actions": actions,
        "fitted": list(face.fitted),
    }


def coefficient_names(model: MorphableModel) -> tuple[list[str], list[str]]:
    """Names of a face model's identity and expression coefficients: its own, or numbers."""
    identity = [f"identity_{i + 1}" for i in range(model.num_identity)]
    numbered = [f"expression_{i + 1}" for i in range(model.num_expression)]
    return identity, list(model.expression_names) or numbered


def pose_matrix(pose: Tensor) -> Tensor:
    """The 4x4 matrix M of a pose ``[6]``: ``(x, y, z, 1) = M (X, Y, Z, 1)``, object frame (mm) to image frame (pixels).

    Example:
        >>> matrix = pose_matrix(torch.tensor([2.0, 0.0, 0.0, 0.0, 50.0, 60.0]))
        >>> (matrix @ torch.tensor([10.0, 5.0, 1.0, 1.0])).tolist()
        [70.0, 50.0, 2.0, 1.0]
    """
    matrix = torch.eye(4, dtype=pose.dtype)
    flip = pose.new_tensor([[1.0], [-1.0], [1.0]])
    matrix[:3, :3] = flip * euler_to_matrix(pose[1:4]) * pose[0]
    matrix[:2, 3] = pose[4:6]
    return matrix


def _rounded(values: Tensor, digits: int) -> list[float]:
    # Adding 0 makes -0 a 0.
    return [round(value, digits) + 0.0 for value in values.double().tolist()]
