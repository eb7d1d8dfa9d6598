"""Arrays of .npz and .npy files, read so that what a header claims is checked against the file before it is allocated.

NumPy allocates what an array says in its header, and inflates whatever an archive holds, so that a file of a few
hundred bytes can ask for any amount of memory. Arrays of objects, which are pickles, are not read.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError

INFLATED_BYTES = 64 * 2**20
INFLATED_RATIO = 32
"""The arrays of an archive may take 64 MiB, or this many times the archive's size, together."""

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_HEADER = re.compile(
    r"""\{\s*['"]descr['"]\s*:\s*['"](?P<order>[<>|=]?)(?P<kind>[biufUS])(?P<size>[1-9]\d{0,8})['"]\s*,"""
    r"""\s*['"]fortran_order['"]\s*:\s*(?P<fortran>True|False)\s*,"""
    r"""\s*['"]shape['"]\s*:\s*\((?P<shape>(?:\d+L?,\s*)*(?:\d+L?)?)\)\s*,?\s*\}\s*"""
)
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError)


class _DamagedError(ValueError):
    """What is wrong with the bytes; becomes a DataError that names the file."""


def read_npz(
    path: str | Path, what: str = "a whole .npz archive", fix: str = "replace or remove it"
) -> dict[str, NDArray[np.generic]]:
    """Read all arrays of a .npz archive of numbers and text.

    Args:
        path: The file, as ``numpy.savez`` or ``numpy.savez_compressed`` writes it.
        what: What the error says that a file is not.
        fix: What the error tells to do about a file that cannot be read.

    Returns:
        Name to array, of the native byte order.

    Raises:
        DataError: If there is no such file, it is no archive, is damaged, or holds other things than plain arrays.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "points.npz"
        >>> np.savez(path, landmarks=np.zeros((2, 68, 3), np.float32))
        >>> {name: (array.shape, str(array.dtype)) for name, array in read_npz(path).items()}
        {'landmarks': ((2, 68, 3), 'float32')}
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the path of a .npz archive.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except PermissionError:
        raise DataError(f"{path} may not be read: change its permissions.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {fix}.") from error
    except (*_BROKEN, RuntimeError) as error:  # zipfile's RuntimeError: the archive is encrypted.
        raise DataError(f"{path} is not {what} ({error!s:.200}): {fix}.") from error


def read_npy(path: str | Path) -> NDArray[np.generic]:
    """Read the array of a .npy file of numbers or text.

    Args:
        path: The file, as ``numpy.save`` writes it.

    Returns:
        The array, of the native byte order.

    Raises:
        DataError: If there is no such file, it is damaged, or holds other things than a plain array.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "yaw.npy"
        >>> np.save(path, np.arange(3))
        >>> read_npy(path).tolist()
        [0, 1, 2]
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is not a file.")
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size, "its array")
    except PermissionError:
        raise DataError(f"{path} may not be read: change its permissions.") from None
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path} is not a whole .npy file ({error}): replace or remove it.") from error


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, NDArray[np.generic]]:
    members = archive.infolist()
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _DamagedError(f"{member.filename} is compressed in another way than NumPy's")
    stored, inflated = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if stored > size:
        raise _DamagedError(f"its arrays are to take {stored} of its {size} bytes")
    if inflated > max(INFLATED_BYTES, INFLATED_RATIO * size):
        raise _DamagedError(f"its arrays are to take {inflated} bytes, out of proportion to the file's {size}")
    arrays = {}
    for member in members:
        with archive.open(member) as file:
            arrays[member.filename.removesuffix(".npy")] = _array(file, member.file_size, member.filename)
    return arrays


def _array(file: IO[bytes], size: int, name: str) -> NDArray[np.generic]:
    """An array in NumPy's format of version 1 to 3, of a file of the given size."""
    start = _exactly(file, 8, name)
    if not start.startswith(_MAGIC) or start[6] not in (1, 2, 3):
        raise _DamagedError(f"{name} is not a NumPy array")
    width, code = (2, "<H") if start[6] == 1 else (4, "<I")
    (length,) = struct.unpack(code, _exactly(file, width, name))
    if length > _MAX_HEADER:
        raise _DamagedError(f"{name} has a header of {length} bytes")
    header = _HEADER.fullmatch(_exactly(file, length, name).decode("latin1"))
    if header is None:
        raise _DamagedError(f"{name} is not an array of numbers or text")
    shape = tuple(int(number) for number in re.findall(r"\d+", header["shape"]))
    try:
        dtype = np.dtype(f"{header['order']}{header['kind']}{header['size']}")
    except TypeError:
        raise _DamagedError(f"{name} is of type {header['kind']}{header['size']}, which NumPy has not") from None
    count = math.prod(shape)
    if count * dtype.itemsize != size - 8 - width - length:
        raise _DamagedError(f"{name} is to be an array {shape} of {dtype} in {size - 8 - width - length} bytes")
    content = _exactly(file, count * dtype.itemsize, name)
    # Beyond the last letter of Unicode, reading the text ends in an error of the interpreter.
    if dtype.kind == "U" and np.frombuffer(content, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
        raise _DamagedError(f"{name} holds letters that there are not")
    if file.read(1):
        raise _DamagedError(f"{name} goes on after its array")
    if dtype.kind == "b":  # Other bytes than 0 and 1 are no truth values.
        values: NDArray[np.generic] = np.frombuffer(content, np.uint8) != 0
    else:
        values = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return values.reshape(shape, order="F" if header["fortran"] == "True" else "C")


def _exactly(file: IO[bytes], count: int, name: str) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise _DamagedError(f"{name} ends too early")
    return content


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in the smallest of the types that hold them exactly: float16, uint16, int32."""
    if array.dtype.kind == "f" and np.abs(array).max(initial=0.0) < np.finfo(np.float16).max:
        half = array.astype(np.float16)
        return half if np.array_equal(half.astype(array.dtype), array) else array
    if array.dtype.kind == "i" and array.size:
        for dtype in (np.uint16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= array.min() and array.max() <= limits.max:
                return array.astype(dtype)
    return array
