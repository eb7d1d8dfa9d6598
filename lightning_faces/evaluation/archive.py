"""NPZ files of strangers: nothing is evaluated, and no memory is taken that the file does not account for."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 256 * 2**20
"""What all arrays of a file may take together: a million samples with 25 columns."""
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z]\d{1,6})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,200})\), \} *\n?"
)
_KINDS = "iufbU"


def parse_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """Arrays of an NPZ file.

    Args:
        data: Content of the file.

    Returns:
        Read-only arrays by name: numbers, booleans and strings.

    Raises:
        ValueError: If the file is damaged, holds something else, or claims more than :data:`MOST_BYTES`.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.savez(buffer, errors=np.array([0.5, 1.5]))
        >>> parse_npz(buffer.getvalue())["errors"].tolist()
        [0.5, 1.5]
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            claimed = sum(member.file_size for member in members)
            if claimed > MOST_BYTES:
                raise ValueError(f"it claims {claimed:,} bytes, more than {MOST_BYTES:,}")
            return {member.filename.removesuffix(".npy"): _parse_npy(archive.read(member)) for member in members}
    except ValueError:
        raise
    # What the standard library raises of damaged archives, for another compression, and for an encrypted member.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error) or "it ends too early") from None


def _parse_npy(data: bytes) -> NDArray[Any]:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("a member is no NumPy array")
    wide = data[6] > 1
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start : start + length])
    if header is None:
        raise ValueError("an array has another header than NumPy writes")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in re.findall(rb"\d+", header[3]))
    body = data[start + length :]
    count = 1
    for size in shape:
        count *= size
    if dtype.kind not in _KINDS or dtype.itemsize == 0 or count * dtype.itemsize != len(body):
        raise ValueError(f"an array of type {dtype.str} and shape {shape} does not fit its {len(body):,} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if header[2] == b"True" else "C")
