"""A batch of faces drawn from a face model, with every target that dense methods train on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.geometry import weak_perspective
from lightning_faces.geometry.camera import face_size
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.maps import FaceMaps


def rendered_faces(model: MorphableModel, count: int, size: int, seed: int = 0) -> tuple[FaceBatch, Tensor]:
    """Faces with perfect targets, of which the image shows the offsets and the PNCC, so that a network can learn them.

    Returns:
        The batch and the true vertices ``[B, V, 3]``, image frame.
    """
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(count, model.num_identity, generator=generator)
    expression = 0.3 * torch.rand(count, model.num_expression, generator=generator)
    shapes = model.vertices(identity, expression)
    angles = torch.tensor([0.2, 0.5, 0.2]) * torch.randn(count, 3, generator=generator)
    scale = torch.full((count, 1), size / 260)
    pose = torch.cat((scale, angles, torch.full((count, 2), (size - 1) / 2)), dim=1)
    vertices = weak_perspective(shapes, pose)
    maps = FaceMaps(model, size)
    pncc, offsets, mask = maps.pncc(maps.face_region(vertices), shapes)
    landmarks = model.landmarks(vertices)
    samples: list[dict[str, Any]] = []
    for i in range(count):
        shown = 0.5 + pncc[i] / 400 + offsets[i] / 100
        targets = {
            "landmarks": landmarks[i],
            "landmark_mask": torch.ones(68, 3, dtype=torch.bool),
            "face_size": face_size(landmarks[i]),
            "pose": pose[i],
            "coefficients": torch.cat((identity[i], expression[i])),
            "pncc": pncc[i],
            "offsets": offsets[i],
            "face_mask": mask[i],
        }
        named = {"index": i, "sample_id": str(i), "box": torch.zeros(4), "crop_to_file": torch.eye(3)[:2]}
        samples.append({"image": shown.clamp(0, 1), **named, **targets})
    shapes_of = {key: tuple(value.shape) for key, value in targets.items()}
    return collate_faces(samples, shapes_of), vertices
