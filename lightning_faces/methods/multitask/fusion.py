"""One face from what several heads say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_faces.batch import FacePrediction
from lightning_faces.geometry.alignment import similarity_transform
from lightning_faces.geometry.camera import transform_points
from lightning_faces.heads.landmark_marks import MarkedLandmarks

MESHES = ("coefficients", "position_map", "geometry_images")
"""Heads that give a mesh and a camera, the one that is taken first."""
DEPTHS = (*MESHES, "depth", "landmarks")
"""Heads that give landmarks, the one whose depths are taken first."""
PLACES = ("landmarks", "coefficients", "position_map", "geometry_images")
"""Heads that give landmarks, the one whose places are taken first where no head says how sure they are."""


def fuse(faces: Mapping[str, FacePrediction], sure: MarkedLandmarks | None, visible: Tensor | None) -> FacePrediction:
    """One face of the faces of all heads.

    Landmarks lie at the mean of the heads' places, weighted by the inverse of their variances where an uncertainty head
    gives them; else they are those of the first head of :data:`PLACES`. Mesh, coefficients and camera are those of the
    first head of :data:`MESHES`, moved, turned in the image and scaled so that their landmarks come nearest to these.
    Depths are the mesh's, else those of the depth head.

    Args:
        faces: Predictions of the heads that place a face, by the head's name.
        sure: Places and standard deviations of the heads whose landmarks can be averaged.
        visible: Probabilities ``[B, 68]``.

    Returns:
        With the dense images of these heads. The standard deviation of a mean is the harmonic mean's root, not smaller
        by the number of heads, as heads of one backbone err together.
    """
    names = [name for name in DEPTHS if name in faces]
    base = faces[names[0]]
    uncertainty = None
    if sure is not None:
        precision = sure.values.square().reciprocal()
        total = precision.sum(dim=1)
        places = (sure.points * precision[..., None]).sum(dim=1) / total[..., None]
        uncertainty = (precision.shape[1] / total).sqrt()
    else:
        first = next(name for name in PLACES if name in faces)
        places = faces[first].landmarks[..., :2]
    if names[0] in MESHES:
        base = _moved(base, places, None if uncertainty is None else uncertainty.square().reciprocal())
    dense = {name: image for face in faces.values() for name, image in face.dense.items()}
    masks = [face.dense_mask for face in faces.values() if face.dense_mask is not None]
    return replace(
        base,
        landmarks=torch.cat((places, base.landmarks[..., 2:]), dim=-1),
        dense=dense,
        dense_mask=masks[0] if masks else None,
        visible=visible,
        uncertainty=uncertainty,
    )


def _moved(face: FacePrediction, places: Tensor, weights: Tensor | None) -> FacePrediction:
    """A face with a mesh, brought onto landmarks ``[B, 68, 2]`` by a similarity of the image."""
    scale, rotation, translation = similarity_transform(face.landmarks[..., :2], places, weights=weights)
    if face.valid is not None:
        # Of a face that is not valid nothing means anything, but it must stay finite.
        still = ~face.valid[:, None]
        scale = torch.where(face.valid, scale, 1.0)
        rotation = torch.where(still[..., None], torch.eye(2).to(rotation), rotation)
        translation = translation.masked_fill(still, 0.0)
    matrix = torch.cat((scale[:, None, None] * rotation, translation[..., None]), dim=-1)
    return replace(
        face,
        landmarks=transform_points(matrix, face.landmarks),
        vertices=None if face.vertices is None else transform_points(matrix, face.vertices),
        camera=None if face.camera is None else face.camera.transformed(matrix),
    )
