"""Label files of MATLAB as data sets use them: whole, of the expected shape, finite, and always float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files import mat


def read_mat(
    path: Path,
    fields: Mapping[str, tuple[int | None, ...]],
    optional: Mapping[str, tuple[int | None, ...]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Read numeric fields of a MATLAB file (version 5 to 7.2).

    MATLAB stores an all-zero array as uint8 and whole numbers as integers, so that one field has many types over a data
    set (AFLW2000-3D has); everything is cast to float64 here.

    Args:
        path: The file.
        fields: Needed fields and their shapes; None matches any length.
        optional: Further fields that may be absent.

    Returns:
        Field name to array of the given shape.

    Raises:
        DataError: If the file is unreadable or a field is absent, of another shape, not numeric or not finite.
    """
    wanted = {**fields, **(optional or {})}
    content = mat.read_mat(path, wanted)
    arrays = {}
    for name, shape in wanted.items():
        if name not in content:
            if name in fields:
                raise DataError(f"{path} has no field {name}: get the file of the original data set.")
            continue
        value = content[name]
        if value.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, value.shape)):
            raise DataError(f"{path} field {name} has shape {value.shape}, not {shape}.")
        numbers = value.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise DataError(f"{path} field {name} has values that are not finite: replace or remove the file.")
        arrays[name] = numbers
    return arrays
