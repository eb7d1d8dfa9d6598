"""Arrays of MATLAB 5 to 7.2 files, read so that no file, damaged or made to harm, can end the process.

SciPy's reader trusts the lengths in a file and can end the process by a segmentation fault; here each length is checked
against what holds it before anything is allocated. The format is of "MAT-File Format" (MathWorks, Level 5).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError

HEADER = 128
PREFIX = 1024
"""Bytes of a variable that hold its flags, its shape and its name, if that is one MATLAB can give (63 characters)."""
MAX_DIMENSIONS = 32
"""Dimensions of a NumPy array."""
INFLATED_BYTES = 64 * 2**20
INFLATED_RATIO = 32
"""Compressed variables of a file may take 64 MiB, or this many times its size. Noise-like numbers, as face models
and labels are, compress to a half at best; zlib's best is 1032."""

_INT32, _MATRIX, _COMPRESSED = 5, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STRUCT, _FIRST_NUMBER, _LAST_NUMBER = 2, 6, 15
_CLASSES = {1: "a cell array", 2: "a struct", 3: "an object", 4: "text", 5: "a sparse matrix"}
_COMPLEX = 0x08
_HDF5 = b"\x89HDF\r\n\x1a\n"


class _DamagedError(Exception):
    """What is wrong with the bytes; becomes a DataError that names the file."""


class _Elements:
    """The elements of a variable one after the other, each within what is left of it."""

    def __init__(self, content: bytes | memoryview, order: str) -> None:
        self.content, self.order, self.place = memoryview(content), order, 0

    def take(self, what: str) -> tuple[int, memoryview]:
        """Type and bytes of the next element."""
        if self.place >= len(self.content):
            raise _DamagedError(f"a variable without {what}")
        kind, length = _full_tag(bytes(self.content[self.place : self.place + 8]), self.order)
        if kind >> 16:  # A small element: its length in the upper half of the type, up to four bytes within the tag.
            kind, length, start, end = kind & 0xFFFF, kind >> 16, self.place + 4, self.place + 8
            if length > 4:
                raise _DamagedError(f"a small element of {length} bytes")
        else:
            start = self.place + 8
            if length > len(self.content) - start:
                raise _DamagedError(f"{what} of {length} bytes where {len(self.content) - start} are left")
            end = start + length + -length % 8
        self.place = end
        return kind, self.content[start : start + length]

    def integers(self, what: str, at_most: int) -> tuple[int, ...]:
        """The next element, which is a list of int32."""
        kind, data = self.take(what)
        if kind != _INT32 or len(data) % 4 or not 4 <= len(data) <= 4 * at_most:
            raise _DamagedError(f"{what} of {len(data)} bytes and type {kind}")
        return struct.unpack(f"{self.order}{len(data) // 4}i", data)

    def text(self, what: str) -> str:
        """The next element, which is a name."""
        return bytes(self.take(what)[1]).decode("latin1").rstrip("\0")


class _Matrix:
    """A variable, or a field of a struct: what its first three elements say of it, and its other elements."""

    def __init__(self, content: bytes | memoryview, order: str) -> None:
        self.elements = _Elements(content, order)
        flags = self.elements.take("flags")[1]
        if len(flags) != 8:
            raise _DamagedError(f"flags of {len(flags)} bytes")
        (word,) = struct.unpack(f"{order}I", flags[:4])
        self.kind, self.is_complex = word & 0xFF, bool(word >> 8 & _COMPLEX)
        self.shape = self.elements.integers("a shape", MAX_DIMENSIONS)
        if len(self.shape) < 2 or min(self.shape) < 0:
            raise _DamagedError(f"an array of shape {self.shape}")
        self.name = self.elements.text("a name")

    def fields(self) -> dict[str, memoryview]:
        """The fields of a 1 x 1 struct."""
        (width,) = self.elements.integers("the length of the names of fields", 1)
        names = bytes(self.elements.take("names of fields")[1])
        if width < 1 or len(names) % width:
            raise _DamagedError(f"names of fields of {len(names)} bytes, {width} each")
        found = {}
        for start in range(0, len(names), width):
            kind, content = self.elements.take("a field")
            if kind != _MATRIX:
                raise _DamagedError(f"an element of type {kind} in the place of a field")
            found[names[start : start + width].split(b"\0")[0].decode("latin1")] = content
        return found

    def numbers(self) -> NDArray[np.generic]:
        """The values of an array of numbers."""
        kind, data = self.elements.take("values")
        if kind not in _STORED:
            raise _DamagedError(f"values of type {kind}")
        dtype = np.dtype(self.elements.order + _STORED[kind])
        if math.prod(self.shape) * dtype.itemsize != len(data):
            raise _DamagedError(f"{len(data)} bytes of values for an array of shape {self.shape}")
        values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return values.reshape(self.shape, order="F")


def read_mat(path: str | Path, names: Collection[str]) -> dict[str, NDArray[np.generic]]:
    """Read numeric arrays of a MATLAB file (version 5 to 7.2).

    Args:
        path: The file.
        names: The wanted variables; ``"model.tri"`` is the field ``tri`` of the 1 x 1 struct ``model``.

    Returns:
        Name to array, with those names that the file has. Arrays have the type that the values are stored as, which
        MATLAB makes as small as they allow: an array of zeros comes as uint8. Shapes are MATLAB's, at least 2D.

    Raises:
        DataError: If the file is missing, is of another format or is damaged, or what is wanted is no array of numbers.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np, scipy.io
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "face.mat"
        >>> scipy.io.savemat(path, {"pt2d": np.ones((2, 68)), "model": {"tri": np.arange(3)}})
        >>> {name: array.shape for name, array in read_mat(path, ["pt2d", "model.tri", "roi"]).items()}
        {'pt2d': (2, 68), 'model.tri': (1, 3)}
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the path of a MATLAB file.")
    try:
        with path.open("rb") as file:
            return _read(file, path, path.stat().st_size, set(names))
    except PermissionError:
        raise DataError(f"{path} may not be read: change its permissions.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (_DamagedError, zlib.error) as error:
        raise DataError(f"{path} is not a whole MATLAB file ({error}): replace or remove it.") from error


def _read(file: BinaryIO, path: Path, size: int, names: set[str]) -> dict[str, NDArray[np.generic]]:
    order = _byte_order(file, path)
    wanted: dict[str, set[str]] = {}
    for name in names:
        variable, _, field = name.partition(".")
        wanted.setdefault(variable, set()).add(field)
    budget = max(INFLATED_BYTES, INFLATED_RATIO * size)
    found: dict[str, NDArray[np.generic]] = {}
    place = HEADER
    while wanted and place < size:
        file.seek(place)
        kind, length = _full_tag(file.read(8), order)
        if length > size - place - 8:
            raise _DamagedError(f"a variable of {length} bytes where {size - place - 8} are left")
        compressed = kind == _COMPRESSED
        start = file.read(min(length, PREFIX))
        if compressed:
            start = zlib.decompressobj().decompress(start, PREFIX)
            kind, inner = _full_tag(start[:8], order)
            start = start[8:]
        if kind != _MATRIX:
            raise _DamagedError(f"an element of type {kind} in the place of a variable")
        name = _variable_name(start, order)
        if name in wanted:
            file.seek(place + 8)
            content = file.read(length)
            if compressed:
                if inner > budget:
                    raise _DamagedError(f"{name} is to take {inner} bytes, out of proportion to the file's {size}")
                budget -= inner
                content = _inflate(content, inner)
            found |= _wanted_fields(_Matrix(content, order), wanted.pop(name), path)
        place += 8 + length
    return found


def _byte_order(file: BinaryIO, path: Path) -> str:
    """``"<"`` or ``">"``, of a file of version 5 to 7.2; other MATLAB files are refused by what they are."""
    header = file.read(HEADER)
    file.seek(512)
    if header.startswith((b"MATLAB 7.3", _HDF5)) or file.read(8) == _HDF5:
        raise DataError(
            f"{path} is a MATLAB 7.3 file (HDF5), which is not read: in MATLAB, convert it with s = "
            f"load('{path.name}'); save('{path.name}', '-struct', 's', '-v7')."
        )
    if _is_version_4(header):
        raise DataError(
            f"{path} is a MATLAB 4 file, which is not read: in MATLAB or Octave, convert it with "
            f"load('{path.name}'); save('-v7', '{path.name}')."
        )
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None:
        raise _DamagedError("it has not the header of one")
    return order


def _is_version_4(header: bytes) -> bool:
    """Whether the first 20 bytes are a header of version 4: type, rows, columns, imaginary flag, length of the name."""
    if len(header) < 20:
        return False
    for order in "<>":
        kind, rows, columns, imaginary, length = struct.unpack_from(f"{order}5i", header)
        byte_order, zero, stored, matrix = kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10
        if (
            (byte_order in range(5) and zero == 0 and stored in range(6) and matrix in range(3))
            and (rows >= 0 and columns >= 0 and imaginary in (0, 1))
            and 2 <= length <= 64
        ):
            return True
    return False


def _full_tag(tag: bytes, order: str) -> tuple[int, int]:
    """Type and length of a variable, whose tag is never a small one."""
    if len(tag) < 8:
        raise _DamagedError("it ends within a tag")
    kind, length = struct.unpack(f"{order}2I", tag)
    return int(kind), int(length)


def _variable_name(start: bytes, order: str) -> str:
    """Name of the variable that starts with these bytes; empty if it is longer than any that MATLAB gives."""
    elements = _Elements(start, order)
    try:
        elements.take("flags")
        elements.take("a shape")
        return elements.text("a name")
    except _DamagedError:  # Nothing is known, nor needed, of what is not wanted.
        return ""


def _inflate(content: bytes, length: int) -> bytes:
    """The bytes of a compressed variable behind its tag, which says how many they are."""
    stream = zlib.decompressobj()
    inflated = stream.decompress(content, length + 9)
    if len(inflated) != length + 8 or not stream.eof:
        raise _DamagedError(f"a compressed variable that is not of the {length} bytes that it says")
    return inflated[8:]


def _values(matrix: _Matrix, name: str, path: Path) -> NDArray[np.generic]:
    if not _FIRST_NUMBER <= matrix.kind <= _LAST_NUMBER or matrix.is_complex:
        kind = "complex" if matrix.is_complex else _CLASSES.get(matrix.kind, f"of class {matrix.kind}")
        raise DataError(f"{path} field {name} is {kind}, not numeric: get the file of the original data set.")
    return matrix.numbers()


def _wanted_fields(matrix: _Matrix, fields: set[str], path: Path) -> dict[str, NDArray[np.generic]]:
    """The variable itself, whose field is called "", or fields of a struct, by their whole names."""
    name = matrix.name
    found = {name: _values(matrix, name, path)} if "" in fields else {}
    wanted = fields - {""}
    if wanted:
        if matrix.kind != _STRUCT or matrix.shape != (1, 1):
            raise DataError(f"{path} field {name} is not a single struct: get the file that this format needs.")
        contents = matrix.fields()
        for field in sorted(wanted & contents.keys()):
            inner = _Matrix(contents[field], matrix.elements.order)
            found[f"{name}.{field}"] = _values(inner, f"{name}.{field}", path)
    return found
