"""The files that a prediction is written to: a table with one row per kind of file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.glb import write_glb
from lightning_faces.morphable.mesh_files import write_mesh, write_textured_obj
from lightning_faces.predict.meshes import FaceMeshes
from lightning_faces.predict.pictures import FacePictures
from lightning_faces.predict.values import NamedFace, record


@dataclass(frozen=True)
class PredictedPhotograph:
    """A photograph and its faces.

    Attributes:
        image: Uint8 RGB ``[H, W, 3]``, upright.
        faces: In its pixels.
        meshes: Makes their meshes.
    """

    image: NDArray[np.uint8]
    faces: Sequence[NamedFace]
    meshes: FaceMeshes
    _textures: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def model(self) -> MorphableModel:
        """The face model of their vertices and coefficients."""
        return self.meshes.model

    def texture(self, face: NamedFace) -> Tensor | None:
        """The texture of one of the faces, made once."""
        if id(face) not in self._textures:
            self._textures[id(face)] = self.meshes.texture(self.image, face)
        return self._textures[id(face)]

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


def _obj(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> bool:
    mesh, texture = photograph.meshes.mesh(face, "object"), photograph.texture(face)
    if mesh is None:
        return False
    if texture is None:
        write_mesh(path, mesh.vertices, mesh.faces, photograph.meshes.colours(photograph.image, face, mesh))
    else:
        write_textured_obj(path, mesh, texture)
    return True


def _glb(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> bool:
    mesh, texture = photograph.meshes.mesh(face, "object"), photograph.texture(face)
    if mesh is None:
        return False
    colours = None if texture is not None else photograph.meshes.colours(photograph.image, face, mesh)
    write_glb(path, mesh, colours, texture)
    return True


def _ply(path: Path, photograph: PredictedPhotograph, face: NamedFace) -> bool:
    mesh = photograph.meshes.mesh(face, "image")
    if mesh is None:
        return False
    write_mesh(path, mesh.vertices, mesh.faces, photograph.meshes.colours(photograph.image, face, mesh))
    return True


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
    "obj": Output(".obj", "mesh in millimetres without the head's pose, with its texture (.mtl, .png)", face=_obj),
    "ply": Output(".ply", "mesh in the photograph's pixels, y up, with its colours", face=_ply),
    "glb": Output(".glb", "mesh in metres that the facial actions move, for Blender and browsers", face=_glb),
}
"""Kind to row."""
