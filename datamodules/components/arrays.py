"""NumPy files from anywhere: what a header claims is compared with the file's size before anything is allocated."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError

HEADER_BYTES = 10_000
"""Longest header that is read."""
RATIO = 200
"""A compressed array may be this many times as large as its place in the file (zlib's best is 1032) ..."""
SMALL = 64 * 2**20
"""... or take this many bytes."""
_VERSIONS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_BROKEN = (
    OSError, ValueError, TypeError, KeyError, IndexError, EOFError, RuntimeError, NotImplementedError, SyntaxError,
    OverflowError, RecursionError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for files that are not theirs, or not whole."""


def read_array(path: Path) -> NDArray[Any]:
    """The array of an NPY file, without Python objects.

    Raises:
        DataError: If it cannot be read, or claims more values than the file holds.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except _BROKEN as error:
        raise DataError(f"{path} is not a whole NumPy array ({_reason(error)}): write it with numpy.save.") from error


def read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an NPZ file, without Python objects.

    Args:
        path: The file.
        names: The wanted ones.

    Returns:
        Those of them that the file has.

    Raises:
        DataError: If one cannot be read, or claims more values than the file holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {}
            for name in names:
                if name in members:
                    info = members[name]
                    if info.file_size > max(SMALL, RATIO * info.compress_size):
                        raise ValueError(f"{name} claims {info.file_size} bytes in a file of {path.stat().st_size}")
                    with archive.open(info) as file:
                        found[name] = _read(file, info.file_size)
            return found
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except _BROKEN as error:
        raise DataError(
            f"{path} is not a whole NPZ file ({_reason(error)}): write it with numpy.savez and no Python objects."
        ) from error


def _read(file: IO[bytes], size: int) -> NDArray[Any]:
    version = np.lib.format.read_magic(file)
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}")
    shape, fortran_order, dtype = _VERSIONS[version](file, max_header_size=HEADER_BYTES)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.itemsize == 0 or len(shape) > 32 or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"its shape is {shape} and its type {dtype}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise ValueError(f"it claims {claimed} bytes in {size}")
    data = file.read(claimed)
    if len(data) < claimed:
        raise ValueError(f"it ends after {len(data)} of {claimed} bytes")
    # A copy, since arrays that are read can be written to.
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C").copy()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
