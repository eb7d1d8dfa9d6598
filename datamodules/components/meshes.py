"""OBJ and PLY files of scans, read so that a damaged one is named and none opens a file elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_faces.errors import ConfigurationError, DataError

SCAN_SUFFIXES = frozenset({".obj", ".ply"})
LONGEST_HEADER = 65_536
LARGEST_ASSET = 256 * 2**20
"""Bytes of a material or texture."""
_SIZES = {
    "char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2, "int": 4, "uint": 4,
    "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8,
}  # fmt: skip
_BROKEN = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError,
    OverflowError, MemoryError, AssertionError, NameError, ZeroDivisionError, EOFError, SyntaxError, struct.error,
)  # fmt: skip
"""What trimesh raises for files that are not whole."""


class _Beside(Mapping[str, bytes]):
    """Materials and textures that lie in the folder of a mesh; a name that leads elsewhere has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __getitem__(self, name: str) -> bytes:
        plain = str(name).strip()
        path = self.folder / plain
        if plain != Path(plain).name or "\0" in plain or not path.is_file() or path.resolve().parent != self.folder:
            raise KeyError(name)
        if path.stat().st_size > LARGEST_ASSET:
            raise KeyError(name)
        return path.read_bytes()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self.folder.iterdir() if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_mesh(path: Path) -> Any:
    """An OBJ or PLY file as a trimesh mesh, its vertices in the file's order.

    Raises:
        DataError: If it cannot be read, claims more than it holds, or has values that are not finite.
        ConfigurationError: If trimesh is not installed.
    """
    trimesh = import_trimesh()
    if not path.is_file():
        raise DataError(f"Scan {path} does not exist.")
    kind = path.suffix.lower().removeprefix(".")
    try:
        if kind == "ply":
            _check_ply(path)
        with path.open("rb") as file:
            mesh = trimesh.load(
                file, file_type=kind, resolver=_Beside(path.parent), force="mesh", process=False, maintain_order=True
            )
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        faces = np.asarray(mesh.faces, dtype=np.int64)
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"Scan {path} cannot be read ({reason}): give an OBJ or PLY file.") from error
    if len(vertices) < 100 or not np.isfinite(vertices).all() or np.abs(vertices).max() > 1e9:
        raise DataError(f"Scan {path} has {len(vertices)} vertices, or some that are not finite: replace or remove it.")
    if faces.ndim != 2 or faces.shape[1] != 3 or (len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices)):
        raise DataError(f"Scan {path} has triangles of vertices that it lacks: replace or remove it.")
    return mesh


def _check_ply(path: Path) -> None:
    """Compare the numbers of a PLY header with the file's size.

    Raises:
        ValueError: If it is none, or claims more than the file holds.
    """
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
    head, found, _ = start.partition(b"end_header")
    if not start.startswith(b"ply") or not found:
        raise ValueError("it has no PLY header")
    text, claimed, count = b"format ascii" in head, 0, 0
    for line in head.decode("latin1").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            count = int(words[2]) if len(words) == 3 else -1
            if count < 0:
                raise ValueError(f"its header has the line {line!r}")
        elif words[:1] == ["property"] and len(words) > 2:
            stored = _SIZES[words[2] if words[1] == "list" else words[1]]
            claimed += count * (2 if text else stored)
    if claimed > path.stat().st_size:
        raise ValueError(f"its header claims {claimed} bytes, and it has {path.stat().st_size}")


def import_trimesh() -> Any:
    """The module, which is an extra.

    Raises:
        ConfigurationError: If it is not installed.
    """
    try:
        import trimesh
    except ImportError:
        raise ConfigurationError(
            "Scans need trimesh: install the extra with `pip install lightning-faces[scans]`."
        ) from None
    return trimesh
