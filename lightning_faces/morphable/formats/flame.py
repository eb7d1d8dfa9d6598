"""FLAME."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_faces.errors import DataError
from lightning_faces.files.npz import read_npz
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.fields import (
    UNITS,
    as_indices,
    need,
    unit_modes,
)
from lightning_faces.morphable.formats.pickle_data import Call, PickleError, as_array, read_pickle
from lightning_faces.morphable.surface import Floats

FLAME_IDENTITIES = 300
_INSTEAD = (
    "save its v_template, shapedirs and f with numpy.savez in a Python that you trust it to, and import that .npz"
)


def _flame_array(values: Any, key: str, path: Path) -> Floats:
    """An array of the file, of float64; chumpy arrays keep theirs in ``x``."""
    value = values.get(key) if isinstance(values, dict) else None
    if isinstance(value, Call) and isinstance(value.state, dict) and "x" in value.state:
        value = value.state["x"]
    array = value if isinstance(value, np.ndarray) else as_array(value)
    if array is None or array.dtype.kind not in "fiu":
        raise DataError(f"{path} has no array {key!r}: give generic_model.pkl of FLAME, or its arrays in an .npz file.")
    return array.astype(np.float64)


def read_flame(path: Path, expressions: Path | None) -> Parts:
    """FLAME's ``generic_model.pkl`` in metres (FACTS F), read without running it; or its arrays in an .npz.

    Coefficients are standard deviations. A file with at most 300 directions has no expressions. The jaw is a joint in
    FLAME, not a mode, and is not part of the result.
    """
    file = need(path, "generic_model.pkl", "generic_model.npz")
    if file.suffix == ".npz":
        values: Any = read_npz(file, fix=_INSTEAD)
    else:
        try:
            values = read_pickle(file)
        except (PickleError, OSError) as error:
            raise DataError(f"{file} cannot be read as plain data ({error}): {_INSTEAD}.") from error
    try:
        return _parts(values, file)
    except PickleError as error:
        raise DataError(f"{file} is damaged ({error}): {_INSTEAD}.") from error


def _parts(values: Any, file: Path) -> Parts:
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
    identity_basis, identity_std = unit_modes(modes[:count], np.ones(count))
    expression_basis, expression_std = unit_modes(modes[count:], np.ones(len(modes) - count))
    return Parts(
        name="flame",
        mean=mean,
        faces=as_indices(faces, "f", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
    )
