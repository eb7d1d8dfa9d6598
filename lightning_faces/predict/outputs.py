"""The files that a prediction is written to: a table with one row per kind of file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit.result import shapes_of
from lightning_faces.morphable.mesh_files import write_mesh
from lightning_faces.predict.pictures import FacePictures, surface_triangles
from lightning_faces.predict.values import NamedFace, record


@dataclass(frozen=True)
class PredictedPhotograph:
    """A photograph and its faces.

    Attributes:
        image: Uint8 RGB ``[H, W, 3]``, upright.
        faces: In its pixels.
        model: The face model of their vertices and coefficients.
    """

    image: NDArray[np.uint8]
    faces: Sequence[NamedFace]
    model: MorphableModel

    @cached_property
    def pictures(self) -> FacePictures:
        """What draws it."""
        return FacePictures(self.image, self.faces, self.model)

    def records(self) -> list[dict[str, Any]]:
        """Its faces as plain numbers and text."""
        return [record(face, self.model) for face in self.faces]


@dataclass(frozen=True)
class Output:
    """A kind of file.

    Attributes:
        suffix: Of the file's name, after that of the photograph (and of the face).
        help: What is in it.
        photograph: Writes one file for a photograph, or None.
        face: Writes one file for a face; it gives False where the face has nothing to write.
    """

    suffix: str
    help: str
    photograph: Callable[[Path, PredictedPhotograph], object] | None = None
    face: Callable[[Path, PredictedPhotograph, NamedFace], object] | None = None


def write_outputs(
    folder: Path, name: str, photograph: PredictedPhotograph, kinds: Sequence[str]
) -> dict[str, str | list[str | None]]:
    """Write the files of a photograph, each whole or not at all.

    Args:
        folder: The folder of all predictions.
        name: Of the photograph: its path below the folder of all photographs.
        photograph: The prediction.
        kinds: Which rows of :data:`OUTPUTS`.

    Returns:
        Kind to file below the folder; for a kind that has a file per face, one per face, or None where it has none.
    """
    written: dict[str, str | list[str | None]] = {}
    for kind in kinds:
        output = OUTPUTS[kind]
        if output.photograph is not None and photograph.faces:
            path = f"{name}{output.suffix}"
            output.photograph(folder / path, photograph)
            written[kind] = path
        if output.face is not None:
            files: list[str | None] = []
            for number, face in enumerate(photograph.faces, start=1):
                path = f"{name}.{number}{output.suffix}"
                done = output.face(folder / path, photograph, face)
                files.append(None if done is False else path)
            written[kind] = files
    return written


def check_kinds(kinds: Sequence[str] | None) -> list[str]:
    """The kinds of files to write, in the order of the table; None are all.

    Raises:
        ConfigurationError: If there is no such kind.
    """
    unknown = [kind for kind in kinds or () if kind not in OUTPUTS]
    if unknown:
        raise ConfigurationError(f"--write names {unknown[0]!r}: choose from {', '.join(OUTPUTS)}.")
    return [kind for kind in OUTPUTS if kinds is None or kind in kinds]


def _json(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> None:
    values = record(face, photograph.model)
    lines = [f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in values.items()]
    write_atomic(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _pts(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> None:
    """IBUG's format, whose first pixel is (1, 1)."""
    points = face.prediction.landmarks[0, :, :2].double() + 1
    lines = [f"{x:.4f} {y:.4f}" for x, y in points.tolist()]
    text = "\n".join(["version: 1", f"n_points: {len(points)}", "{", *lines, "}", ""])
    write_atomic(path, text.encode())


def _object_mesh(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> bool:
    prediction, model = face.prediction, photograph.model
    coefficients = prediction.coefficients
    if not face.found.believed or coefficients is None or coefficients.shape[1] != model.num_coefficients:
        return False
    shape = shapes_of(model, coefficients.to(model.mean))[0]
    colours = None
    if prediction.vertices is not None and prediction.vertex_ids is None:
        colours = colours_at(photograph.image, prediction.vertices[0])
    write_mesh(path, shape, model.faces, colours)
    return True


def _image_mesh(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> bool:
    prediction, model = face.prediction, photograph.model
    if not face.found.believed or prediction.vertices is None:
        return False
    ids = torch.arange(model.num_vertices) if prediction.vertex_ids is None else prediction.vertex_ids.cpu()
    points = prediction.vertices[0]
    colours = colours_at(photograph.image, points)
    # Right-handed, as viewers expect it.
    write_mesh(path, points * points.new_tensor([1, -1, 1]), surface_triangles(model, ids), colours)
    return True


def colours_at(image: NDArray[np.uint8], points: Tensor) -> NDArray[np.uint8]:
    """Colours ``[V, 3]`` of a photograph at points ``[V, >=2]``: a hidden point has the colour of what covers it."""
    places = points[:, :2].float().numpy()
    # remap's own coordinates have 16 bits.
    low = np.clip(np.floor(places.min(axis=0)) - 1, 0, (image.shape[1] - 1, image.shape[0] - 1)).astype(int)
    high = np.clip(np.ceil(places.max(axis=0)) + 2, low + 1, (image.shape[1], image.shape[0])).astype(int)
    part = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    x, y = (np.ascontiguousarray(places[None, :, k] - low[k], dtype=np.float32) for k in (0, 1))
    found = cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, dtype=np.uint8).reshape(-1, 3)


def _picture(draw: Callable[[FacePictures], Image.Image]) -> Callable[[Path, PredictedPhotograph], None]:
    def write(path: Path, photograph: PredictedPhotograph) -> None:
        buffer = io.BytesIO()
        draw(photograph.pictures).save(buffer, format="PNG", compress_level=3)
        write_atomic(path, buffer.getvalue())

    return write


OUTPUTS: dict[str, Output] = {
    "json": Output(".json", "everything of a face as numbers", face=_json),
    "pts": Output(".pts", "landmarks in iBUG's format, whose first pixel is (1, 1)", face=_pts),
    "landmarks": Output(".landmarks.png", "landmarks on the photograph", _picture(FacePictures.landmarks)),
    "mesh": Output(".mesh.png", "the surface on the photograph", _picture(FacePictures.mesh)),
    "depth": Output(".depth.png", "its depth", _picture(FacePictures.depth)),
    "pncc": Output(".pncc.png", "where on the mean face each pixel lies", _picture(FacePictures.pncc)),
    "obj": Output(".obj", "mesh in millimetres, without the head's pose, coloured", face=_object_mesh),
    "ply": Output(".ply", "mesh in the photograph's pixels (y up), coloured", face=_image_mesh),
}
"""Kind to row."""
