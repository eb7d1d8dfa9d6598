"""What metrics take, from a prediction and a batch: keyword arguments for all samples of the batch.

Points and poses are in the image frame, in pixels, and half precision becomes float32, so that a score is the method's
alone. Samples without a label have values of 0 here, and :class:`.Scorer` takes them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.morphable.model import MorphableModel

Values = dict[str, Tensor]


@dataclass(frozen=True)
class SharedModel:
    """The face model that a method and its data have in common, so that coefficients and vertices can be compared.

    Attributes:
        num_identity: Identity coefficients, the first of all; None where there is no such model.
        model: The model itself, where the method or the data module holds it.
    """

    num_identity: int | None = None
    model: MorphableModel | None = None

    @property
    def whole(self) -> MorphableModel:
        """The model, for those that need one to be there."""
        assert self.model is not None
        return self.model

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the facial actions, where the expressions are such."""
        known = self.model is not None and self.model.expression_kind == "blendshapes"
        return self.whole.expression_names if known else ()


def full(values: Tensor | None) -> Tensor:
    """Values that are there, in float32 or more."""
    assert values is not None
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def has(batch: FaceBatch, *keys: str) -> Tensor:
    """Bool ``[B]``: the samples that have all of these targets."""
    found = torch.ones_like(batch["index"], dtype=torch.bool)
    for key in keys:
        found = found & batch["has"].get(key, torch.zeros_like(found))
    return found


def of_landmarks(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Landmarks of both sides, which of them are annotated, the face's size, and who is seen in which view.

    A sample without a mask has all its landmarks annotated; without a size, that of the box of its landmarks.
    """
    target = full(batch["landmarks"])
    mask = torch.ones_like(target, dtype=torch.bool)
    if "landmark_mask" in batch["has"]:
        mask = batch["landmark_mask"] | ~has(batch, "landmark_mask")[:, None, None]
    box = box_of_points(target, mask[..., 0] & mask[..., 1]).double()
    size = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sqrt()
    if "face_size" in batch["has"]:
        size = torch.where(has(batch, "face_size"), batch["face_size"].double(), size)
    return {
        "preds": full(prediction.landmarks), "target": target, "landmark_mask": mask, "face_size": size,
        "index": batch["index"], "subject": batch["subject"], "view": batch["view"],
    }  # fmt: skip


def of_visible_landmarks(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """As :func:`of_landmarks`, with the true visibility."""
    return {**of_landmarks(prediction, batch, shared), "visible": batch["visible"]}


def of_visibility(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Predicted and true visibility."""
    return {"preds": full(prediction.visible), "target": batch["visible"], "index": batch["index"]}


def of_poses(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Poses of the cameras."""
    return {"preds": full(prediction.pose), "target": full(batch["pose"]), "index": batch["index"]}


def of_coefficients(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Coefficients, identity then expression."""
    preds, target = full(prediction.coefficients), full(batch["coefficients"])
    return {"preds": preds, "target": target, "index": batch["index"]}


def of_actions(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Coefficients of the facial actions."""
    values = of_coefficients(prediction, batch, shared)
    return {**values, **{key: values[key][:, shared.num_identity :] for key in ("preds", "target")}}


def of_vertices(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """The vertices that are predicted, and the true landmarks to measure the face on."""
    target = full(batch["vertices"])
    if prediction.vertex_ids is not None:
        target = target[:, prediction.vertex_ids]
    reference = full(batch["landmarks"])
    return {"preds": full(prediction.vertices), "target": target, "index": batch["index"], "reference": reference}


def of_scaled_vertices(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """As :func:`of_vertices`, with the true pose for the scale."""
    return {**of_vertices(prediction, batch, shared), "pose": full(batch["pose"])}


def of_surfaces(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """True points that look for predicted ones, both with depths of mean 0.

    Depth has no origin, and nearest points need one. The other way round, a prediction that shrinks to one spot of the
    surface would be perfect.
    """
    values = of_vertices(prediction, batch, shared)
    preds, target = (
        torch.cat((points[..., :2], points[..., 2:] - points[..., 2:].mean(dim=1, keepdim=True)), dim=-1)
        for points in (values["preds"], values["target"])
    )
    return {**values, "preds": target, "target": preds}


def of_pixels(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """PNCC + offsets in millimetres of the object frame, on all pixels of the true face.

    Those that the method takes for background count too: what it gives there is far off.
    """
    preds = full(prediction.dense["pncc"]).double() + full(prediction.dense["offsets"])
    target = full(batch["pncc"]).double() + full(batch["offsets"])
    return {"preds": preds, "target": target, "mask": batch["face_mask"] > 0.5, "index": batch["index"]}


def of_masks(prediction: FacePrediction, batch: FaceBatch, shared: SharedModel) -> Values:
    """Masks of the face."""
    preds = cast(Tensor, prediction.dense_mask)
    return {"preds": preds > 0.5, "target": batch["face_mask"] > 0.5, "index": batch["index"]}
