"""Pictures of the faces of a photograph: landmarks, surface, depth and PNCC, drawn over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_faces.morphable import MorphableModel
from lightning_faces.predict.values import NamedFace
from lightning_faces.rendering.drawing import colours, draw_landmarks
from lightning_faces.rendering.renderer import Raster, VertexNormals, rasterize_image, to_view

LONGEST = 1920
"""Side in pixels up to which a picture is as large as its photograph."""
COLOUR, HIDDEN_COLOUR, DOUBTED_COLOUR = (60, 230, 110), (70, 130, 240), (255, 150, 30)
"""Of landmarks: that can be seen, that are hidden, and those of a face that is not believed."""
Paint = Callable[[Raster, Tensor, Tensor, Tensor], Tensor]
"""From a face's pixels, points, triangles and vertices to colours ``[P, 3]`` from 0 to 255."""
SKIN = torch.tensor([205.0, 212.0, 222.0])


class FacePictures:
    """The pictures of one photograph.

    Args:
        image: Uint8 RGB ``[H, W, 3]``.
        faces: Its faces, in its pixels.
        model: The face model that their vertices belong to.
    """

    def __init__(self, image: NDArray[np.uint8], faces: Sequence[NamedFace], model: MorphableModel) -> None:
        height, width = image.shape[:2]
        self.scale = min(1.0, LONGEST / max(height, width))
        self.canvas = image
        if self.scale < 1:
            size = (max(round(width * self.scale), 1), max(round(height * self.scale), 1))
            self.canvas = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        self.faces, self.model = list(faces), model

    def placed(self, points: Tensor) -> Tensor:
        """Points ``[N, 3]`` of the photograph, in the pixels of the pictures."""
        moved = points.float() * self.scale
        moved[:, :2] += (self.scale - 1) / 2
        return moved

    def landmarks(self) -> Image.Image:
        """Landmarks in green, hidden ones in blue; in orange, with a box, a face that is not believed."""
        picture = Image.fromarray(self.canvas.copy())
        draw = ImageDraw.Draw(picture)
        for face in self.faces:
            prediction = face.prediction
            points = self.placed(prediction.landmarks[0])
            x0, y0, x1, y1 = (self.scale * float(value) for value in face.found.box)
            width = max(1, round(max(x1 - x0, y1 - y0) / 150))
            everything = torch.ones(len(points), dtype=torch.bool)
            if not face.found.believed:
                draw_landmarks(draw, points, everything, DOUBTED_COLOUR, width)
                draw.rectangle((x0, y0, x1, y1), outline=DOUBTED_COLOUR, width=width)
                draw.text((x0, y1 + 2), "not believed", fill=DOUBTED_COLOUR)
                continue
            draw_landmarks(draw, points, everything, COLOUR, width)
            if prediction.visible is not None:
                draw_landmarks(draw, points, prediction.visible[0] < 0.5, HIDDEN_COLOUR, width)
        return picture

    def mesh(self) -> Image.Image:
        """The surface, lit from the front."""

        def lit(raster: Raster, points: Tensor, faces: Tensor, ids: Tensor) -> Tensor:
            normals = VertexNormals(faces, len(points))(to_view(points[None]))[0]
            facing = raster.interpolate(normals, faces)[:, 2:].clamp(0, 1)
            return (0.25 + 0.75 * facing) * SKIN

        return self._painted(lit, 0.85)

    def depth(self) -> Image.Image:
        """The surface's depth, from dark blue (far) to dark red (near)."""

        def by_depth(raster: Raster, points: Tensor, faces: Tensor, ids: Tensor) -> Tensor:
            z = raster.interpolate(points[:, 2:].contiguous(), faces)[:, 0]
            low, high = z.min(), z.max()
            return torch.from_numpy(colours((z - low) / (high - low).clamp(min=1e-6))).float()

        return self._painted(by_depth, 1.0)

    def pncc(self) -> Image.Image:
        """Where on the mean face each pixel lies, x, y and z as red, green and blue (Zhu 2016)."""
        mean = self.model.mean.cpu()

        def coded(raster: Raster, points: Tensor, faces: Tensor, ids: Tensor) -> Tensor:
            used = mean[ids]
            low, high = used.amin(dim=0), used.amax(dim=0)
            return 255 * raster.interpolate((used - low) / (high - low), faces)

        return self._painted(coded, 1.0)

    @cached_property
    def _surfaces(self) -> list[tuple[Raster, Tensor, Tensor, Tensor]]:
        """For each face with a surface: its pixels, its points, its triangles and which vertices the points are."""
        found = []
        for face in self.faces:
            prediction = face.prediction
            if not face.found.believed or prediction.vertices is None:
                continue
            ids = prediction.vertex_ids
            ids = torch.arange(self.model.num_vertices) if ids is None else ids.cpu()
            if len(ids) != prediction.vertices.shape[1] or not bool(torch.isfinite(prediction.vertices).all()):
                continue
            faces = surface_triangles(self.model, ids)
            points = self.placed(prediction.vertices[0])
            height, width = self.canvas.shape[:2]
            raster = rasterize_image(points[None], faces, (height, width))
            if len(raster.pixel):
                found.append((raster, points, faces, ids))
        return found

    def _painted(self, paint: Paint, opacity: float) -> Image.Image:
        picture = self.canvas.astype(np.float32).reshape(-1, 3)
        for surface in self._surfaces:
            pixel = surface[0].pixel.numpy()
            picture[pixel] = (1 - opacity) * picture[pixel] + opacity * paint(*surface).numpy()
        whole = picture.reshape(self.canvas.shape).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(whole)


def surface_triangles(model: MorphableModel, ids: Tensor) -> Tensor:
    """Triangles ``[F, 3]`` into ``ids`` of the face, without scalp, neck and the inside of the mouth where known.

    Args:
        model: The face model.
        ids: Int64 ``[V]``, the vertices that there are.
    """
    faces = model.faces.cpu()
    if model.uv_face_ids is not None:
        faces = faces[torch.unique(model.uv_face_ids.cpu())]
    place = torch.full((model.num_vertices,), -1)
    place[ids] = torch.arange(len(ids))
    moved = place[faces]
    return moved[(moved >= 0).all(dim=1)].contiguous()
