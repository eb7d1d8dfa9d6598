"""3D scans as ground truth: a face model's mean, registered to each scan by non-rigid ICP, gives per-vertex truth.

A scan is an OBJ or PLY file beside a table of landmarks on it, ``NAME.landmarks.csv`` with the columns index (0-based
among the 68 iBUG points), x, y, z in the scan's own coordinates. Six or more points well spread (eye corners, mouth
corners, nose, chin) are enough; they place the template before the surfaces are brought together.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.components.annotations import read_rows, to_number
from datamodules.components.files import any_case
from datamodules.components.meshes import import_trimesh, load_mesh
from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.npz import read_npy
from lightning_faces.geometry import apply_similarity, similarity_transform
from lightning_faces.morphable import MorphableModel

REGISTRATION_VERSION = 1
"""Part of the cache's keys: changes whenever the same scan gives another registration."""
STEPS = ((0.02, 3.0, 0.0, 5), (0.007, 3.0, 0.0, 5), (0.002, 1.0, 0.0, 5))
"""(stiffness, weight of landmarks, weight of normals, iterations), from stiff to soft (Amberg 2007)."""


@dataclass(frozen=True)
class Scan:
    """A scan and the landmarks on it, in the scan's own coordinates.

    Attributes:
        path: Its file.
        vertices: ``[N, 3]``.
        faces: Int64 ``[F, 3]``; empty for a point cloud.
        indices: Int64 ``[L]``, which of the 68 points the landmarks are.
        landmarks: ``[L, 3]``.
    """

    path: Path
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    indices: NDArray[np.int64]
    landmarks: NDArray[np.float64]


def landmark_path(path: Path) -> Path:
    """The table of landmarks that belongs to a scan."""
    return any_case(path.with_suffix(".landmarks.csv"))


def read_scan(path: Path) -> Scan:
    """Read an OBJ or PLY file and its landmarks.

    Raises:
        DataError: If either cannot be read, has values that are not finite, or there are fewer than 4 landmarks.
        ConfigurationError: If trimesh is not installed.
    """
    mesh = load_mesh(path)
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    table = landmark_path(path)
    if not table.exists():
        raise DataError(
            f"{table} does not exist: write the scan's landmarks there, columns index (0-based iBUG), x, y, z."
        )
    header, rows = read_rows(table)
    if not {"index", "x", "y", "z"} <= set(header):
        raise DataError(f"{table} cannot be read: it needs the columns index, x, y, z.")
    places = [header.index(name) for name in ("index", "x", "y", "z")]
    values = [[to_number(table, line, header[k], row[k]) for k in places] for line, row in rows]
    points = np.array(values, dtype=np.float64).reshape(-1, 4)
    if len(points) < 4 or not np.isfinite(points).all() or not ((points[:, 0] >= 0) & (points[:, 0] < 68)).all():
        raise DataError(f"{table} needs at least 4 landmarks with an index from 0 to 67 and finite coordinates.")
    if (points[:, 0] != np.round(points[:, 0])).any() or len(np.unique(points[:, 0])) < len(points):
        raise DataError(f"{table} has an index that is no whole number, or one twice: give each landmark its own.")
    if len(np.unique(points[:, 1:], axis=0)) < len(points):
        raise DataError(f"{table} has two landmarks at one place: leave the lines of those that are missing out.")
    return Scan(path, vertices, faces, points[:, 0].astype(np.int64), points[:, 1:])


def register_scan(
    model: MorphableModel, scan: Scan, embedding: str = "ibug"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring the model's mean face onto a scan by non-rigid ICP (Amberg, Romdhani and Vetter 2007).

    The mean is placed by a similarity on the landmarks; then each vertex moves by an affine transform of its own, which
    must be like its neighbours', towards the nearest point of the scan. Where that is far away, a vertex follows
    its neighbours, and it counts as not registered if it ends further than 2 % of the landmarks' extent from the scan.

    Args:
        model: Its ``mean`` is the template; where it has a region "face", only that part is registered.
        scan: The scan, in any unit.
        embedding: Name of the model's landmark embedding.

    Returns:
        Vertices ``[V, 3]`` in the scan's coordinates, and which of them lie on the scan ``[V]``.

    Raises:
        DataError: If the model has no such embedding.
    """
    trimesh = import_trimesh()
    from trimesh.proximity import ProximityQuery
    from trimesh.registration import nricp_amberg

    if embedding not in model.landmark_embeddings:
        raise DataError(f"Face model {model.name!r} has no landmark embedding {embedding!r}, which registration needs.")
    triangles, weights = (value.numpy() for value in model.landmark_embeddings[embedding])
    triangles, weights = triangles[scan.indices], weights[scan.indices].astype(np.float64)
    own = model.landmarks(model.mean[None].double(), embedding)[0][torch.from_numpy(scan.indices)]
    placed = _placed(model, own, torch.from_numpy(scan.landmarks))
    keep = model.region_masks["face"].numpy() if "face" in model.region_masks else np.ones(len(placed), dtype=bool)
    faces = model.faces.numpy()
    # Landmarks (ears, for one) may lie on triangles at the edge of the region, so those belong to it.
    keep = keep.copy()
    keep[faces[triangles].reshape(-1)] = True
    inside = keep[faces].all(axis=1)
    used = np.zeros(len(placed), dtype=bool)
    used[faces[inside].reshape(-1)] = True
    renumber = np.cumsum(used) - 1
    position = np.cumsum(inside) - 1
    template = trimesh.Trimesh(placed[used], renumber[faces[inside]], process=False)
    size = float(np.linalg.norm(np.ptp(scan.landmarks, axis=0)))
    target = trimesh.Trimesh(scan.vertices, scan.faces, process=False) if len(scan.faces) else scan.vertices
    moved = nricp_amberg(
        template,
        target,
        source_landmarks=(position[triangles], weights),
        target_positions=scan.landmarks,
        steps=STEPS,
        distance_threshold=0.1,
        use_faces=len(scan.faces) > 0,
    )
    vertices = placed.copy()
    vertices[used] = moved
    if len(scan.faces):
        distance = ProximityQuery(target).on_surface(moved)[1]
    else:
        from scipy.spatial import cKDTree

        distance = cKDTree(scan.vertices).query(moved)[0]
    registered = np.zeros(len(placed), dtype=bool)
    registered[used] = distance < 0.02 * size
    return vertices.astype(np.float32), registered


def _placed(model: MorphableModel, own: torch.Tensor, landmarks: torch.Tensor) -> NDArray[np.float64]:
    scale, rotation, translation = similarity_transform(own, landmarks)
    placed: NDArray[np.float64] = apply_similarity(model.mean.double(), scale, rotation, translation).numpy()
    return placed


def registered_scan(
    model: MorphableModel, path: Path, cache_dir: Path | None, embedding: str = "ibug"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """:func:`register_scan` with its result kept in a cache, whose file names are hashes of all that it depends on.

    Args:
        model: The face model.
        path: The scan.
        cache_dir: Folder of the cache; None registers each time (seconds to minutes).
        embedding: Name of the model's landmark embedding.
    """
    if cache_dir is None:
        return register_scan(model, read_scan(path), embedding)
    digest = hashlib.sha256(repr((REGISTRATION_VERSION, model.hash, embedding, STEPS)).encode())
    for part in (path, landmark_path(path)):
        digest.update(part.read_bytes() if part.exists() else b"absent")
    stored = cache_dir / f"scan-{digest.hexdigest()[:32]}.npy"
    if stored.exists():
        try:
            rows: NDArray[Any] = read_npy(stored)
            if rows.shape != (model.num_vertices, 4) or rows.dtype != np.float32 or not np.isfinite(rows).all():
                raise DataError(f"{stored} is no registration.")
            return rows[:, :3].astype(np.float32), rows[:, 3] > 0
        except DataError:
            stored.unlink(missing_ok=True)  # damaged since it was written: registered again
    vertices, registered = register_scan(model, read_scan(path), embedding)
    content = io.BytesIO()
    np.save(content, np.concatenate((vertices, registered[:, None].astype(np.float32)), axis=1))
    write_atomic(stored, content.getvalue())
    return vertices, registered
