"""Cameras, 2x3 image transforms, and boxes of points.

Image frame: pixels, x right, y down, the centre of the top-left pixel is (0, 0), z in the same pixel units and larger
towards the viewer. Object frame: millimetres, x to the image right of a frontal face, y up, z towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_faces.geometry.rotation import euler_to_matrix, matrix_to_euler

CameraKind = Literal["weak_perspective", "affine", "perspective"]


@dataclass(eq=False)
class Camera:
    """Cameras from the object frame (millimetres) to the image frame (pixels), one per face.

    All kinds are a 3x4 matrix P with ``(u w, v w, w) = P (X, Y, Z, 1)`` (Hartley and Zisserman, chapter 6). Weak
    perspective and affine cameras have the third row (0, 0, 0, 1).

    Attributes:
        kind: "weak_perspective", "affine" or "perspective".
        matrix: ``[B, 3, 4]``.
        pose: ``[B, 6]`` as for :func:`weak_perspective`: the camera itself, or, of another kind, the nearest weak
            perspective to its affine approximation at the object's origin.

    Example:
        >>> pose = torch.tensor([[2.0, 0.0, 0.0, 0.0, 50.0, 60.0]])
        >>> Camera.from_pose(pose).project(torch.tensor([[[10.0, 5.0, 1.0]]]))
        tensor([[[70., 50.,  2.]]])
    """

    kind: CameraKind
    matrix: Tensor
    pose: Tensor

    @classmethod
    def from_pose(cls, pose: Tensor) -> Camera:
        """Weak-perspective cameras of poses ``[B, 6]``, as for :func:`weak_perspective`."""
        matrix = pose.new_zeros((*pose.shape[:-1], 3, 4))
        linear = euler_to_matrix(pose[..., 1:4])[..., :2, :] * pose[..., :1, None]
        matrix[..., :2, :3] = linear * pose.new_tensor([[1.0], [-1.0]])
        matrix[..., :2, 3] = pose[..., 4:6]
        matrix[..., 2, 3] = 1.0
        return cls("weak_perspective", matrix, pose)

    @classmethod
    def from_matrix(cls, kind: CameraKind, matrix: Tensor) -> Camera:
        """Cameras of matrices ``[B, 3, 4]``."""
        linear, offset = _affine_at_origin(matrix)
        upright = linear * linear.new_tensor([[1.0], [-1.0]])
        # The nearest two orthogonal rows of one length, and the third by the right-hand rule.
        u, singular, vt = torch.linalg.svd(upright, full_matrices=False)
        rows = u @ vt
        rotation = torch.cat((rows, torch.linalg.cross(rows[..., 0, :], rows[..., 1, :])[..., None, :]), dim=-2)
        scale = singular.mean(dim=-1, keepdim=True)
        return cls(kind, matrix, torch.cat((scale, matrix_to_euler(rotation), offset), dim=-1))

    def project(self, points: Tensor) -> Tensor:
        """Image of object points.

        Args:
            points: ``[B, N, 3]`` millimetres, object frame.

        Returns:
            ``[B, N, 3]``, image frame. The depth is that towards the viewer from the object's origin, in pixels at the
            camera's scale there; weak perspective gives what :func:`weak_perspective` does.
        """
        product = points @ self.matrix[..., :3].transpose(-1, -2) + self.matrix[..., None, :, 3]
        linear, _ = _affine_at_origin(self.matrix)
        towards = torch.linalg.cross(linear[..., 1, :], linear[..., 0, :])
        if self.kind == "perspective":
            scale = torch.linalg.vector_norm(towards, dim=-1, keepdim=True).sqrt()
            # A matrix is a camera up to any factor; the one that makes w a distance is positive at the origin.
            axis = self.matrix[..., 2, :3] * self.matrix[..., 2, 3:].sign()
            towards = -torch.nn.functional.normalize(axis, dim=-1) * scale
        else:
            # The camera of a face that could not be fitted is 0: so are its depths then, not 0 / 0.
            length = torch.linalg.vector_norm(towards, dim=-1, keepdim=True)
            towards = towards / length.clamp_min(torch.finfo(length.dtype).tiny).sqrt()
        depth = points @ towards[..., None]
        return torch.cat((product[..., :2] / product[..., 2:], depth), dim=-1)

    def transformed(self, matrix: Tensor) -> Camera:
        """The cameras after similarities ``[B, 2, 3]`` of the image."""
        moved = matrix[..., :2] @ self.matrix[..., :2, :] + matrix[..., 2:] * self.matrix[..., 2:, :]
        moved = torch.cat((moved, self.matrix[..., 2:, :]), dim=-2)
        if self.kind == "weak_perspective":
            return Camera(self.kind, moved, transform_pose(matrix, self.pose))
        return Camera.from_matrix(self.kind, moved)


def _affine_at_origin(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative ``[B, 2, 3]`` and value ``[B, 2]`` of a camera's image at the object's origin."""
    offset = matrix[..., :2, 3] / matrix[..., 2:, 3]
    linear = (matrix[..., :2, :3] - offset[..., None] * matrix[..., 2:, :3]) / matrix[..., 2:, 3:]
    return linear, offset


def weak_perspective(points: Tensor, pose: Tensor) -> Tensor:
    """Project object points to the image: ``s F R X + t`` with ``F = diag(1, -1, 1)`` (Richardson 2016, eq. 4).

    Args:
        points: Object-frame points in millimetres ``[..., N, 3]``.
        pose: Scale in pixels per millimetre, pitch, yaw, roll in radians, tx, ty in pixels ``[..., 6]``.

    Returns:
        Image-frame points ``[..., N, 3]``; z has no offset.
    """
    rotated = points @ (euler_to_matrix(pose[..., 1:4]) * pose[..., :1, None]).transpose(-1, -2)
    x = rotated[..., 0] + pose[..., 4:5]
    y = pose[..., 5:6] - rotated[..., 1]
    return torch.stack((x, y, rotated[..., 2]), dim=-1)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply 2x3 image transforms to points; a depth is scaled by ``sqrt(|det|)`` so that shapes keep their proportions.

    Args:
        matrix: Transforms ``[..., 2, 3]``.
        points: Points ``[..., N, 2]`` or ``[..., N, 3]`` in the source image frame.

    Returns:
        Points of the same shape in the target image frame.
    """
    moved = points[..., :2] @ matrix[..., :2].transpose(-1, -2) + matrix[..., None, :, 2]
    if points.shape[-1] == 2:
        return moved
    return torch.cat((moved, points[..., 2:] * scale_of(matrix)[..., None, None]), dim=-1)


def scale_of(matrix: Tensor) -> Tensor:
    """Length scale ``sqrt(|det|)`` of 2x3 transforms ``[..., 2, 3]``, shape ``[...]``."""
    return (matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]).abs().sqrt()


def transform_pose(matrix: Tensor, pose: Tensor) -> Tensor:
    """Pose after a similarity transform (rotation, uniform scale, translation; no reflection) of the image.

    Args:
        matrix: Similarities ``[..., 2, 3]``.
        pose: ``[..., 6]`` as for :func:`weak_perspective`.

    Returns:
        The pose ``[..., 6]`` with ``weak_perspective(X, new) == transform_points(matrix, weak_perspective(X, pose))``.
    """
    scale = scale_of(matrix)
    in_plane = torch.zeros((*matrix.shape[:-2], 3, 3), dtype=matrix.dtype, device=matrix.device)
    # The image's y points down and the object's up, so the rotation is seen through F on both sides.
    flip = matrix.new_tensor(((1.0, -1.0), (-1.0, 1.0)))
    in_plane[..., :2, :2] = matrix[..., :2] / scale[..., None, None] * flip
    in_plane[..., 2, 2] = 1.0
    angles = matrix_to_euler(in_plane @ euler_to_matrix(pose[..., 1:4]))
    translation = transform_points(matrix, pose[..., None, 4:6])[..., 0, :]
    return torch.cat(((pose[..., 0] * scale)[..., None], angles, translation), dim=-1)


def invert_affine(matrix: Tensor) -> Tensor:
    """Inverse of 2x3 transforms ``[..., 2, 3]``."""
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat((linear, -linear @ matrix[..., 2:]), dim=-1)


def compose_affine(outer: Tensor, inner: Tensor) -> Tensor:
    """The 2x3 transform that applies ``inner`` first and ``outer`` second, ``[..., 2, 3]``."""
    linear = outer[..., :2] @ inner[..., :2]
    offset = outer[..., :2] @ inner[..., 2:] + outer[..., 2:]
    return torch.cat((linear, offset), dim=-1)


def box_of_points(points: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tight box (x0, y0, x1, y1) of points ``[..., N, >=2]``; with a mask ``[..., N]``, of those that it marks."""
    xy = points[..., :2]
    if mask is None:
        return torch.cat((xy.amin(dim=-2), xy.amax(dim=-2)), dim=-1)
    low = xy.masked_fill(~mask[..., None], float("inf")).amin(dim=-2)
    high = xy.masked_fill(~mask[..., None], float("-inf")).amax(dim=-2)
    return torch.cat((low, high), dim=-1)


def face_size(points: Tensor) -> Tensor:
    """``sqrt(w * h)`` of the tight box of points ``[..., N, >=2]``: the normaliser of the NME, shape ``[...]``."""
    box = box_of_points(points)
    return ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])).sqrt()


def crop_matrix(box: Tensor, image_size: int, margin: float) -> Tensor:
    """Transform of file pixels to a square crop of ``image_size`` pixels around a box.

    The crop's side is ``margin`` times the longer side of the box; both are centred on the same point. Pixel centres
    are integers, in the file too: crop pixel c shows file position ``left + (c + 0.5) * side / image_size``, with left
    = box centre - side / 2.

    Args:
        box: (x0, y0, x1, y1) in file pixels ``[..., 4]``.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the box.

    Returns:
        Transforms ``[..., 2, 3]`` from the file to the crop.
    """
    centre = (box[..., :2] + box[..., 2:]) / 2
    side = (box[..., 2:] - box[..., :2]).amax(dim=-1) * margin
    scale = image_size / side
    offset = (image_size - 1) / 2 - scale[..., None] * centre
    zero = torch.zeros_like(scale)
    rows = ((scale, zero, offset[..., 0]), (zero, scale, offset[..., 1]))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
