"""Read triangle meshes from OBJ and PLY files (positions and faces; polygons become fans)."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from lightning_faces.errors import DataError
from lightning_faces.morphable.surface import Floats, Ints

_PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}


def read_mesh(path: Path, with_faces: bool = True) -> tuple[Floats, Ints]:
    r"""Vertices and triangles of a file, in its own units and axes.

    Args:
        path: An .obj or .ply file.
        with_faces: If false, the faces of an OBJ are skipped (they are the slow part) and come back empty.

    Returns:
        Vertices ``[V, 3]`` and triangles ``[F, 3]``.

    Raises:
        DataError: If the file is not a mesh of these kinds.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "quad.obj"
        >>> _ = path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
        >>> vertices, triangles = read_mesh(path)
        >>> vertices.shape, triangles.tolist()
        ((4, 3), [[0, 1, 2], [0, 2, 3]])
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the path of an .obj or .ply mesh.")
    readers = {".obj": _read_obj, ".ply": _read_ply}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is not a mesh that can be read here: use .obj or .ply.")
    try:
        vertices, faces = readers[path.suffix.lower()](path, with_faces)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise DataError(f"{path} is not a readable {path.suffix} file ({error}): export it again.") from error
    if len(vertices) == 0 or not np.isfinite(vertices).all():
        raise DataError(f"{path} has no vertices, or coordinates that are not finite: export it again.")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise DataError(f"{path} has faces that name vertices outside 0..{len(vertices) - 1}: export it again.")
    return vertices, faces


def _read_obj(path: Path, with_faces: bool) -> tuple[Floats, Ints]:
    # Arrays, which take 8 bytes for a number; a list of text takes 60.
    points, triangles = array("d"), array("q")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("v "):
                x, y, z = line.split(None, 4)[1:4]
                points.extend((float(x), float(y), float(z)))
            elif with_faces and line.startswith("f "):
                count = len(points) // 3
                corners = [int(part.split("/")[0]) for part in line.split()[1:]]
                corners = [c - 1 if c > 0 else count + c for c in corners]
                for k in range(1, len(corners) - 1):
                    triangles.extend((corners[0], corners[k], corners[k + 1]))
    return np.array(points, np.float64).reshape(-1, 3), np.array(triangles, np.int64).reshape(-1, 3)


def _read_ply(path: Path, with_faces: bool) -> tuple[Floats, Ints]:
    with path.open("rb") as file:
        if file.readline().strip() != b"ply":
            raise ValueError("no 'ply' in the first line")
        order = ""
        elements: list[tuple[str, int, list[list[str]]]] = []
        while True:
            words = file.readline().decode("ascii").split()
            if not words:
                raise ValueError("the header has no end")
            if words[0] == "format":
                order = {"ascii": "a", "binary_little_endian": "<", "binary_big_endian": ">"}[words[1]]
            elif words[0] == "element":
                elements.append((words[1], int(words[2]), []))
            elif words[0] == "property":
                elements[-1][2].append(words[1:])
            elif words[0] == "end_header":
                break
        body = file.read()
    tokens = body.split() if order == "a" else []
    vertices, faces, offset = np.zeros((0, 3)), np.zeros((0, 3), np.int64), 0
    for name, count, properties in elements:
        has_list = any(p[0] == "list" for p in properties)
        names = [p[-1] for p in properties]
        if not has_list and order == "a":
            table = np.array(tokens[offset : offset + count * len(names)], np.float64).reshape(count, len(names))
            columns: Any = dict(zip(names, table.T, strict=True))
            offset += count * len(names)
        elif not has_list:
            dtype = np.dtype([(p[-1], order + _PLY_TYPES[p[0]]) for p in properties])
            columns = np.frombuffer(body, dtype, count, offset)
            offset += count * dtype.itemsize
        else:
            polygons, offset = _ply_polygons(properties, count, order, tokens, body, offset)
            if name == "face":
                faces = np.array([(p[0], p[k], p[k + 1]) for p in polygons for k in range(1, len(p) - 1)], np.int64)
        if name == "vertex":
            vertices = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
    return vertices, faces.reshape(-1, 3)


def _ply_polygons(
    properties: list[list[str]], count: int, order: str, tokens: list[bytes], body: bytes, offset: int
) -> tuple[list[list[int]], int]:
    """The vertex lists of an element with list properties, and the place after it."""
    if count > len(body) - offset:
        raise ValueError(f"{count} lists in the {len(body) - offset} bytes that are left")
    polygons = []
    for _ in range(count):
        polygon: list[int] = []
        for kind in properties:
            if kind[0] != "list":
                offset += 1 if order == "a" else np.dtype(_PLY_TYPES[kind[0]]).itemsize
                continue
            if order == "a":
                size = _list_length(tokens[offset])
                values = [int(float(token)) for token in tokens[offset + 1 : offset + 1 + size]]
                offset += 1 + size
            else:
                size_type, value_type = np.dtype(order + _PLY_TYPES[kind[1]]), np.dtype(order + _PLY_TYPES[kind[2]])
                size = _list_length(np.frombuffer(body, size_type, 1, offset)[0])
                offset += size_type.itemsize
                values = np.frombuffer(body, value_type, size, offset).astype(int).tolist()
                offset += size * value_type.itemsize
            if kind[-1] in ("vertex_indices", "vertex_index"):
                polygon = values
        polygons.append(polygon)
    return polygons, offset


def _list_length(value: Any) -> int:
    length = int(value)
    if length < 0:
        raise ValueError(f"a list of length {length}")
    return length
