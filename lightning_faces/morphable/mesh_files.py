"""Write meshes and point clouds as PLY and OBJ files, whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.morphable.face_mesh import FaceMesh


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
    paint = None if colours is None else mesh_colours(colours)
    check_mesh(path, (".obj", ".ply"), points, triangles, paint)
    if path.suffix.lower() == ".ply":
        return write_atomic(path, _ply(points, triangles, paint))
    return write_atomic(path, _obj(points, triangles, paint))


def write_textured_obj(path: str | Path, mesh: FaceMesh, texture: Any) -> Path:
    """Write one face as OBJ with its texture: the .obj, and beside it a .mtl and a .png of the same name.

    Triangles that the UV map leaves out, such as the back of the head, take the texture's mean colour. Numbers are in
    the mesh's own unit. The .obj comes last, so that it never names a file that is not there.

    Args:
        path: An .obj file. White space in its name becomes "_" in those of the other two, since readers end a name
            there.
        mesh: A face whose model has a UV map.
        texture: UV image ``[3, T, T]`` RGB in [0, 1].

    Returns:
        The path of the .obj.

    Raises:
        ConfigurationError: If the suffix is another, the mesh has no UV map, or a value is not finite.

    Example:
        >>> corner = FaceMesh(np.eye(3), np.array([[0, 1, 2]]), np.eye(3)[:, :2], np.array([[0, 1, 2]]))
        >>> write_textured_obj("corner.obj", corner, np.full((3, 8, 8), 0.5)).read_text().splitlines()[0]
        'mtllib corner.mtl'
        >>> sorted(file.name for file in Path(".").glob("corner.*"))
        ['corner.mtl', 'corner.obj', 'corner.png']
    """
    path = Path(path)
    check_mesh(path, (".obj",), mesh.vertices, mesh.faces, None)
    png, mean = encode_texture(path, mesh, texture)
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    stem = re.sub(r"\s", "_", path.stem)
    lines = [f"mtllib {stem}.mtl"]
    lines += [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u:.6g} {1 - v:.6g}" for u, v in mesh.uv.tolist()]
    covered = (mesh.uv_faces >= 0).all(axis=1)
    both = np.stack((mesh.faces, mesh.uv_faces), axis=-1)[covered].reshape(-1, 6) + 1
    lines += ["usemtl face", *(f"f {a}/{s} {b}/{t} {c}/{u}" for a, s, b, t, c, u in both.tolist())]
    if not covered.all():
        lines += ["usemtl skin", *(f"f {a} {b} {c}" for a, b, c in (mesh.faces[~covered] + 1).tolist())]
    red, green, blue = (mean / 255.0).tolist()
    plain = "Ks 0 0 0\nillum 1\n"
    materials = f"newmtl face\nKd 1 1 1\n{plain}map_Kd {stem}.png\n\n"
    materials += f"newmtl skin\nKd {red:.4f} {green:.4f} {blue:.4f}\n{plain}"
    write_atomic(path.with_name(f"{stem}.png"), png)
    write_atomic(path.with_name(f"{stem}.mtl"), materials.encode("utf-8"))
    return write_atomic(path, "\n".join([*lines, ""]).encode("utf-8"))


def encode_texture(path: Path, mesh: FaceMesh, texture: Any) -> tuple[bytes, NDArray[np.uint8]]:
    """A UV image ``[3, T, T]`` in [0, 1] as PNG, and its mean colour where the mesh's triangles have their corners.

    Raises:
        ConfigurationError: If the mesh has no UV map, or the texture is no such image.
    """
    if mesh.uv is None or mesh.uv_faces is None:
        raise ConfigurationError(f"The face model of {path} has no UV map: write it with colours, without a texture.")
    image = _array(texture, np.float64)
    if image.ndim != 3 or image.shape[0] != 3 or not image.size or not np.isfinite(image).all():
        raise ConfigurationError(
            f"The texture for {path} has shape {image.shape}: give finite RGB [3, T, T], one face."
        )
    pixels = mesh_colours(image.transpose(1, 2, 0))
    used = mesh.uv[np.unique(mesh.uv_faces[mesh.uv_faces >= 0])]
    height, width = pixels.shape[:2]
    columns = (used[:, 0] * width).astype(int).clip(0, width - 1)
    rows = (used[:, 1] * height).astype(int).clip(0, height - 1)
    mean = pixels[rows, columns].mean(axis=0) if len(used) else pixels.mean(axis=(0, 1))
    _, png = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    return png.tobytes(), np.round(mean).astype(np.uint8)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=dtype)


def mesh_colours(values: Any) -> NDArray[np.uint8]:
    """RGB as uint8, of floats in [0, 1] (those outside are clamped) or of uint8.

    Raises:
        ConfigurationError: If a colour is not finite.
    """
    array = _array(values, None)
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise ConfigurationError("A colour of the mesh is not finite: give RGB in [0, 1], or uint8.")
    return np.round(array.astype(np.float64).clip(0.0, 1.0) * 255.0).astype(np.uint8)


def check_mesh(
    path: Path,
    suffixes: tuple[str, ...],
    points: NDArray[Any],
    faces: NDArray[Any] | None,
    colours: NDArray[Any] | None,
    *moves: NDArray[Any],
) -> None:
    """Refuse what cannot be written as a mesh, before there is a file.

    Args:
        path: The file, for messages, and its suffix.
        suffixes: Those that its writer writes.
        points: ``[V, 3]``.
        faces: ``[F, 3]``.
        colours: ``[V, 3]``.
        *moves: Moves of the points, ``[V, 3]`` each.

    Raises:
        ConfigurationError: In one sentence.
    """
    if path.suffix.lower() not in suffixes:
        raise ConfigurationError(f"{path} cannot be written as a mesh: use {' or '.join(suffixes)}.")
    for name, array in (("vertices", points), ("faces", faces), ("colours", colours)):
        if array is not None and (array.ndim != 2 or array.shape[1] != 3):
            raise ConfigurationError(f"The {name} for {path} have shape {array.shape}: give [N, 3], one mesh.")
    if not all(np.isfinite(array).all() for array in (points, *moves)):
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
