"""Importers of other people's face models and a builder from registered meshes.

Every importer converts to millimetres and the object frame (x to the image right of a frontal face, y up, z towards the
viewer); what a file lacks is derived from its shape and the embedded model (:mod:`lightning_faces.morphable.derive`).
"""

from __future__ import annotations

import codecs
import importlib
import json
import pickle
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.io
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable.derive import Parts, complete
from lightning_faces.morphable.meshes import read_mesh
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.surface import (
    Bools,
    Floats,
    Ints,
    compact_mesh,
    principal_components,
    rigid_align,
)

MICROMETRES = 1e-3
BYTE = 1.0 / 255.0
"""The unit of colours from 0 to 255."""
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}

SFM_VERTICES = 3448
ICT_SKIN = 11248
"""Vertices of the face, the head and the neck of ICT-FaceKit (README, "Geometry")."""
ICT_KEPT = 24591
"""Up to the eyeballs; behind these come lacrimal fluid, eye occlusion and eyelashes, which are transparent."""
ICT_LANDMARKS = (
    *(1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443),
    *(268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360),
    *(1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732),
    *(5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841),
    *(5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966),
)
"""Multi-PIE 68 points of ICT-FaceKit (README, "Facial Landmarks"), 0-based."""
# ibug_to_sfm.txt of eos: 68-point number, 1-based, to vertex.
SFM_LANDMARKS = {
    **{9: 33, 18: 225, 19: 229, 20: 233, 21: 2086, 22: 157, 23: 590, 24: 2091, 25: 666, 26: 662, 27: 658},
    **{28: 2842, 29: 379, 30: 272, 31: 114, 32: 100, 33: 2794, 34: 270, 35: 2797, 36: 537},
    **{37: 177, 38: 172, 39: 191, 40: 181, 41: 173, 42: 174, 43: 614, 44: 624, 45: 605, 46: 610, 47: 607, 48: 606},
    **{49: 398, 50: 315, 51: 413, 52: 329, 53: 825, 54: 736, 55: 812, 56: 841, 57: 693, 58: 411, 59: 264, 60: 431},
    **{62: 416, 63: 423, 64: 828, 66: 817, 67: 442, 68: 404},
}
EXTENT = (60.0, 1000.0)
"""What a face or a bust can measure in mm; a factor of ten off is outside."""
FLAME_IDENTITIES = 300
SAME_SHAPE = 1e-5
"""Meshes that differ by less of their size (2 micrometres of a face) differ by the digits of their files."""
ROUNDING = 1e-6
"""Modes with a smaller share of the first one's standard deviation are rounding."""
_DAMAGED = "it is damaged, or its files are of different models"
BFM_SEGMENTS = ("nose", "eye", "mouth", "rest")
"""Columns of ``segbin`` (FACTS A: nose 2245, eye 7182, mouth 2460, rest 41 328 vertices)."""


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
    """
    if format not in FORMATS:
        raise ConfigurationError(f"There is no face-model format {format!r}: use one of {', '.join(sorted(FORMATS))}.")
    source = Path(path)
    if not source.exists():
        raise DataError(f"There is no file or folder {str(source)!r}: give the path of the {format} model.")
    extra = None if expressions is None else Path(expressions)
    if extra is not None and not extra.exists():
        raise DataError(f"There is no file or folder {str(extra)!r}: give the path of the expressions.")
    if extra is not None and format not in SEPARATE_EXPRESSIONS:
        raise ConfigurationError(f"{format} keeps its expressions in the same file or folder: leave --expressions out.")
    # What is not finite is refused later, in a sentence rather than by a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        parts = FORMATS[format](source, extra)
    _check_parts(parts, format, source)
    if name is not None:
        parts.name = name
    report(
        f"{format}: {len(parts.mean)} vertices, {len(parts.faces)} triangles, {len(parts.identity_std)} identity and "
        f"{len(parts.expression_std)} expression modes."
    )
    return _completed(parts, report, source)


def _completed(parts: Parts, report: Callable[[str], None], source: Path) -> MorphableModel:
    try:
        return complete(parts, report)
    except DataError as error:
        raise DataError(f"{source} cannot be used: {error}") from error


def _check_parts(parts: Parts, format: str, source: Path) -> None:
    """Whether there is a face of the format's unit; what else the values must be is checked where they are used."""
    if len(parts.identity_std) == 0:
        raise DataError(f"{source} has no identity modes: give a file with the modes of the shape.")
    if len(parts.landmark_vertices) != 68:
        raise DataError(f"{source} names the vertices of {len(parts.landmark_vertices)} landmarks: 68 are needed.")
    unit = FORMAT_UNITS[format]
    _check_size(parts.mean, source, f"in {unit} as those of {format} are: convert them to {unit}")


def _check_size(mean: Floats, source: Path, unit: str) -> None:
    extent = float(np.ptp(mean, axis=0).max())
    if np.isfinite(extent) and not EXTENT[0] < extent < EXTENT[1]:
        size = np.format_float_positional(extent, 3, fractional=False, trim="-")
        raise DataError(f"{source} is {size} mm across, a face about 200, if its coordinates are {unit}.")


def _points(values: NDArray[Any], key: str, path: Path, count: int | None = None) -> Floats:
    """Numbers in xyzxyz order as points ``[V, 3]``, as many as given where it is known."""
    if values.size == 0 or values.size % 3:
        raise DataError(f"{path}: {key} holds {values.size} numbers, which is no list of points: it is damaged.")
    if count is not None and values.size != 3 * count:
        raise DataError(
            f"{path}: {key} holds {values.size} numbers, for {count} vertices {3 * count} are needed: {_DAMAGED}."
        )
    return values.astype(np.float64).reshape(-1, 3)


def _modes(basis: NDArray[Any], count: int, key: str, path: Path) -> NDArray[np.float32]:
    """Columns ``[3V, K]`` in xyzxyz order as modes ``[K, V, 3]``."""
    if basis.ndim != 2 or len(basis) != 3 * count:
        raise DataError(
            f"{path}: {key} are {basis.shape} numbers, for {count} vertices ({3 * count}, K) are needed: {_DAMAGED}."
        )
    modes: NDArray[np.float32] = np.ascontiguousarray(np.asarray(basis, np.float32).T)
    return modes.reshape(-1, count, 3)


def _deviations(values: NDArray[Any], key: str, modes: NDArray[np.float32], path: Path, power: float = 1.0) -> Floats:
    """Standard deviations, one for each of the modes, of what is their square if ``power`` is 0.5."""
    std = values.astype(np.float64).ravel()
    if len(std) != len(modes):
        raise DataError(f"{path}: {key} holds {len(std)} numbers for {len(modes)} modes: {_DAMAGED}.")
    if (std < 0.0).any():
        raise DataError(f"{path}: {key} holds {std.min():.3g}, which no spread can be: it is damaged.")
    return std**power


def _indices(values: NDArray[Any], key: str, path: Path) -> Ints:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path}: {key} holds values that are no indices: it is damaged.")
    return values.astype(np.int64)


def _triangles(values: NDArray[Any], key: str, path: Path) -> Ints:
    """Vertex numbers ``[F, 3]``, ``[3, F]`` or flat as triangles ``[F, 3]``."""
    if values.size == 0 or values.size % 3:
        raise DataError(f"{path}: {key} holds {values.size} numbers, which are no triangles: it is damaged.")
    turned = values.ndim == 2 and values.shape[0] == 3 and values.shape[1] != 3
    return _indices(values.T if turned else values, key, path).reshape(-1, 3)


def _no_modes(count: int) -> tuple[NDArray[np.float32], Floats]:
    return np.zeros((0, count, 3), np.float32), np.zeros(0)


def _unit(basis: NDArray[np.float32], std: Floats) -> tuple[NDArray[np.float32], Floats]:
    """Unit modes and the standard deviations that give the same shapes."""
    norms = np.linalg.norm(basis.astype(np.float64), axis=(1, 2))
    return basis / np.maximum(norms, 1e-12).astype(np.float32)[:, None, None], std * norms


def _mat(path: Path) -> dict[str, Any]:
    try:
        return dict(scipy.io.loadmat(path, squeeze_me=False))
    except Exception as error:  # A damaged file fails anywhere in the reader, with whatever error comes first.
        raise DataError(f"{path} is not a MATLAB file that can be read ({error}): download it again.") from error


def _field(values: Any, key: str, path: Path) -> NDArray[Any]:
    """A field of numbers of a .mat file or struct; those that MATLAB shrank to integers come back as they are."""
    try:
        array = np.asarray(values[key])
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path} has no field {key!r}: it is not the file that this format needs.") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: {key} is not an array of numbers: it is not the file that this format needs.")
    return array


def _field_deviations(values: Any, key: str, modes: NDArray[np.float32], path: Path) -> Floats:
    return _deviations(_field(values, key, path), key, modes, path)


def _field_points(values: Any, key: str, path: Path, count: int | None = None) -> Floats:
    return _points(_field(values, key, path), key, path, count)


def _field_modes(
    values: Any, keys: tuple[str, str], count: int, path: Path, unit: float = 1.0, power: float = 1.0
) -> tuple[NDArray[np.float32], Floats]:
    """Modes ``[K, V, 3]`` and standard deviations ``[K]`` in mm, or in [0, 1] for colours, of two fields of a file.

    Args:
        values: The file's fields.
        keys: Names of the fields.
        count: Number of vertices V.
        path: The file.
        unit: The file's unit, of the standard deviations.
        power: 0.5 if the second field holds variances.
    """
    modes = _modes(_field(values, keys[0], path), count, keys[0], path)
    return modes, _deviations(_field(values, keys[1], path), keys[1], modes, path, power) * unit


def _one_based(values: Any, key: str, path: Path) -> Ints:
    """Indices of a .mat file, made 0-based, flat."""
    return _indices(_field(values, key, path), key, path).ravel() - 1


def _one_based_triangles(values: Any, key: str, path: Path) -> Ints:
    return _triangles(_field(values, key, path), key, path) - 1


def _find(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _need(path: Path, *names: str) -> Path:
    if path.is_file():
        return path
    found = _find(path, *names)
    if found is None:
        raise DataError(f"{path} holds no {' or '.join(names)}: give the folder or the file itself.")
    return found


def _segments(segbin: NDArray[Any], vertices: int) -> dict[str, Bools]:
    table = segbin if segbin.shape[0] == vertices else segbin.T
    if table.shape != (vertices, 4):
        return {}
    return {name: table[:, k].astype(bool) for k, name in enumerate(BFM_SEGMENTS) if name != "rest"}


def _bfm_expressions(path: Path, vertices: int) -> tuple[Floats, NDArray[np.float32], Floats]:
    """Mean offset ``[V, 3]``, modes and standard deviations in mm of ``Exp_Pca.bin`` or ``Model_Exp(ression).mat``."""
    if path.suffix == ".bin":
        content = path.read_bytes()
        count = struct.unpack("<i", content[:4])[0] if len(content) >= 4 else -1
        if count < 1 or len(content) != 4 + 4 * 3 * vertices * (count + 1):
            raise DataError(
                f"{path} is not an Exp_Pca.bin for {vertices} vertices (int32 number of modes, then float32 mean and "
                "modes): the model must be trimmed to the vertices of the expressions."
            )
        values = np.frombuffer(content, "<f4", offset=4)
        mean = values[: 3 * vertices].astype(np.float64).reshape(-1, 3)
        basis = values[3 * vertices :].reshape(count, vertices, 3)
        std_file = path.with_name("std_exp.txt")
        if not std_file.is_file():
            raise DataError(f"{std_file} is missing: Exp_Pca.bin needs it for the standard deviations of its modes.")
        try:
            std = np.loadtxt(std_file).ravel()
        except ValueError as error:
            raise DataError(f"{std_file} is not a list of standard deviations ({error}): download it again.") from error
    else:
        fields = _mat(path)
        mean = _field_points(fields, "mu_exp", path)
        basis, std = _field_modes(fields, ("w_exp", "sigma_exp"), len(mean), path)
    if len(mean) != vertices or basis.shape[1] != vertices or len(std) != len(basis):
        raise DataError(f"{path} does not fit a model of {vertices} vertices: use the expressions made for it.")
    return mean * MICROMETRES, basis, std * MICROMETRES


def _read_bfm2009(path: Path, expressions: Path | None) -> Parts:
    """Basel Face Model 2009 (FACTS A, F), trimmed as 3DDFA and face3d do where the trimming is beside it."""
    model_file = _need(path, "01_MorphableModel.mat")
    folder = model_file.parent
    values = _mat(model_file)
    mean = _field_points(values, "shapeMU", model_file)
    basis, std = _field_modes(values, ("shapePC", "shapeEV"), len(mean), model_file, MICROMETRES)
    colour_mean = _field_points(values, "texMU", model_file, len(mean))
    colour_basis, colour_std = _field_modes(values, ("texPC", "texEV"), len(mean), model_file, BYTE)
    faces = _one_based_triangles(values, "tl", model_file)
    landmarks, regions = np.full(68, -1, np.int64), {}
    info_file = _find(folder, "model_info.mat", "BFM_exp_idx.mat")
    if info_file is not None:
        info = _mat(info_file)
        kept = _one_based(info, "trimIndex", info_file)
        if kept.min(initial=0) < 0 or kept.max(initial=-1) >= len(mean) or len(kept) == 0:
            raise DataError(
                f"{info_file} keeps {len(kept)} vertices up to number {kept.max(initial=-1)}, but the model has "
                f"{len(mean)}: use the one for BFM 2009."
            )
        faces = _renumber(faces, kept, len(mean))
        mean, basis = mean[kept], basis[:, kept]
        colour_mean, colour_basis = colour_mean[kept], colour_basis[:, kept]
        if "tri" in info:
            faces = _one_based_triangles(info, "tri", info_file)
        if "keypoints" in info:
            landmarks = _one_based(info, "keypoints", info_file)
        if "segbin" in info:
            regions = _segments(_field(info, "segbin", info_file), len(mean))
    extra = expressions or _find(folder, "Model_Expression.mat", "Model_Exp.mat", "Exp_Pca.bin")
    offset: Any = 0.0
    expression_basis, expression_std = _no_modes(len(mean))
    if extra is not None:
        extra = _need(extra, "Model_Expression.mat", "Model_Exp.mat", "Exp_Pca.bin")
        offset, expression_basis, expression_std = _bfm_expressions(extra, len(mean))
    return Parts(
        name="bfm2009",
        mean=mean * MICROMETRES + offset,
        faces=faces,
        identity_basis=basis,
        identity_std=std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=landmarks,
        native_frame=True,
        regions=regions,
        colour_mean=colour_mean * BYTE,
        colour_basis=colour_basis,
        colour_std=colour_std,
    )


def _renumber(faces: Ints, kept: Ints, vertices: int) -> Ints:
    new = np.full(vertices, -1, np.int64)
    new[kept] = np.arange(len(kept))
    renumbered = new[faces[((faces >= 0) & (faces < vertices)).all(1)]]
    return renumbered[(renumbered >= 0).all(1)]


def _read_face3d(path: Path, expressions: Path | None) -> Parts:
    """face3d's ``BFM.mat``: a struct ``model`` (FACTS A)."""
    file = _need(path, "BFM.mat")
    content = _mat(file)
    model = np.asarray(content.get("model"))
    if model.dtype.names is None or model.size == 0:
        raise DataError(f"{file} has no struct 'model': it is not the BFM.mat that face3d writes.")
    values = model.ravel()[0]
    mean = _field_points(values, "shapeMU", file)
    count = len(mean)
    identity_basis, identity_std = _field_modes(values, ("shapePC", "shapeEV"), count, file, MICROMETRES)
    expression_basis, expression_std = _field_modes(values, ("expPC", "expEV"), count, file, MICROMETRES)
    colour_basis, colour_std = _field_modes(values, ("texPC", "texEV"), count, file, BYTE)
    return Parts(
        name="face3d",
        mean=(mean + _field_points(values, "expMU", file, count)) * MICROMETRES,
        faces=_one_based_triangles(values, "tri", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=_one_based(values, "kpt_ind", file),
        native_frame=True,
        colour_mean=_field_points(values, "texMU", file, count) * BYTE,
        colour_basis=colour_basis,
        colour_std=colour_std,
    )


def _read_300wlp(path: Path, expressions: Path | None) -> Parts:
    """``Model_Shape.mat`` and ``Model_Exp.mat`` that 300W-LP's code makes (ModelGenerate.m; FACTS A)."""
    file = _need(path, "Model_Shape.mat")
    values = _mat(file)
    mean = _field_points(values, "mu_shape", file)
    extra = _need(expressions or file.parent, "Model_Exp.mat", "Model_Expression.mat")
    offset, expression_basis, expression_std = _bfm_expressions(extra, len(mean))
    identity_basis, identity_std = _field_modes(values, ("w", "sigma"), len(mean), file, MICROMETRES)
    colours: dict[str, Any] = {}
    if "mu_tex" in values and "w_tex" in values and "sigma_tex" in values:
        colours["colour_mean"] = _field_points(values, "mu_tex", file, len(mean)) * BYTE
        modes = _field_modes(values, ("w_tex", "sigma_tex"), len(mean), file, BYTE)
        colours["colour_basis"], colours["colour_std"] = modes
    return Parts(
        name="300w-lp",
        mean=mean * MICROMETRES + offset,
        faces=_one_based_triangles(values, "tri", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=_one_based(values, "keypoints", file),
        native_frame=True,
        regions=_segments(_field(values, "segbin", file), len(mean)) if "segbin" in values else {},
        **colours,
    )


def _read_bfm2017(path: Path, expressions: Path | None) -> Parts:
    """Basel Face Model 2017 or 2019 ``.h5`` in mm; ``pcaVariance`` holds variances (FACTS A)."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ConfigurationError("Reading a Basel Face Model .h5 needs h5py: pip install h5py.") from error
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the .h5 file of the Basel Face Model 2017 or 2019.")
    try:
        with h5py.File(path, "r") as file:
            mean = _field_points(file, "shape/model/mean", path)
            shape, motion, colour = (
                _field_modes(file, (f"{part}/model/pcaBasis", f"{part}/model/pcaVariance"), len(mean), path, power=0.5)
                for part in ("shape", "expression", "color")
            )
            offset = _field_points(file, "expression/model/mean", path, len(mean))
            colour_mean = _field_points(file, "color/model/mean", path, len(mean))
            faces = _triangles(_field(file, "shape/representer/cells", path), "shape/representer/cells", path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a Basel Face Model .h5 file ({error}): download it again.") from error
    return Parts(
        name="bfm2017",
        mean=mean + offset,
        faces=faces,
        identity_basis=shape[0],
        identity_std=shape[1],
        expression_basis=motion[0],
        expression_std=motion[1],
        native_frame=True,
        colour_mean=colour_mean,
        colour_basis=colour[0],
        colour_std=colour[1],
    )


class _Cereal:
    """The little-endian binary archives of the C++ library cereal, as eos writes them (FACTS F)."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.place = path, path.read_bytes(), 0

    def take(self, kind: str, count: int = 1) -> NDArray[Any]:
        dtype = np.dtype(kind)
        end = self.place + count * dtype.itemsize
        if count < 0 or end > len(self.content):
            raise DataError(f"{self.path} ends too early: it is not a model file of eos, or it is cut off.")
        values = np.frombuffer(self.content, dtype, count, self.place)
        self.place = end
        return values

    def matrix(self) -> NDArray[np.float32]:
        rows, columns = (int(value) for value in self.take("<i4", 2))
        if rows < 0 or columns < 0:
            raise DataError(f"{self.path} holds a matrix of {rows} x {columns}: it is not a model file of eos.")
        values: NDArray[np.float32] = self.take("<f4", rows * columns).reshape(columns, rows).T
        return values

    def size(self) -> int:
        return int(self.take("<u8")[0])

    def end(self) -> None:
        rest = len(self.content) - self.place
        if rest:
            raise DataError(f"{self.path} goes on for {rest} bytes after the model: it is not one that eos 1.x saved.")


def _read_sfm(path: Path, expressions: Path | None) -> Parts:
    """Surrey Face Model, ``sfm_shape_3448.bin`` of eos and its expression blendshapes (FACTS F)."""
    file = _need(path, "sfm_shape_3448.bin")
    archive = _Cereal(file)
    version = int(archive.take("<u4")[0])
    if version != 1:
        raise DataError(f"{file} has version {version} of eos' model format, version 1 is read: save it with eos 1.x.")
    mean = _points(archive.matrix(), "the mean", file)
    basis = _modes(archive.matrix(), len(mean), "the modes", file)
    std = _deviations(archive.matrix(), "the variances", basis, file, 0.5)
    faces = _triangles(archive.take("<i4", 3 * archive.size()), "the triangles", file)
    # The colour model: three empty matrices and no triangles; then one texture coordinate per vertex.
    for _ in range(3):
        archive.matrix()
    archive.take("<i4", 3 * archive.size())
    uv = archive.take("<f8", 2 * archive.size()).astype(np.float64).reshape(-1, 2)
    archive.end()
    moves, move_std = _no_modes(len(mean))
    names, kind = [], "pca"
    extra = expressions or _find(file.parent, "expression_blendshapes_3448.bin")
    if extra is not None:
        shapes = _Cereal(_need(extra, "expression_blendshapes_3448.bin"))
        found = []
        for _ in range(shapes.size()):
            names.append(shapes.take("u1", shapes.size()).tobytes().decode("utf-8", "replace"))
            found.append(_points(shapes.matrix(), repr(names[-1]), shapes.path, len(mean)))
        shapes.end()
        if not found:
            raise DataError(f"{shapes.path} holds no expressions: download it again, or remove it.")
        moves, move_std, kind = np.stack(found).astype(np.float32), np.ones(len(found)), "blendshapes"
    landmarks = np.full(68, -1, np.int64)
    if len(mean) == SFM_VERTICES:
        landmarks[[number - 1 for number in SFM_LANDMARKS]] = list(SFM_LANDMARKS.values())
    return Parts(
        name="sfm",
        mean=mean,
        faces=faces,
        identity_basis=basis,
        identity_std=std,
        expression_basis=moves,
        expression_std=move_std,
        expression_kind=kind,
        expression_names=tuple(names),
        landmark_scheme="ibug",
        landmark_vertices=landmarks,
        uv=uv if len(uv) == len(mean) else None,
    )


def arkit_name(name: str) -> str:
    """ARKit's name of an expression of ICT-FaceKit, as the embedded model has it: ``browDown_L`` is browDownLeft.

    ICT-FaceKit has the 51 actions of the embedded model, browInnerUp and cheekPuff as one for each side.
    """
    return re.sub("_([LR])$", lambda side: {"L": "Left", "R": "Right"}[side[1]], name)


def _listed_expressions(path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["expressions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no list of expressions ({error}): download it again.") from error


def _read_ict(path: Path, expressions: Path | None) -> Parts:
    """ICT-FaceKit light: a folder of OBJ in cm; an identity mode is OBJ minus neutral (FACTS F)."""
    folder = path / "FaceXModel" if (path / "FaceXModel").is_dir() else path
    neutral = _need(folder, "generic_neutral_mesh.obj")
    points, faces = read_mesh(neutral)
    identities = sorted(folder.glob("identity*.obj"))
    listed = _find(folder, "vertex_indices.json")
    wanted = [] if listed is None else _listed_expressions(listed)
    actions = [folder / f"{name}.obj" for name in wanted if (folder / f"{name}.obj").is_file()]
    if not wanted:
        actions = sorted(set(folder.glob("*.obj")) - set(identities) - {neutral})
    if not identities:
        raise DataError(f"{folder} holds no identity*.obj: give the FaceXModel folder of ICT-FaceKit.")
    keep: Bools = np.asarray((faces < ICT_KEPT).all(1))
    used, faces = compact_mesh(keep, faces, len(points))
    scale = UNITS["cm"]

    def offsets(files: Sequence[Path]) -> NDArray[np.float32]:
        moves = np.zeros((len(files), len(used), 3), np.float32)
        for k, file in enumerate(files):
            shape, _ = read_mesh(file, with_faces=False)
            if len(shape) != len(points):
                raise DataError(
                    f"{file} has {len(shape)} vertices but {neutral.name} has {len(points)}: use one release."
                )
            moves[k] = (shape - points)[used] * scale
        return moves

    identity_basis, identity_std = _unit(offsets(identities), np.ones(len(identities)))
    vertex = np.full(len(points), -1, np.int64)
    vertex[used] = np.arange(len(used))
    landmarks = np.full(68, -1, np.int64)
    if len(points) > max(ICT_LANDMARKS):
        landmarks = vertex[list(ICT_LANDMARKS)]
    return Parts(
        name="ict-facekit",
        mean=points[used] * scale,
        faces=faces,
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=offsets(actions),
        expression_std=np.ones(len(actions)),
        expression_kind="blendshapes",
        expression_names=tuple(arkit_name(file.stem) for file in actions),
        landmark_scheme="ibug",
        landmark_vertices=landmarks,
        surface=used < ICT_SKIN,
    )


class _Opaque:
    """Stands for an object of a library that is not imported; keeps its state (chumpy arrays keep theirs in ``x``)."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays and containers from a pickle and refuses everything else, so that no code of the file runs."""

    _ARRAYS = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ARRAYS:
            return getattr(importlib.import_module(module.replace("numpy._core", "numpy.core")), name)
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        if module.split(".")[0] in ("chumpy", "scipy"):
            return _Opaque
        if (module, name) == ("copy_reg", "_reconstructor") or (module, name) == ("copyreg", "_reconstructor"):
            return _reconstruct_opaque
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not data")


def _reconstruct_opaque(kind: Any, base: Any, state: Any) -> _Opaque:
    return _Opaque()


def _flame_array(values: Any, key: str, path: Path) -> Floats:
    value = values.get(key) if isinstance(values, dict) else None
    if isinstance(value, _Opaque):
        state = getattr(value, "state", {})
        value = state.get("x") if isinstance(state, dict) else None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise DataError(f"{path} has no array {key!r}: give generic_model.pkl of FLAME, or its arrays in an .npz file.")
    return value.astype(np.float64)


def _load_pickle(file: BinaryIO) -> Any:
    return _DataUnpickler(file, encoding="latin1").load()


def _read_flame(path: Path, expressions: Path | None) -> Parts:
    """FLAME's ``generic_model.pkl`` in metres (FACTS F), read without running it; or its arrays in an .npz.

    Coefficients are standard deviations. A file with at most 300 directions has no expressions. The jaw is a joint in
    FLAME, not a mode, and is not part of the result.
    """
    file = _need(path, "generic_model.pkl", "generic_model.npz")
    values: Any
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                values = {key: archive[key] for key in archive.files}
        else:
            with file.open("rb") as stream:
                values = _load_pickle(stream)
    except Exception as error:  # "Other exceptions may also be raised during unpickling" (Python's manual).
        raise DataError(
            f"{file} cannot be read as plain data ({error}): save its v_template, shapedirs and f with numpy.savez in "
            "a Python that you trust it to, and import that .npz."
        ) from error
    mean = _flame_array(values, "v_template", file) * UNITS["m"]
    directions = _flame_array(values, "shapedirs", file) * UNITS["m"]
    faces = _flame_array(values, "f", file)
    if mean.ndim != 2 or mean.shape[1] != 3 or len(mean) == 0:
        raise DataError(f"{file} has v_template of shape {mean.shape}, (V, 3) is needed: it is not a FLAME model.")
    if directions.ndim != 3 or directions.shape[:2] != mean.shape:
        raise DataError(f"{file} has shapedirs of shape {directions.shape} for {mean.shape}: it is not a FLAME model.")
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise DataError(f"{file} has f of shape {faces.shape}, (F, 3) is needed: it is not a FLAME model.")
    # FLAME's first 300 directions are identities, those after them expressions.
    count = min(FLAME_IDENTITIES, directions.shape[2])
    modes = np.ascontiguousarray(directions.transpose(2, 0, 1)).astype(np.float32)
    identity_basis, identity_std = _unit(modes[:count], np.ones(count))
    expression_basis, expression_std = _unit(modes[count:], np.ones(len(modes) - count))
    return Parts(
        name="flame",
        mean=mean,
        faces=_indices(faces, "f", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
    )


FORMATS: dict[str, Callable[[Path, Path | None], Parts]] = {
    "bfm2009": _read_bfm2009,
    "bfm2017": _read_bfm2017,
    "face3d": _read_face3d,
    "300w-lp": _read_300wlp,
    "sfm": _read_sfm,
    "ict-facekit": _read_ict,
    "flame": _read_flame,
}
"""Names of the formats and their readers."""

FORMAT_UNITS = {
    **{"bfm2009": "micrometres", "bfm2017": "millimetres", "face3d": "micrometres", "300w-lp": "micrometres"},
    **{"sfm": "millimetres", "ict-facekit": "centimetres", "flame": "metres"},
}
"""The unit of each format's files."""

SEPARATE_EXPRESSIONS = frozenset({"bfm2009", "300w-lp", "sfm"})
"""Formats whose expressions are in a file of their own."""


def build_from_meshes(
    folder: str | Path,
    modes: int = 80,
    expression_modes: int = 30,
    unit: str = "mm",
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MorphableModel:
    """A model by PCA from registered meshes, the way the papers' models were made (Blanz and Vetter 1999).

    The meshes of the folder (.obj or .ply) share vertex numbering and triangles, one neutral face each, y up and facing
    +z; they are aligned rigidly. Expressions, where there are any, lie in the sub-folder ``expressions`` as
    ``SUBJECT__NAME.obj``: their offsets from ``SUBJECT.obj`` give the expression modes.

    Args:
        folder: Folder of the meshes.
        modes: Number of identity modes at most; never more than meshes minus one.
        expression_modes: Number of expression modes at most.
        unit: "mm", "cm" or "m".
        name: Name of the model; the folder's by default.
        report: Is told in one line each what was read and what was derived.

    Returns:
        The model in millimetres, object frame.

    Raises:
        ConfigurationError: If the unit is not known or a number is not positive.
        DataError: If there are too few meshes or they do not belong together.
    """
    source = Path(folder)
    if unit not in UNITS:
        raise ConfigurationError(f"There is no unit {unit!r}: use one of {', '.join(UNITS)}.")
    if modes < 1 or expression_modes < 1:
        raise ConfigurationError(f"The number of modes is {min(modes, expression_modes)}: use at least 1.")
    files = sorted(p for p in source.glob("*") if p.suffix.lower() in (".obj", ".ply")) if source.is_dir() else []
    if len(files) < 3:
        raise DataError(f"{source} holds {len(files)} .obj or .ply meshes: PCA needs at least 3 registered ones.")
    first, faces = read_mesh(files[0])
    if len(faces) == 0:
        raise DataError(f"{files[0]} has no faces: export the meshes with their triangles.")
    shapes = np.stack([_registered(file, first, faces, files[0]) for file in files]) * UNITS[unit]
    aligned = rigid_align(shapes, np.ones(len(first), bool))
    mean = aligned.mean(0)
    flat = (aligned - mean).reshape(len(files), -1)
    if np.sqrt((flat**2).sum() / len(files)) <= SAME_SHAPE * np.linalg.norm(mean):
        raise DataError(f"The {len(files)} meshes in {source} have all the same shape: give faces of different people.")
    _check_size(mean, source, f"in {unit}: give their unit with --unit")
    basis, std = _large_components(flat, min(modes, len(files) - 1))
    count = len(std)
    report(
        f"{len(files)} meshes: {count} identity modes hold "
        f"{(std**2).sum() * (len(files) - 1) / (flat**2).sum():.1%} of the variance."
    )
    expression_basis, expression_std = _no_modes(len(mean))
    moved = sorted(p for p in (source / "expressions").glob("*") if p.suffix.lower() in (".obj", ".ply"))
    if moved:
        offsets = []
        stems = {file.stem: k for k, file in enumerate(files)}
        for file in moved:
            match = re.fullmatch(r"(.+)__(.+)", file.stem)
            if match is None or match[1] not in stems:
                raise DataError(f"{file} is not named SUBJECT__EXPRESSION after one of the meshes in {source}.")
            k = stems[match[1]]
            offset = _registered(file, first, faces, files[0]) * UNITS[unit] - shapes[k]
            offsets.append(offset @ _rotation_onto(shapes[k], aligned[k]))
        stacked = np.stack(offsets).reshape(len(offsets), -1)
        # Around the neutral face, not around the mean expression: no coefficients is no expression.
        if np.sqrt((stacked**2).sum() / len(offsets)) <= SAME_SHAPE * np.linalg.norm(mean):
            raise DataError(f"The {len(offsets)} expressions in {source / 'expressions'} are neutral: remove them.")
        directions, spread = _large_components(stacked, min(expression_modes, len(offsets)))
        expression_basis = directions.reshape(len(directions), -1, 3).astype(np.float32)
        expression_std = spread * np.sqrt(max(len(offsets) - 1, 1) / len(offsets))
    parts = Parts(
        name=name or source.name,
        mean=mean,
        faces=faces,
        identity_basis=basis.reshape(count, -1, 3).astype(np.float32),
        identity_std=std,
        expression_basis=expression_basis,
        expression_std=expression_std,
    )
    return _completed(parts, report, source)


def _registered(file: Path, first: Floats, first_faces: Ints, first_file: Path) -> Floats:
    points, faces = read_mesh(file)
    if len(points) != len(first):
        raise DataError(
            f"{file} has {len(points)} vertices but {first_file} has {len(first)}: the meshes must be registered."
        )
    if not np.array_equal(faces, first_faces):
        raise DataError(
            f"The triangles of {file} are not those of {first_file}: the meshes must be registered, with their "
            "triangles in one order."
        )
    return points


def _large_components(samples: Floats, count: int) -> tuple[Floats, Floats]:
    """Principal components without those that are only rounding."""
    directions, std = principal_components(samples, count)
    large = std >= ROUNDING * std[0]
    return directions[large], std[large]


def _rotation_onto(shape: Floats, aligned: Floats) -> Floats:
    """The rotation Q of a rigid alignment, ``aligned = shape Q + t``."""
    u, _, vt = np.linalg.svd((shape - shape.mean(0)).T @ (aligned - aligned.mean(0)))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation: Floats = (u * sign) @ vt
    return rotation
