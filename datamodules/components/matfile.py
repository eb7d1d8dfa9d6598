"""MATLAB files as data sets use them: whole, of the expected shape, finite, and always float64."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from lightning_faces.errors import DataError

_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    UnicodeDecodeError,
    MatReadError,
    struct.error,
    zlib.error,
)
"""What SciPy raises for files that are no MATLAB files, or not whole ones."""


def read_mat(
    path: Path,
    fields: Mapping[str, tuple[int | None, ...]],
    optional: Mapping[str, tuple[int | None, ...]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Read numeric fields of a MATLAB file (up to version 7.2).

    MATLAB stores an all-zero array as uint8 and whole numbers as integers, so that one field has many types over a data
    set (AFLW2000-3D: FACTS on dtype drift); everything is cast to float64 here.

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
    try:
        with path.open("rb") as file:
            content = loadmat(file, variable_names=list(wanted))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except PermissionError:
        raise DataError(f"{path} may not be read: change its permissions.") from None
    except _BROKEN as error:
        raise DataError(f"{path} is not a whole MATLAB file ({error}): replace or remove it.") from error
    arrays = {}
    for name, shape in wanted.items():
        if name not in content:
            if name in fields:
                raise DataError(f"{path} has no field {name}: get the file of the original data set.")
            continue
        value = np.asarray(content[name])
        if value.dtype.kind not in "iufb":
            raise DataError(f"{path} field {name} is not numeric: get the file of the original data set.")
        if value.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, value.shape)):
            raise DataError(f"{path} field {name} has shape {value.shape}, not {shape}.")
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise DataError(f"{path} field {name} has values that are not finite: replace or remove the file.")
        arrays[name] = value
    return arrays
