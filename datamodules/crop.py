"""From a face in its file to a sample of a batch: one 2x3 matrix moves the image and every target.

File frame: pixels of the file's image, x right, y down, centre of the top-left pixel (0, 0), z in the same pixel units
and larger towards the viewer. The crop is the image frame of ``FaceBatch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from lightning_faces.geometry.camera import (
    compose_affine,
    crop_matrix,
    face_size,
    invert_affine,
    scale_of,
    transform_points,
    transform_pose,
)
from lightning_faces.geometry.landmarks import flip_permutation

POINT_TARGETS = ("landmarks", "vertices")
IMAGE_TARGETS = ("pncc", "offsets", "face_mask")
UNMIRRORED_TARGETS = ("vertices", "position_map", "coefficients", *IMAGE_TARGETS)
"""Targets that a reflection of the image cannot carry over: mirrored, they describe another face."""


@dataclass
class RawFace:
    """A face as its file has it.

    Attributes:
        image: Uint8 RGB ``[H, W, 3]``.
        sample_id: Name of the sample, unique in its data set.
        box: Face box (x0, y0, x1, y1) that the crop is centred on, file frame.
        targets: Target name to array without the batch dimension, file frame; names and shapes as in ``FaceBatch``.
        numbers: Any of subject, view, sequence and frame.
    """

    image: NDArray[np.uint8]
    sample_id: str
    box: NDArray[np.float64]
    targets: dict[str, NDArray[Any]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


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


def warp_image(
    image: NDArray[Any], matrix: NDArray[np.float64], image_size: int, nearest: bool = False
) -> NDArray[Any]:
    """Resample an image ``[H, W, C]`` by a 2x3 matrix from its pixels to a square of ``image_size``; outside is 0.

    Only the part that the crop shows is touched, and it is smoothed first where the crop is smaller, so that fine
    detail does not alias.
    """
    inverse = cv2.invertAffineTransform(matrix)
    last = image_size - 1
    corners = np.array([[0, 0, 1], [last, 0, 1], [0, last, 1], [last, last, 1]], dtype=np.float64) @ inverse.T
    shrink = float(np.sqrt(abs(np.linalg.det(inverse[:, :2]))))
    pad = int(np.ceil(3 * shrink)) + 2
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - pad, 0)
    x1, y1 = np.ceil(corners.max(axis=0)).astype(int) + pad
    part = image[y0 : max(y1, y0), x0 : max(x1, x0)]
    channels = image.shape[2]
    if part.size == 0:
        return np.zeros((image_size, image_size, channels), dtype=image.dtype)
    if shrink > 1.5 and not nearest:
        part = cv2.GaussianBlur(part, (0, 0), sigmaX=0.4 * shrink, borderType=cv2.BORDER_REPLICATE)
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (x0, y0)
    flags = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    warped = cv2.warpAffine(np.ascontiguousarray(part), shifted, (image_size, image_size), flags=flags)
    crop: NDArray[Any] = warped.reshape(image_size, image_size, channels)
    return crop


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
    """
    box = torch.as_tensor(raw.box, dtype=torch.float64)
    matrix = crop_matrix(box, image_size, margin)
    mirrored = False
    if augmentation is not None:
        matrix = compose_affine(torch.from_numpy(augmentation.matrix(image_size, rng)), matrix)
        mirrored = bool(rng.random() < augmentation.flip)
    targets = {key: torch.as_tensor(value) for key, value in raw.targets.items()}
    if mirrored:
        targets = {key: value for key, value in targets.items() if key not in UNMIRRORED_TARGETS}
    pose = targets.get("pose")
    if pose is not None:
        pose = transform_pose(matrix, pose.double())
        if mirrored:
            pose = pose * pose.new_tensor([1, 1, -1, -1, -1, 1]) + pose.new_tensor([0, 0, 0, 0, image_size - 1, 0])
        targets["pose"] = pose.float()
    if mirrored:
        mirror = matrix.new_tensor([[-1.0, 0.0, image_size - 1.0], [0.0, 1.0, 0.0]])
        matrix = compose_affine(mirror, matrix)
        for key in ("landmarks", "landmark_mask", "visible"):
            if key in targets:
                targets[key] = targets[key][flip_permutation(len(targets[key]))]
        if "yaw" in targets:
            targets["yaw"] = -targets["yaw"]
    for key in POINT_TARGETS:
        if key in targets:
            targets[key] = transform_points(matrix, targets[key].double()).float()
    if "position_map" in targets:
        values = targets["position_map"].double()
        moved = transform_points(matrix, values.reshape(3, -1).T)
        targets["position_map"] = moved.T.reshape(values.shape).float()
    if "landmarks" in targets:
        mask = targets.get("landmark_mask", torch.ones_like(targets["landmarks"], dtype=torch.bool))
        if "face_size" in targets:
            # The box of some of the points is not the face's, so there the file's size is scaled.
            known = targets["face_size"] * float(scale_of(matrix))
            targets["face_size"] = face_size(targets["landmarks"]) if mask[:, :2].all() else known
        targets["landmarks"] = targets["landmarks"] * mask
    warp = matrix.numpy()
    for key in IMAGE_TARGETS:
        if key in targets:
            planes = np.ascontiguousarray(targets[key].numpy().transpose(1, 2, 0))
            # Coordinates must not be mixed with the background across the silhouette, so no interpolation.
            targets[key] = torch.from_numpy(warp_image(planes, warp, image_size, nearest=True).transpose(2, 0, 1))
    image = warp_image(raw.image, warp, image_size)
    if augmentation is not None:
        landmarks = targets["landmarks"].numpy() if "landmarks" in targets else None
        image = augmentation.appearance(image, landmarks, rng)
    corners = torch.stack((box[[0, 1]], box[[2, 1]], box[[0, 3]], box[[2, 3]]))
    moved_corners = transform_points(matrix, corners)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255),
        "sample_id": raw.sample_id,
        "box": torch.cat((moved_corners.amin(dim=0), moved_corners.amax(dim=0))).float(),
        "crop_to_file": invert_affine(matrix).float(),
        **raw.numbers,
        **targets,
    }
