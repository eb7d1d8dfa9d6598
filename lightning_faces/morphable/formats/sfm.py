"""Surrey Face Model, as eos keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.fields import (
    as_deviations,
    as_modes,
    as_points,
    as_triangles,
    content,
    find,
    need,
    no_modes,
)

SFM_VERTICES = 3448
SFM_LANDMARKS = {
    **{9: 33, 18: 225, 19: 229, 20: 233, 21: 2086, 22: 157, 23: 590, 24: 2091, 25: 666, 26: 662, 27: 658},
    **{28: 2842, 29: 379, 30: 272, 31: 114, 32: 100, 33: 2794, 34: 270, 35: 2797, 36: 537},
    **{37: 177, 38: 172, 39: 191, 40: 181, 41: 173, 42: 174, 43: 614, 44: 624, 45: 605, 46: 610, 47: 607, 48: 606},
    **{49: 398, 50: 315, 51: 413, 52: 329, 53: 825, 54: 736, 55: 812, 56: 841, 57: 693, 58: 411, 59: 264, 60: 431},
    **{62: 416, 63: 423, 64: 828, 66: 817, 67: 442, 68: 404},
}


class _Cereal:
    """The little-endian binary archives of the C++ library cereal, as eos writes them (FACTS F)."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.place = path, content(path), 0

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


def read_sfm(path: Path, expressions: Path | None) -> Parts:
    """Surrey Face Model, ``sfm_shape_3448.bin`` of eos and its expression blendshapes (FACTS F)."""
    file = need(path, "sfm_shape_3448.bin")
    archive = _Cereal(file)
    version = int(archive.take("<u4")[0])
    if version != 1:
        raise DataError(f"{file} has version {version} of eos' model format, version 1 is read: save it with eos 1.x.")
    mean = as_points(archive.matrix(), "the mean", file)
    basis = as_modes(archive.matrix(), len(mean), "the modes", file)
    std = as_deviations(archive.matrix(), "the variances", basis, file, 0.5)
    faces = as_triangles(archive.take("<i4", 3 * archive.size()), "the triangles", file)
    # The colour model: three empty matrices and no triangles; then one texture coordinate per vertex.
    for _ in range(3):
        archive.matrix()
    archive.take("<i4", 3 * archive.size())
    uv = archive.take("<f8", 2 * archive.size()).astype(np.float64).reshape(-1, 2)
    archive.end()
    moves, move_std = no_modes(len(mean))
    names, kind = [], "pca"
    extra = expressions or find(file.parent, "expression_blendshapes_3448.bin")
    if extra is not None:
        shapes = _Cereal(need(extra, "expression_blendshapes_3448.bin"))
        found = []
        for _ in range(shapes.size()):
            names.append(shapes.take("u1", shapes.size()).tobytes().decode("utf-8", "replace"))
            found.append(as_points(shapes.matrix(), repr(names[-1]), shapes.path, len(mean)))
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
