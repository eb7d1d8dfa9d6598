"""Cropping whole batches on their device: what ``crop.py`` does to one face in a loader process.

The canvas that faces were rendered on is the file frame; the crop is the image frame of ``FaceBatch``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.crop import IMAGE_TARGETS, POINT_TARGETS, UNMIRRORED_TARGETS
from lightning_faces.geometry import camera
from lightning_faces.geometry.landmarks import flip_permutation
from lightning_faces.rendering.synthesis.photograph import gaussian_blur


def warp_images(images: Tensor, matrix: Tensor, image_size: int, nearest: bool = False) -> Tensor:
    """Resample images ``[B, C, H, W]`` by matrices ``[B, 2, 3]`` from their pixels to squares; outside is 0.

    Where the result is more than 1.5 times smaller, it is smoothed first, as in ``crop.warp_image``.
    """
    inverse = camera.invert_affine(matrix)
    shrink = camera.scale_of(inverse)
    if not nearest and bool((shrink > 1.5).any()):
        sigma = torch.where(shrink > 1.5, 0.4 * shrink, 0.0).to(images.dtype)
        images = gaussian_blur(images, sigma[:, None].expand(-1, 2))
    height, width = images.shape[-2:]
    steps = torch.arange(image_size, dtype=inverse.dtype, device=inverse.device)
    across = inverse[:, :, 0, None, None] * steps + inverse[:, :, 2, None, None]
    places = across + inverse[:, :, 1, None, None] * steps[:, None]
    # From pixels, whose centres are integers, to grid_sample's -1 and 1 at the centres of the outermost.
    last = inverse.new_tensor([width - 1.0, height - 1.0])
    grid = (places.permute(0, 2, 3, 1) * (2.0 / last) - 1.0).to(images.dtype)
    mode = "nearest" if nearest else "bilinear"
    return nn.functional.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=True)


def crop_faces(
    rendered: dict[str, Tensor], change: Tensor, mirrored: Tensor, image_size: int, margin: float
) -> dict[str, Tensor]:
    """Cut faces out of their canvases, with every target.

    Args:
        rendered: ``image`` ``[B, 3, H, W]``, ``landmarks``, ``pose``, ``visible`` and other targets, canvas frame.
        change: Augmentation ``[B, 2, 3]``, float64, from the plain crop to the crop.
        mirrored: Bool ``[B]``: reflect the crop; what a reflection cannot carry over becomes 0.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the landmarks' box.

    Returns:
        The values of ``FaceBatch``, without ``has``.
    """
    box = camera.box_of_points(rendered["landmarks"]).double()
    matrix = camera.compose_affine(change, camera.crop_matrix(box, image_size, margin))
    faces = dict(rendered)
    pose = camera.transform_pose(matrix, rendered["pose"].double())
    turned = pose * pose.new_tensor([1, 1, -1, -1, -1, 1]) + pose.new_tensor([0, 0, 0, 0, image_size - 1, 0])
    faces["pose"] = torch.where(mirrored[:, None], turned, pose).float()
    yaw = rendered["pose"][:, 2].rad2deg()
    faces["yaw"] = torch.where(mirrored, -yaw, yaw)
    reflection = matrix.new_tensor([[-1.0, 0.0, image_size - 1.0], [0.0, 1.0, 0.0]]).expand_as(matrix)
    matrix = torch.where(mirrored[:, None, None], camera.compose_affine(reflection, matrix), matrix)
    order = flip_permutation(rendered["landmarks"].shape[1]).to(mirrored.device)
    for key in ("landmarks", "visible"):
        value = rendered[key]
        chosen = mirrored.reshape(-1, *[1] * (value.ndim - 1))
        faces[key] = torch.where(chosen, value[:, order], value)
    for key in POINT_TARGETS:
        if key in faces:
            faces[key] = camera.transform_points(matrix, faces[key].double()).float()
    if "position_map" in faces:
        values = faces["position_map"].double()
        moved = camera.transform_points(matrix, values.flatten(2).transpose(1, 2))
        faces["position_map"] = moved.transpose(1, 2).reshape(values.shape).float()
    faces["face_size"] = camera.face_size(faces["landmarks"])
    faces["landmark_mask"] = torch.ones_like(faces["landmarks"], dtype=torch.bool)
    for key in IMAGE_TARGETS:
        if key in faces:
            faces[key] = warp_images(faces[key], matrix, image_size, nearest=True)
    # A photograph has 8 bits.
    faces["image"] = warp_images(rendered["image"], matrix, image_size).mul(255.0).round().div(255.0).clamp(0.0, 1.0)
    for key in UNMIRRORED_TARGETS:
        if key in faces:
            value = faces[key]
            faces[key] = value.masked_fill(mirrored.reshape(-1, *[1] * (value.ndim - 1)), 0.0)
    corners = torch.stack((box[:, [0, 1]], box[:, [2, 1]], box[:, [0, 3]], box[:, [2, 3]]), dim=1)
    faces["box"] = camera.box_of_points(camera.transform_points(matrix, corners)).float()
    faces["crop_to_file"] = camera.invert_affine(matrix).float()
    return faces
