"""Write a face as GLB, the binary form of glTF 2.0 (Khronos, ISO/IEC 12113:2022), that moves by its facial actions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lightning_faces
from lightning_faces.files import write_atomic
from lightning_faces.morphable.face_mesh import FaceMesh
from lightning_faces.morphable.mesh_files import check_mesh, encode_texture, mesh_colours

METRES = 0.001
"""A millimetre of the object frame in metres, the unit of glTF. A pixel of the image frame is written as one, too."""
_UINT8, _UINT16, _UINT32, _FLOAT = 5121, 5123, 5125, 5126
_COMPONENTS = {np.dtype("u1"): _UINT8, np.dtype("<u2"): _UINT16, np.dtype("<u4"): _UINT32, np.dtype("<f4"): _FLOAT}
_SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_VERTEX_DATA, _TRIANGLES = 34962, 34963


def write_glb(path: str | Path, mesh: FaceMesh, colours: Any = None, texture: Any = None) -> Path:
    """Write one face, whole or not at all, with its facial actions as morph targets.

    Blender, three.js and other viewers show the face as it was predicted and move it by the weights of the actions,
    whose names are in ``extras.targetNames``, where those programs look for them. Units are metres (a pixel of the
    image frame is a millimetre), y is up and z points to the viewer. A texture lies on the triangles that the UV map
    has; the others take its mean colour.

    Args:
        path: A .glb file.
        mesh: The face.
        colours: ``[V, 3]`` RGB of the vertices, sRGB: floats in [0, 1] or uint8.
        texture: UV image ``[3, T, T]`` RGB in [0, 1], sRGB.

    Returns:
        The path.

    Raises:
        ConfigurationError: If the suffix is another, shapes do not belong together, a value is not finite, or a texture
            is given for a mesh without a UV map.

    Example:
        >>> triangle = FaceMesh(np.eye(3), np.array([[0, 1, 2]]))
        >>> write_glb("triangle.glb", triangle).read_bytes()[:4]
        b'glTF'
    """
    path = Path(path)
    paint = None if colours is None else mesh_colours(colours)
    check_mesh(path, (".glb",), mesh.vertices, mesh.faces, paint, *mesh.actions.values())
    picture = None if texture is None else encode_texture(path, mesh, texture)
    moves = {name: move * METRES for name, move in mesh.actions.items()}
    shown = mesh.vertices * METRES
    still = shown - sum((weight * move for weight, move in zip(mesh.weights, moves.values())), np.zeros(3))
    normals = vertex_normals(mesh.vertices, mesh.faces)
    file = _File()
    materials: list[dict[str, Any]] = []
    primitives = []
    for corners, uv, material in _parts(mesh, picture):
        # A vertex on a seam of the UV map is there once for each place that it has in it.
        rows, triangles = np.unique(corners.reshape(-1, 2), axis=0, return_inverse=True)
        ids = rows[:, 0]
        attributes = {
            "POSITION": file.accessor(still[ids].astype("<f4"), limits=True),
            "NORMAL": file.accessor(normals[ids].astype("<f4")),
        }
        if uv is not None:
            attributes["TEXCOORD_0"] = file.accessor(uv[rows[:, 1]].astype("<f4"))
        if paint is not None:
            attributes["COLOR_0"] = file.accessor(_linear(paint[ids]))
        index_type = "<u2" if len(rows) < 65535 else "<u4"
        primitive: dict[str, Any] = {
            "attributes": attributes,
            "indices": file.accessor(triangles.reshape(-1).astype(index_type), target=_TRIANGLES),
            "material": len(materials),
        }
        if moves:
            primitive["targets"] = [{"POSITION": file.moves(move[ids].astype("<f4"))} for move in moves.values()]
        materials.append(material)
        primitives.append(primitive)
    face: dict[str, Any] = {"name": "face", "primitives": primitives}
    if moves:
        face.update(weights=[float(weight) for weight in mesh.weights], extras={"targetNames": list(moves)})
    content: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"lightning-faces {lightning_faces.__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "meshes": [face],
        "materials": materials,
    }
    if picture is not None:
        content["images"] = [{"mimeType": "image/png", "bufferView": file.view(picture[0])}]
        content["samplers"] = [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}]
        content["textures"] = [{"source": 0, "sampler": 0}]
    return write_atomic(path, file.finish(content))


def vertex_normals(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float64]:
    """Unit normals ``[V, 3]``, weighted by triangle area; (0, 0, 1) for a vertex without an area around it."""
    first, second, third = (vertices[faces[:, k]] for k in range(3))
    crossed = np.cross(second - first, third - first)
    normals = np.zeros(vertices.shape)
    for k in range(3):
        np.add.at(normals, faces[:, k], crossed)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.where(length > 0, length, 1), (0.0, 0.0, 1.0))


def _parts(mesh: FaceMesh, picture: Any) -> list[tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]]:
    """Triangles ``[F, 3, 2]`` as (vertex, place in UV map), that map, and the material, with and without texture."""

    def material(name: str, **surface: Any) -> dict[str, Any]:
        base = {"metallicFactor": 0.0, "roughnessFactor": 0.8}
        return {"name": name, "doubleSided": True, "pbrMetallicRoughness": {**surface, **base}}

    if picture is None:
        return [(np.stack((mesh.faces, mesh.faces), axis=-1), None, material("skin"))]
    assert mesh.uv_faces is not None
    covered = (mesh.uv_faces >= 0).all(axis=1)
    both = np.stack((mesh.faces, mesh.uv_faces), axis=-1)
    alone = np.stack((mesh.faces, mesh.faces), axis=-1)
    mean = [*(_linear(picture[1][None])[0, :3] / 65535).tolist(), 1.0]
    parts = [
        (both[covered], mesh.uv, material("face", baseColorTexture={"index": 0})),
        (alone[~covered], None, material("skin", baseColorFactor=mean)),
    ]
    return [part for part in parts if len(part[0])]


def _linear(colours: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """RGBA in linear light, as glTF has vertex colours and factors, of sRGB (IEC 61966-2-1)."""
    share = colours / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    opaque = np.ones((len(colours), 1))
    return np.round(np.concatenate((linear, opaque), axis=1) * 65535).astype("<u2")


class _File:
    """The binary buffer of a GLB, with the views and accessors that say what is where in it."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        """Add bytes; every view starts at a multiple of 4, as all kinds of data may."""
        self.body += bytes(-len(self.body) % 4)
        view = {"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data)}
        self.views.append(view if target is None else {**view, "target": target})
        self.body += data
        return len(self.views) - 1

    def accessor(self, values: NDArray[Any], target: int = _VERTEX_DATA, limits: bool = False) -> int:
        """Add an array ``[N]`` or ``[N, C]``."""
        accessor = {**_described(values, limits), "bufferView": self.view(values.tobytes(), target)}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def moves(self, values: NDArray[Any]) -> int:
        """Add the moves of a morph target ``[N, 3]``, sparse where an action leaves much of the face alone."""
        moved = np.flatnonzero(values.any(axis=1))
        if len(moved) > 0.8 * len(values):
            return self.accessor(values, limits=True)
        accessor = _described(values, limits=True)
        if len(moved):
            index_type = "<u2" if len(values) < 65535 else "<u4"
            indices = moved.astype(index_type)
            accessor["sparse"] = {
                "count": len(moved),
                "indices": {"bufferView": self.view(indices.tobytes()), "componentType": _COMPONENTS[indices.dtype]},
                "values": {"bufferView": self.view(values[moved].tobytes())},
            }
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def finish(self, content: dict[str, Any]) -> bytes:
        """The whole file: a header, and one chunk each of JSON and of the buffer."""
        content = {**content, "accessors": self.accessors, "bufferViews": self.views}
        content["buffers"] = [{"byteLength": len(self.body)}]
        text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode("utf-8")
        chunks = b""
        for kind, data, filling in ((b"JSON", text, b" "), (b"BIN\0", bytes(self.body), b"\0")):
            padded = data + filling * (-len(data) % 4)
            chunks += len(padded).to_bytes(4, "little") + kind + padded
        return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks


def _described(values: NDArray[Any], limits: bool) -> dict[str, Any]:
    width = 1 if values.ndim == 1 else values.shape[1]
    about: dict[str, Any] = {
        "componentType": _COMPONENTS[values.dtype],
        "count": len(values),
        "type": _SHAPES[width],
    }
    if values.dtype.kind == "u" and width == 4:
        about["normalized"] = True
    if limits:
        about.update(min=values.min(axis=0).tolist(), max=values.max(axis=0).tolist())
    return about
