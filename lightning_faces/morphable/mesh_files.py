"""Write meshes and point clouds as PLY and OBJ files, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic


def write_mesh(path: str | Path, vertices: Any, faces: Any = None, colours: Any = None) -> Path:
    """Write one mesh, or a point cloud where there are no faces; the suffix says which format.

    PLY is binary, little-endian, float32 with uint8 colours. OBJ is text; colours follow the position on its line, as
    MeshLab, Blender and trimesh read them.

    Vertices are written as they are. Viewers expect a right-handed frame with faces counter-clockwise from outside: the
    object frame is one (millimetres). Vertices in the image frame become one with ``vertices * (1, -1, 1)``.

    Args:
        path: An .obj or .ply file.
        vertices: ``[V, 3]``, tensor or array.
        faces: Int ``[F, 3]``.
        colours: ``[V, 3]`` RGB: floats in [0, 1] (those outside are clamped), or uint8.

    Returns:
        The path.

    Raises:
        ConfigurationError: If the suffix is another, shapes do not belong together, a coordinate or colour is not
            finite, or a face names a vertex that is not there.

    Example:
        >>> write_mesh("triangle.obj", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]).read_text().splitlines()[-1]
        'f 1 2 3'
    """
    path = Path(path)
    points = _array(vertices, np.float32)
    triangles = None if faces is None else _array(faces, np.int64)
    paint = None if colours is None else _colours(colours)
    _check(path, points, triangles, paint)
    if path.suffix.lower() == ".ply":
        return write_atomic(path, _ply(points, triangles, paint))
    return write_atomic(path, _obj(points, triangles, paint))


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=dtype)


def _colours(values: Any) -> NDArray[np.uint8]:
    array = _array(values, None)
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise ConfigurationError("A colour of the mesh is not finite: give RGB in [0, 1], or uint8.")
    return np.round(array.astype(np.float64).clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _check(path: Path, points: NDArray[Any], faces: NDArray[Any] | None, colours: NDArray[Any] | None) -> None:
    if path.suffix.lower() not in (".obj", ".ply"):
        raise ConfigurationError(f"{path} cannot be written as a mesh: use .obj or .ply.")
    for name, array in (("vertices", points), ("faces", faces), ("colours", colours)):
        if array is not None and (array.ndim != 2 or array.shape[1] != 3):
            raise ConfigurationError(f"The {name} for {path} have shape {array.shape}: give [N, 3], one mesh.")
    if not np.isfinite(points).all():
        raise ConfigurationError(f"The vertices for {path} have coordinates that are not finite: leave them out.")
    if colours is not None and len(colours) != len(points):
        raise ConfigurationError(f"{len(colours)} colours were given for the {len(points)} vertices of {path}.")
    if faces is not None and faces.size and not 0 <= faces.min() <= faces.max() < len(points):
        raise ConfigurationError(f"The faces for {path} name vertices outside 0 to {len(points) - 1}.")


def _ply(points: NDArray[Any], faces: NDArray[Any] | None, colours: NDArray[Any] | None) -> bytes:
    fields = [(axis, "<f4") for axis in "xyz"]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    if colours is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    table = np.empty(len(points), dtype=fields)
    for k, axis in enumerate("xyz"):
        table[axis] = points[:, k]
    if colours is not None:
        for k, name in enumerate(("red", "green", "blue")):
            table[name] = colours[:, k]
    body = table.tobytes()
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        rows = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
        rows["count"], rows["corners"] = 3, faces
        body += rows.tobytes()
    return "\n".join([*lines, "end_header", ""]).encode("ascii") + body


def _obj(points: NDArray[Any], faces: NDArray[Any] | None, colours: NDArray[Any] | None) -> bytes:
    lines = [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in points.tolist()]
    if colours is not None:
        lines = [f"{line} {r:.4f} {g:.4f} {b:.4f}" for line, (r, g, b) in zip(lines, (colours / 255.0).tolist())]
    if faces is not None:
        lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join([*lines, ""]).encode("ascii")
