"""The two contracts of the platform: what a data module gives and what every method returns.

Image frame: pixels of the tensor ``image``; x right, y down, the centre of the top-left pixel is (0, 0); z in the same
pixel units, larger towards the viewer. Object frame: millimetres; x to the image right of a frontal face, y up, z
towards the viewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera, scale_of, transform_points
from lightning_faces.targets import TARGETS, FaceSpec

__all__ = ["SAMPLE_NUMBERS", "FaceBatch", "FacePrediction", "FaceSpec", "check_compatible", "collate_faces"]


class FaceBatch(TypedDict):
    """A batch of faces. A value that a sample lacks is 0, never NaN; ``has[key]`` says which samples have it."""

    image: Tensor
    """Float32 ``[B, 3, H, W]`` RGB in [0, 1]."""
    index: Tensor
    """Int64 ``[B]``, position of the sample in its data set."""
    sample_id: list[str]
    box: Tensor
    """``[B, 4]`` face box (x0, y0, x1, y1), image frame."""
    crop_to_file: Tensor
    """``[B, 2, 3]`` transform of image pixels to the file's own pixels."""
    has: dict[str, Tensor]
    """For each target key, bool ``[B]``."""
    subject: Tensor
    """Int64 ``[B]``, -1 where unknown; likewise ``view``, ``sequence`` and ``frame``."""
    view: Tensor
    sequence: Tensor
    frame: Tensor

    landmarks: NotRequired[Tensor]
    """``[B, L, 3]`` image frame."""
    landmark_mask: NotRequired[Tensor]
    """Bool ``[B, L, 3]``: which coordinates are annotated (a 2D label has no depth)."""
    visible: NotRequired[Tensor]
    """Bool ``[B, L]``."""
    face_size: NotRequired[Tensor]
    """``[B]``, sqrt(w * h) of the box of the true projected landmarks, pixels."""
    yaw: NotRequired[Tensor]
    """``[B]`` degrees, of the head in the file (a crop's rotation in the plane does not change it)."""
    pose: NotRequired[Tensor]
    """``[B, 6]``: scale in px/mm, pitch, yaw, roll in radians, tx, ty."""
    coefficients: NotRequired[Tensor]
    """``[B, K]`` identity then expression, in standard deviations."""
    vertices: NotRequired[Tensor]
    """``[B, V, 3]`` image frame."""
    position_map: NotRequired[Tensor]
    """``[B, 3, U, U]`` image frame."""
    pncc: NotRequired[Tensor]
    """``[B, 3, H, W]`` object frame, millimetres on the mean face; likewise ``offsets`` from it."""
    offsets: NotRequired[Tensor]
    face_mask: NotRequired[Tensor]
    """``[B, 1, H, W]`` in [0, 1]: where pncc and offsets are valid."""


def check_compatible(
    method: str, needs: FaceSpec, requires: frozenset[str], data: str, gives: FaceSpec, targets: frozenset[str]
) -> None:
    """Refuse a method and a data module that do not fit, before any work is lost.

    Args:
        method: Name of the method, for the message.
        needs: What the method needs.
        requires: Target keys that the method trains on (empty where none is needed, as in prediction).
        data: Name of the data module, for the message.
        gives: What the data module gives.
        targets: Target keys that the data module can give.

    Raises:
        ConfigurationError: In one sentence that names both sides and what would fit.
    """
    for item in fields(FaceSpec):
        wanted, offered = getattr(needs, item.name), getattr(gives, item.name)
        if wanted is not None and offered is not None and wanted != offered:
            raise ConfigurationError(
                f"{method} was built for {item.name} {wanted!r} but {data} gives {offered!r}: "
                f"set {item.name} to the same value for both, or use data made with {wanted!r}."
            )
    missing = sorted(requires - targets)
    if missing:
        raise ConfigurationError(
            f"{method} trains on {', '.join(missing)}, which {data} does not give (it gives "
            f"{', '.join(sorted(targets)) or 'images only'}): choose data with {'it' if len(missing) == 1 else 'them'}."
        )


SAMPLE_NUMBERS = ("subject", "view", "sequence", "frame")


def collate_faces(samples: Sequence[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> FaceBatch:
    """Stack samples into a batch; a target that a sample lacks becomes 0 and its ``has`` False.

    Args:
        samples: Dicts with ``image`` ``[3, H, W]``, ``index``, ``sample_id``, ``box``, ``crop_to_file`` and any
            targets, without the batch dimension.
        shapes: The targets of the batch and their shapes without the batch dimension. A target that is not listed is
            dropped.

    Returns:
        The batch; every key of ``shapes`` is there, float32 or bool.

    Raises:
        ConfigurationError: If a sample's target has another shape than listed.
    """
    batch: dict[str, Any] = {
        "index": torch.tensor([int(s["index"]) for s in samples], dtype=torch.int64),
        "sample_id": [str(s["sample_id"]) for s in samples],
    }
    for key in ("image", "box", "crop_to_file"):
        batch[key] = torch.stack([torch.as_tensor(s[key], dtype=torch.float32) for s in samples])
    for key in SAMPLE_NUMBERS:
        batch[key] = torch.tensor([int(s.get(key, -1)) for s in samples], dtype=torch.int64)
    has: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        values = []
        for sample in samples:
            value = sample.get(key)
            if value is None:
                value = torch.zeros(shape, dtype=TARGETS[key].dtype)
            value = torch.as_tensor(value)
            if tuple(value.shape) != tuple(shape):
                raise ConfigurationError(
                    f"Sample {sample['sample_id']} has {key} of shape {tuple(value.shape)} but the batch wants "
                    f"{tuple(shape)}: use a method and data of the same landmark scheme and face model."
                )
            values.append(value.to(TARGETS[key].dtype))
        batch[key] = torch.stack(values)
        has[key] = torch.tensor([s.get(key) is not None for s in samples])
    batch["has"] = has
    return batch  # type: ignore[return-value]


@dataclass(eq=False)  # not frozen, since Lightning sets the fields of what it moves between devices
class FacePrediction:
    """What every method returns for a batch, in the image frame.

    Attributes:
        landmarks: ``[B, 68, 3]`` pixels.
        vertices: ``[B, V, 3]`` pixels: those that ``vertex_ids`` names, or all of the face model.
        vertex_ids: Int64 ``[V]``, which vertices of the face model those are.
        coefficients: ``[B, K]`` identity then expression in standard deviations.
        camera: From the object frame to the image frame.
        dense: Images by name, such as "pncc" and "offsets" ``[B, 3, H, W]`` in millimetres of the object frame, or
            "position_map" ``[B, 3, U, U]`` in pixels.
        dense_mask: Bool ``[B, 1, H, W]``, the pixels whose PNCC and offsets are predicted.
        visible: ``[B, 68]``, probability that a landmark can be seen.
        uncertainty: ``[B, 68]``, standard deviation of a landmark's place in pixels.
        valid: Bool ``[B]``, which faces are good; None where all are. Of a face that is not, no value means anything.
        reason: Why a face is not valid, "" where it is.
        crop_to_file: ``[B, 2, 3]``, set by :meth:`to_file`: where the pixels of the dense images lie in the file.
    """

    landmarks: Tensor
    vertices: Tensor | None = None
    vertex_ids: Tensor | None = None
    coefficients: Tensor | None = None
    camera: Camera | None = None
    dense: dict[str, Tensor] = field(default_factory=dict)
    dense_mask: Tensor | None = None
    visible: Tensor | None = None
    uncertainty: Tensor | None = None
    valid: Tensor | None = None
    reason: list[str] | None = None
    crop_to_file: Tensor | None = None

    @property
    def pose(self) -> Tensor | None:
        """``[B, 6]`` (scale px/mm, pitch, yaw, roll in radians, tx, ty) of the camera, or None without one."""
        return None if self.camera is None else self.camera.pose

    def select(self, rows: Tensor | slice) -> FacePrediction:
        """Some of the faces.

        Args:
            rows: A slice, or int64 ``[N]``.

        Example:
            >>> FacePrediction(torch.arange(6.0).reshape(2, 1, 3)).select(slice(1, 2)).landmarks
            tensor([[[3., 4., 5.]]])
        """
        chosen: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "vertex_ids" or value is None:
                continue
            if isinstance(value, Camera):
                chosen[item.name] = replace(value, matrix=value.matrix[rows], pose=value.pose[rows])
            elif isinstance(value, dict):
                chosen[item.name] = {name: image[rows] for name, image in value.items()}
            elif isinstance(value, list):
                numbers = torch.arange(len(value))[rows if isinstance(rows, slice) else rows.cpu()]
                chosen[item.name] = [value[i] for i in numbers.tolist()]
            else:
                chosen[item.name] = value[rows]
        return replace(self, **chosen)

    def to_file(self, crop_to_file: Tensor) -> FacePrediction:
        """Map the prediction to the pixels of the photograph.

        Args:
            crop_to_file: Similarities ``[B, 2, 3]`` as in the batch.

        Returns:
            The same faces with points, camera and uncertainty in file pixels. Dense images keep the grid of the crop;
            positions in them are file pixels too.
        """
        dense = dict(self.dense)
        if "position_map" in dense:
            maps = dense["position_map"]
            points = transform_points(crop_to_file, maps.flatten(2).transpose(1, 2))
            dense["position_map"] = points.transpose(1, 2).reshape(maps.shape)
        uncertainty = self.uncertainty
        return replace(
            self,
            landmarks=transform_points(crop_to_file, self.landmarks),
            vertices=None if self.vertices is None else transform_points(crop_to_file, self.vertices),
            camera=None if self.camera is None else self.camera.transformed(crop_to_file),
            dense=dense,
            uncertainty=None if uncertainty is None else uncertainty * scale_of(crop_to_file)[:, None],
            crop_to_file=crop_to_file,
        )
