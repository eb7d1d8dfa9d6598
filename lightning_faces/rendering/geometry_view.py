"""What a network sees of a face geometry: its shading and its mask (Richardson 2016, sections 5.1 and 6.2)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.renderer import VertexNormals, rasterize_image, to_view, unit

CHUNK = 8
"""Faces that are computed together on the CPU."""


def geometry_view(model: MorphableModel, coefficients: Tensor, pose: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Mask and shading of a geometry as it lies in a picture.

    The face region (what the model's UV map covers; all of the mesh where it has none) under a white light at the
    viewer with diffuse reflection only, whose brightness is the cosine of the surface normal to the viewer. Nothing
    but the region hides it, and triangles seen from behind are left out. Not differentiable. On the CPU a row is the
    same in any batch, and so in training and inference; autocast does not change it.

    Args:
        model: The face model.
        coefficients: ``[B, K]``, identity then expression, standard deviations.
        pose: ``[B, 6]`` as for :func:`~lightning_faces.geometry.weak_perspective`, in the image frame of the picture
            that is seen, a crop for instance.
        image_size: Side S of that picture in pixels.

    Returns:
        Mask, 0 or 1, and shading in [0, 1], ``[B, 1, S, S]`` each, in the model's precision (at least float32).

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> mean_face = torch.zeros(1, model.num_coefficients)
        >>> mask, shading = geometry_view(model, mean_face, torch.tensor([[0.4, 0.0, 0.5, 0.0, 48.0, 48.0]]), 96)
        >>> mask.shape, bool((shading[mask == 0] == 0).all())
        (torch.Size([1, 1, 96, 96]), True)
    """
    surface = _Surface.of(model)
    dtype = model.mean.dtype
    with torch.no_grad(), torch.autocast(coefficients.device.type, enabled=False):
        vertices = weak_perspective(steady_vertices(model, coefficients.to(dtype)), pose.to(dtype))
        # Pictures of more faces leave the CPU's caches.
        pieces = torch.split(vertices, CHUNK if vertices.device.type == "cpu" else vertices.shape[0])
        images = torch.cat([surface.images(piece, image_size) for piece in pieces])
    return images[:, :1], images[:, 1:]


def steady_vertices(model: MorphableModel, coefficients: Tensor) -> Tensor:
    """Vertices ``[B, V, 3]`` of coefficients ``[B, K]``, mm; on the CPU a row does not depend on the others.

    The rounding of a matrix product depends on its shape there, so that each has exactly :data:`CHUNK` rows.
    """
    identity, expression = torch.split(coefficients, [model.num_identity, model.num_expression], dim=1)
    if coefficients.device.type != "cpu":
        return model.vertices(identity, expression)
    missing = -coefficients.shape[0] % CHUNK
    padded = (torch.split(nn.functional.pad(value, (0, 0, 0, missing)), CHUNK) for value in (identity, expression))
    return torch.cat([model.vertices(*pair) for pair in zip(*padded)])[: coefficients.shape[0]]


class _Surface:
    """The triangles of a model's face region, and its vertex normals."""

    _known: WeakKeyDictionary[MorphableModel, _Surface] = WeakKeyDictionary()

    def __init__(self, model: MorphableModel) -> None:
        self.source = model.faces
        self.faces = model.faces if model.uv_face_ids is None else model.faces[model.uv_face_ids.sort()[0]]
        # In memory [3, F], so that the transpose is one run of numbers.
        self.faces = self.faces.T.contiguous().T
        self.normals = VertexNormals(model.faces, model.num_vertices)

    def images(self, vertices: Tensor, image_size: int) -> Tensor:
        """Mask and shading ``[B, 2, S, S]`` of vertices ``[B, V, 3]``, image frame."""
        raster = rasterize_image(vertices, self.faces, image_size, cull_backfaces=True)
        normals = raster.interpolate(self.normals(to_view(vertices)), self.faces)
        lit = unit(normals.T)[2:].clamp_min(0.0)
        return raster.to_image(torch.cat((torch.ones_like(lit), lit)).T)

    @classmethod
    def of(cls, model: MorphableModel) -> _Surface:
        """That of a model on its device; kept, as every call needs it."""
        known = cls._known.get(model)
        if known is None or known.source is not model.faces:
            known = cls._known[model] = cls(model)
        return known
