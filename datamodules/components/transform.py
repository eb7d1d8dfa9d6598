"""From a face in its file to a sample of a batch: one 2x3 matrix moves the image and every target.

File frame: pixels of the file's image (or of the canvas that a face was rendered on), x right, y down, centre of the
top-left pixel (0, 0), z in the same pixel units and larger towards the viewer. The crop is the image frame of
``FaceBatch``. How a target moves is its row of ``lightning_faces/targets.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.components.warping import warp_image, warp_images
from lightning_faces.errors import DataError
from lightning_faces.geometry.camera import (
    box_of_points,
    compose_affine,
    crop_matrix,
    face_size,
    invert_affine,
    scale_of,
    transform_points,
    transform_pose,
)
from lightning_faces.geometry.landmarks import flip_permutation
from lightning_faces.targets import MODEL_TARGETS, TARGETS

SHOWN = 0.05
"""Share of a face's box (or of its picture, if smaller) that must be inside: of less, the crop would be black."""
LARGEST = 1e6
"""Pixels beyond which no face lies: what is further away is a damaged label."""


@dataclass
class RawFace:
    """A face as its file has it.

    Attributes:
        image: Uint8 RGB ``[H, W, 3]``.
        sample_id: Name of the sample, unique in its data set.
        box: Face box (x0, y0, x1, y1) that the crop is centred on, file frame.
        targets: Target name to array without the batch dimension, file frame; names and shapes as in ``FaceBatch``.
        numbers: Any of subject, view, sequence and frame.
        source: The file that its labels come from, for messages.
    """

    image: NDArray[np.uint8]
    sample_id: str
    box: NDArray[np.float64]
    targets: dict[str, NDArray[Any]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    source: Path | None = None

    @property
    def name(self) -> str:
        """The sample and its file, for messages."""
        return f"Sample {self.sample_id}{'' if self.source is None else f' of {self.source}'}"


class Augmentation(Protocol):
    """Random changes of a training sample; all randomness comes from the generator that it is given."""

    flip: float
    """Probability of a reflection."""

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A 2x3 similarity from the plain crop to the augmented crop."""
        ...

    def appearance(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Change colours, noise and occlusion of a crop ``[H, W, 3]``; landmarks ``[L, 3]`` are in the image frame."""
        ...


def draw_change(
    augmentation: Augmentation | None, image_size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64] | None, bool]:
    """The augmentation's 2x3 similarity and whether the crop is mirrored; None and False without one."""
    if augmentation is None:
        return None, False
    return augmentation.matrix(image_size, rng), bool(rng.random() < augmentation.flip)


@dataclass(frozen=True)
class Crop:
    """Where crops lie in their files, and what that does to targets.

    All shapes are those of one face, or have a batch dimension in front.

    Attributes:
        box: Face boxes ``[..., 4]`` in the file, float64.
        similarity: ``[..., 2, 3]`` from the file to the crop before it is mirrored, float64.
        mirrored: Bool ``[...]``, which crops are mirrored.
        image_size: Side of the crop in pixels.
    """

    box: Tensor
    similarity: Tensor
    mirrored: Tensor
    image_size: int

    @classmethod
    def of_box(
        cls, box: Tensor, image_size: int, margin: float, change: Tensor | None = None, mirrored: Tensor | None = None
    ) -> Crop:
        """A crop ``margin`` times as large as the box, changed by similarities ``[..., 2, 3]`` of the crop.

        Example:
            >>> crop = Crop.of_box(torch.tensor([10.0, 20.0, 50.0, 60.0], dtype=torch.float64), 40, 1.0)
            >>> crop.frame()["box"].tolist()
            [-0.5, -0.5, 39.5, 39.5]
        """
        similarity = crop_matrix(box, image_size, margin)
        if change is not None:
            similarity = compose_affine(change, similarity)
        if mirrored is None:
            mirrored = torch.zeros(box.shape[:-1], dtype=torch.bool, device=box.device)
        return cls(box, similarity, mirrored, image_size)

    @cached_property
    def matrix(self) -> Tensor:
        """``[..., 2, 3]`` from the file to the crop, mirrored where it is."""
        reflection = self.similarity.new_tensor([[-1.0, 0.0, self.image_size - 1.0], [0.0, 1.0, 0.0]])
        reflected = compose_affine(reflection.expand_as(self.similarity), self.similarity)
        return self._where_mirrored(reflected, self.similarity)

    def frame(self) -> dict[str, Tensor]:
        """``box`` in the crop, and ``crop_to_file``, as in ``FaceBatch``."""
        box = self.box
        corners = torch.stack((box[..., [0, 1]], box[..., [2, 1]], box[..., [0, 3]], box[..., [2, 3]]), dim=-2)
        moved = box_of_points(transform_points(self.matrix, corners))
        return {"box": moved.float(), "crop_to_file": invert_affine(self.matrix).float()}

    def targets(self, given: Mapping[str, Tensor], warp: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """Move targets from the file to the crop.

        Args:
            given: Target key to values in the file frame.
            warp: Resamples maps by matrices ``[..., 2, 3]``, taking the nearest values.

        Returns:
            The same keys in the image frame; 0 where a reflection cannot carry them over.
        """
        moved = {key: self._moved(key, value, warp) for key, value in given.items()}
        if "landmarks" in moved:
            points = moved["landmarks"]
            mask = moved.get("landmark_mask", torch.ones_like(points, dtype=torch.bool))
            if "face_size" in moved:
                # The box of some of the points is not the face's, so there the file's size is scaled.
                whole = mask[..., :2].flatten(-2).all(dim=-1)
                moved["face_size"] = torch.where(whole, face_size(points), moved["face_size"])
            moved["landmarks"] = points * mask
        return moved

    def _moved(self, key: str, value: Tensor, warp: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        row = TARGETS[key]
        if row.mirrors == "permute":
            value = self._where_mirrored(value.index_select(self.mirrored.ndim, self._order(value)), value)
        elif row.mirrors == "negate":
            value = self._where_mirrored(-value, value)
        if row.moves == "points":
            value = transform_points(self.matrix, value.double()).float()
        elif row.moves == "values":
            points = value.double().flatten(-2).transpose(-1, -2)
            value = transform_points(self.matrix, points).transpose(-1, -2).reshape(value.shape).float()
        elif row.moves == "size":
            value = value * scale_of(self.matrix).to(value.dtype)
        elif row.moves == "pose":
            value = self._pose(value.double()).float()
        elif row.moves == "image":
            value = warp(value, self.matrix)
        if row.mirrors == "drop":
            value = self._where_mirrored(torch.zeros_like(value), value)
        return value

    def _pose(self, pose: Tensor) -> Tensor:
        moved = transform_pose(self.similarity, pose)
        turned = moved * moved.new_tensor([1, 1, -1, -1, -1, 1])
        turned = turned + moved.new_tensor([0, 0, 0, 0, self.image_size - 1, 0])
        return self._where_mirrored(turned, moved)

    def _order(self, value: Tensor) -> Tensor:
        return flip_permutation(value.shape[self.mirrored.ndim]).to(value.device)

    def _where_mirrored(self, yes: Tensor, no: Tensor) -> Tensor:
        chosen = self.mirrored.reshape((*self.mirrored.shape, *[1] * (no.ndim - self.mirrored.ndim)))
        return torch.where(chosen, yes, no)


def crop_face(
    raw: RawFace, image_size: int, margin: float, augmentation: Augmentation | None, rng: np.random.Generator
) -> dict[str, Any]:
    """Cut a face out of its file, with every target, as one sample for ``collate_faces``.

    Args:
        raw: The face in its file.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the face box.
        augmentation: Random changes, or None.
        rng: Source of all randomness.

    Returns:
        ``image`` float32 ``[3, H, W]`` in [0, 1], ``box``, ``crop_to_file``, targets, numbers and ``sample_id``.

    Raises:
        DataError: If the face lies outside its picture.
    """
    check_box(raw)
    change, mirrored = draw_change(augmentation, image_size, rng)
    crop = Crop.of_box(
        torch.as_tensor(raw.box, dtype=torch.float64),
        image_size,
        margin,
        None if change is None else torch.from_numpy(change),
        torch.tensor(mirrored),
    )
    given = {
        key: torch.as_tensor(value) for key, value in raw.targets.items() if not (mirrored and key in MODEL_TARGETS)
    }

    def warp(planes: Tensor, matrix: Tensor) -> Tensor:
        last = np.ascontiguousarray(planes.numpy().transpose(1, 2, 0))
        return torch.from_numpy(warp_image(last, matrix.numpy(), image_size, nearest=True).transpose(2, 0, 1))

    targets = crop.targets(given, warp)
    for key, value in targets.items():
        if TARGETS[key].cheap and not bool(torch.isfinite(value).all()):
            raise DataError(f"{raw.name} has {key} with a value that is not finite: correct its label.")
    image = warp_image(raw.image, crop.matrix.numpy(), image_size)
    if augmentation is not None:
        landmarks = targets["landmarks"].numpy() if "landmarks" in targets else None
        image = augmentation.appearance(image, landmarks, rng)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255),
        "sample_id": raw.sample_id,
        **crop.frame(),
        **raw.numbers,
        **targets,
    }


def check_box(raw: RawFace) -> None:
    """Refuse a face of which the picture shows nothing: its crop would be black.

    Raises:
        DataError: If the face's box lies outside the picture (less than a twentieth is inside), or is no box.
    """
    height, width = raw.image.shape[:2]
    low, high = raw.box[:2], raw.box[2:]
    if not np.isfinite(raw.box).all() or (high <= low).any() or np.abs(raw.box).max() > LARGEST:
        raise DataError(f"{raw.name} has the face box {raw.box.tolist()}, which is none: correct its label.")
    # Pixel centres are integers, so the picture spans from -0.5.
    inside = np.clip(high, -0.5, (width - 0.5, height - 0.5)) - np.clip(low, -0.5, (width - 0.5, height - 0.5))
    # A box may be larger than its picture, as where a long picture is taken whole.
    if float(np.prod(inside / np.minimum(high - low, (width, height)))) < SHOWN:
        raise DataError(
            f"{raw.name} has a face box {np.round(raw.box, 1).tolist()} outside its picture of "
            f"{width} x {height} pixels: correct the label, or leave the sample out."
        )


def crop_faces(
    rendered: Mapping[str, Tensor], change: Tensor, mirrored: Tensor, image_size: int, margin: float
) -> dict[str, Tensor]:
    """Cut faces out of their canvases, with every target, as a whole batch on its device.

    Args:
        rendered: ``image`` ``[B, 3, H, W]``, ``landmarks``, ``pose``, ``visible`` and other targets, canvas frame.
        change: Augmentation ``[B, 2, 3]``, float64, from the plain crop to the crop.
        mirrored: Bool ``[B]``: reflect the crop; what a reflection cannot carry over becomes 0.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the landmarks' box.

    Returns:
        The values of ``FaceBatch``, without ``has``.
    """
    landmarks = rendered["landmarks"]
    crop = Crop.of_box(box_of_points(landmarks).double(), image_size, margin, change, mirrored)
    given = {key: value for key, value in rendered.items() if key in TARGETS} | {
        "landmark_mask": torch.ones_like(landmarks, dtype=torch.bool),
        "face_size": landmarks.new_zeros(len(landmarks)),
        "yaw": rendered["pose"][:, 2].rad2deg(),
    }
    targets = crop.targets(given, lambda planes, matrix: warp_images(planes, matrix, image_size, nearest=True))
    # A photograph has 8 bits.
    image = warp_images(rendered["image"], crop.matrix, image_size).mul(255.0).round().div(255.0).clamp(0.0, 1.0)
    return {"image": image, **crop.frame(), **targets}
