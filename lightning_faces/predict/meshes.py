"""Meshes of predicted faces, with the photograph's colours."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import box_of_points, crop_matrix, transform_points
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.face_mesh import FaceMesh, Frame
from lightning_faces.predict.values import NamedFace
from lightning_faces.refine.texture import TextureRecovery, vertex_colours

LARGEST_CROP = 384
"""Side in pixels of the part of a photograph that colours are read from: a UV map has 256."""


class FaceMeshes:
    """Makes the meshes of faces.

    Args:
        model: The face model of their vertices and coefficients.
    """

    def __init__(self, model: MorphableModel) -> None:
        self.model = model

    def mesh(self, face: NamedFace, frame: Frame) -> FaceMesh | None:
        """The mesh of a face; None for one that is not believed, or of which the method predicts too little."""
        if not face.found.believed:
            return None
        try:
            return FaceMesh.of_prediction(face.prediction, 0, self.model, frame)
        except ConfigurationError:
            return None

    def texture(self, image: NDArray[np.uint8], face: NamedFace) -> Tensor | None:
        """UV image ``[3, T, T]`` of a face's skin without its light; None where model or prediction have too little.

        Args:
            image: The photograph, uint8 RGB ``[H, W, 3]``.
            face: In its pixels.
        """
        vertices = face.prediction.vertices
        if self._recovery is None or vertices is None or vertices.shape[1] != self.model.num_vertices:
            return None
        part, points = crop_to_face(image, vertices)
        return self._recovery(part, points).texture[0]

    def colours(self, image: NDArray[np.uint8], face: NamedFace, mesh: FaceMesh) -> Tensor | None:
        """RGB ``[V, 3]`` in [0, 1] of a mesh's vertices in the photograph; None where they are not placed in it."""
        vertices = face.prediction.vertices
        if vertices is None or vertices.shape[1] != len(mesh.vertices):
            return None
        part, points = crop_to_face(image, vertices)
        return vertex_colours(part, points, torch.from_numpy(mesh.faces))[0][0]

    @cached_property
    def _recovery(self) -> TextureRecovery | None:
        model = self.model
        known = model.uv is not None and model.albedo_mean is not None
        return TextureRecovery(model) if known else None


def crop_to_face(image: NDArray[np.uint8], vertices: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a photograph that shows a face, and the face in its pixels.

    Args:
        image: Uint8 RGB ``[H, W, 3]``.
        vertices: ``[1, V, 3]`` in its pixels.

    Returns:
        ``[1, 3, S, S]`` in [0, 1], S at most :data:`LARGEST_CROP`, with the edge of the photograph repeated where the
        face reaches beyond it, and ``[1, V, 3]``.
    """
    box = box_of_points(vertices).double()[0]
    side = int(min(max(float((box[2:] - box[:2]).max()) * 1.05, 8), LARGEST_CROP))
    matrix = crop_matrix(box, side, 1.05)
    # Smoothed where it gets smaller, as areas are averaged.
    inverse_scale = 1 / float(matrix[0, 0])
    seen, move = image, matrix.numpy()
    if inverse_scale > 1.5:
        size = (max(round(image.shape[1] / inverse_scale), 1), max(round(image.shape[0] / inverse_scale), 1))
        seen = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        grow = np.array([image.shape[1] / size[0], image.shape[0] / size[1]])
        to_full = np.array([[grow[0], 0, (grow[0] - 1) / 2], [0, grow[1], (grow[1] - 1) / 2], [0, 0, 1]])
        move = move @ to_full
    part = cv2.warpAffine(seen, move, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float() / 255
    return pixels[None], transform_points(matrix.float()[None], vertices.float())
