"""Importers of other people's face models and a builder from registered meshes, one file each.

Every importer converts to millimetres and the object frame (x to the image right of a frontal face, y up, z towards the
viewer); what a file lacks is derived from its shape and the embedded model (:mod:`lightning_faces.morphable.derive`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.bfm2009 import read_bfm2009
from lightning_faces.morphable.formats.bfm2017 import read_bfm2017
from lightning_faces.morphable.formats.checks import check_size, completed
from lightning_faces.morphable.formats.face3d import read_face3d
from lightning_faces.morphable.formats.fields import UNITS
from lightning_faces.morphable.formats.flame import read_flame
from lightning_faces.morphable.formats.ict_facekit import arkit_name, read_ict_facekit
from lightning_faces.morphable.formats.registered_meshes import build_from_meshes
from lightning_faces.morphable.formats.sfm import read_sfm
from lightning_faces.morphable.formats.w300lp import read_300wlp
from lightning_faces.morphable.model import MorphableModel

__all__ = ["FORMATS", "UNITS", "Format", "arkit_name", "build_from_meshes", "import_model"]


class Format(NamedTuple):
    """A family of face models: how its files are read, their unit, and whether expressions have a file of their own."""

    read: Callable[[Path, Path | None], Parts]
    unit: str
    separate_expressions: bool


FORMATS = {
    "bfm2009": Format(read_bfm2009, "micrometres", True),
    "bfm2017": Format(read_bfm2017, "millimetres", False),
    "face3d": Format(read_face3d, "micrometres", False),
    "300w-lp": Format(read_300wlp, "micrometres", True),
    "sfm": Format(read_sfm, "millimetres", True),
    "ict-facekit": Format(read_ict_facekit, "centimetres", False),
    "flame": Format(read_flame, "metres", False),
}
"""The formats by their names."""


def import_model(
    format: str,
    path: str | Path,
    expressions: str | Path | None = None,
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MorphableModel:
    """Read a face model in one of :data:`FORMATS`.

    Args:
        format: A key of :data:`FORMATS`.
        path: The file or folder that the format is kept in.
        expressions: A file or folder with the expressions, where they are not found beside ``path``.
        name: Name of the model; the format's by default.
        report: Is told in one line each what was read and what was derived.

    Returns:
        The model in millimetres, object frame.

    Raises:
        ConfigurationError: If the format is not known, or has no separate expressions and some are given.
        DataError: If the file is missing or is not of that format.

    Example:
        >>> import tempfile
        >>> face = MorphableModel.load("embedded")
        >>> modes = (face.identity_basis[:5] * face.identity_std[:5, None, None]).permute(1, 2, 0)
        >>> path = Path(tempfile.mkdtemp()) / "flame.npz"
        >>> np.savez(path, v_template=face.mean / 1000, shapedirs=modes / 1000, f=face.faces)
        >>> model = import_model("flame", path)
        >>> model.num_vertices, model.num_identity, sorted(model.landmark_embeddings)
        (4280, 5, ['bfm', 'ibug'])
    """
    if format not in FORMATS:
        raise ConfigurationError(f"There is no face-model format {format!r}: use one of {', '.join(sorted(FORMATS))}.")
    source = Path(path)
    if not source.exists():
        raise DataError(f"There is no file or folder {str(source)!r}: give the path of the {format} model.")
    extra = None if expressions is None else Path(expressions)
    if extra is not None and not extra.exists():
        raise DataError(f"There is no file or folder {str(extra)!r}: give the path of the expressions.")
    if extra is not None and not FORMATS[format].separate_expressions:
        raise ConfigurationError(f"{format} keeps its expressions in the same file or folder: leave --expressions out.")
    # What is not finite is refused later, in a sentence rather than by a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        parts = FORMATS[format].read(source, extra)
    _check_parts(parts, format, source)
    if name is not None:
        parts.name = name
    report(
        f"{format}: {len(parts.mean)} vertices, {len(parts.faces)} triangles, {len(parts.identity_std)} identity and "
        f"{len(parts.expression_std)} expression modes."
    )
    return completed(parts, report, source)


def _check_parts(parts: Parts, format: str, source: Path) -> None:
    """Whether there is a face of the format's unit; what else the values must be is checked where they are used."""
    if len(parts.identity_std) == 0:
        raise DataError(f"{source} has no identity modes: give a file with the modes of the shape.")
    if len(parts.landmark_vertices) != 68:
        raise DataError(f"{source} names the vertices of {len(parts.landmark_vertices)} landmarks: 68 are needed.")
    unit = FORMATS[format].unit
    check_size(parts.mean, source, f"in {unit} as those of {format} are: convert them to {unit}")
