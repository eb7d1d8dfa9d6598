"""Distances between a predicted mesh and a scan that no model is registered to, as NoW and Stirling score.

Feng et al., "Evaluation of Dense 3D Reconstruction from 2D Face Images in the Wild" (2018), and the NoW benchmark
(Sanyal et al. 2019) bring the prediction onto the scan by seven landmarks, then measure from each vertex of the scan to
the nearest point of the predicted mesh. Here the other direction is given too, from each predicted vertex to the
nearest point of the scan's triangles. A hole of the scan makes that one larger, a hole of the prediction the first; so
does a surface that a scanner does not see, such as the inside of a mouth: leave its triangles out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.components.meshes import import_trimesh
from datamodules.components.scans import Scan
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import apply_similarity, similarity_transform

Floats = NDArray[np.float64]

SEVEN = (36, 39, 42, 45, 33, 48, 54)
"""The landmarks of the alignment among the 68 (0-based iBUG): eye corners, under the nose, corners of the mouth."""
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Millimetres in a unit of length."""
EYES = (60.0, 140.0)
"""Millimetres between the outer eye corners of a face, far beyond what people have."""
REACH = 1.2
"""Radius of what is scored, over the mean of the distances between the outer eye corners and from nose to eyes."""


@dataclass(frozen=True)
class ScanError:
    """Distances in millimetres, of what lies in the scored sphere around the middle of the scan's face.

    Attributes:
        scan_to_mesh: ``[N]``, from each vertex of the scan to the predicted surface: what NoW and Stirling report.
        mesh_to_scan: ``[M]``, from each predicted vertex to the scan's surface.
        scale: What the prediction was multiplied by: only the units' factor in the metric variant.
    """

    scan_to_mesh: Floats
    mesh_to_scan: Floats
    scale: float


def scan_error(
    vertices: Any, faces: Any, landmarks: Any, scan: Scan, *, unit: str = "mm", with_scale: bool = False
) -> ScanError:
    """Compare a predicted mesh to a scan.

    The seven landmarks bring the prediction onto the scan by the least-squares rigid motion (metric), or by the
    similarity (scale-free); nothing is refined afterwards. Only what lies around the middle of the face counts: within
    1.2 times the mean of the distances between the outer eye corners and from under the nose to between the eyes,
    around the point 0.3 of the way up that line (Feng et al. 2018).

    Args:
        vertices: ``[V, 3]``, tensor or array, any right-handed frame: millimetres, or any unit with ``with_scale``.
        faces: ``[F, 3]``.
        landmarks: ``[7, 3]`` in the order of :data:`SEVEN`, or all 68, on the predicted mesh and in its frame.
        scan: The scan with its landmarks, from :func:`~datamodules.components.scans.read_scan`.
        unit: Of the scan: "mm", "cm" or "m".
        with_scale: Fit the scale too.

    Returns:
        The distances.

    Raises:
        DataError: If the scan lacks one of the seven landmarks, has no triangles, or nothing lies near its landmarks;
            or the mesh is empty or not finite.
        ConfigurationError: If the outer eye corners of the scan are not 60 to 140 mm apart, or, without
            ``with_scale``, those of the prediction: a wrong unit. If trimesh is not installed, or shapes do not fit.

    Example:
        >>> scan = read_scan(Path("scans/anna.ply"))  # doctest: +SKIP
        >>> mean_face = MorphableModel.load("embedded")  # doctest: +SKIP
        >>> landmarks = mean_face.landmarks(mean_face.mean[None], "ibug")[0]  # doctest: +SKIP
        >>> scan_error(mean_face.mean, mean_face.faces, landmarks, scan).scan_to_mesh.mean()  # doctest: +SKIP
        1.91
    """
    if unit not in UNITS:
        raise ConfigurationError(f"The scan's unit {unit!r} is not known: choose one of {', '.join(UNITS)}.")
    own = _landmarks_of(landmarks)
    points, triangles = _mesh_of(vertices, faces)
    seven = seven_landmarks(scan)
    if not len(scan.faces):
        raise DataError(f"{scan.path} has no triangles: give a mesh, not a cloud of points.")
    surface, goal = UNITS[unit] * np.asarray(scan.vertices, np.float64), UNITS[unit] * seven
    _check_unit(goal, f"{scan.path}", "give the unit that the scan is in")
    if not with_scale:
        _check_unit(own, "the predicted mesh", "give it in millimetres, or compare with a free scale")
    scale, rotation, translation = similarity_transform(torch.from_numpy(own), torch.from_numpy(goal), with_scale)
    moved: Floats = apply_similarity(torch.from_numpy(points), scale, rotation, translation).numpy()
    centre, radius = _scored_sphere(goal)
    from_scan, from_mesh = (
        values[np.linalg.norm(values - centre, axis=1) <= radius]
        for values in (_used(surface, scan.faces), _used(moved, triangles))
    )
    for values, name in ((from_scan, f"{scan.path}"), (from_mesh, "The predicted mesh")):
        if not len(values):
            raise DataError(f"{name} has no vertex within {radius:.0f} mm of the face's middle: check its landmarks.")
    return ScanError(
        _distances(from_scan, moved, triangles),
        _distances(from_mesh, surface, np.asarray(scan.faces, np.int64)),
        float(scale),
    )


def seven_landmarks(scan: Scan) -> Floats:
    """The seven landmarks of a scan ``[7, 3]``, in the order of :data:`SEVEN`.

    Raises:
        DataError: If one is missing.

    Example:
        >>> from pathlib import Path
        >>> marks = np.arange(21.0).reshape(7, 3)
        >>> indices = np.array([54, 36, 39, 42, 45, 33, 48])
        >>> scan = Scan(Path("anna.ply"), marks, np.zeros((0, 3), np.int64), indices, marks)
        >>> seven_landmarks(scan)[:, 0].tolist()
        [3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 0.0]
    """
    there = {int(index): point for index, point in zip(scan.indices, scan.landmarks)}
    missing = [index for index in SEVEN if index not in there]
    if missing:
        raise DataError(
            f"{scan.path} has no landmark {', '.join(map(str, missing))}: its table needs all of "
            f"{', '.join(map(str, SEVEN))} (0-based iBUG: eye corners, under the nose, mouth corners)."
        )
    return np.stack([there[index] for index in SEVEN]).astype(np.float64)


def _landmarks_of(landmarks: Any) -> Floats:
    own = np.asarray(landmarks, dtype=np.float64)
    if own.shape == (68, 3):
        own = own[list(SEVEN)]
    if own.shape != (len(SEVEN), 3) or not np.isfinite(own).all():
        raise ConfigurationError(
            f"Landmarks of shape {own.shape} were given for the predicted mesh: give 7 or 68 finite points [L, 3]."
        )
    return own


def _mesh_of(vertices: Any, faces: Any) -> tuple[Floats, NDArray[np.int64]]:
    points, triangles = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    if points.ndim != 2 or triangles.ndim != 2 or points.shape[1:] != (3,) or triangles.shape[1:] != (3,):
        raise ConfigurationError(
            f"A predicted mesh has vertices {points.shape} and faces {triangles.shape}: give [V, 3] and [F, 3]."
        )
    if not points.size or not triangles.size:
        raise DataError(f"The predicted mesh is empty: it has {len(points)} vertices and {len(triangles)} triangles.")
    if not np.isfinite(points).all():
        raise DataError("The predicted mesh has vertices that are not finite: leave this prediction out.")
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise DataError(f"The predicted mesh has triangles that name vertices outside 0 to {len(points) - 1}.")
    return points, triangles


def _check_unit(seven: Floats, name: str, fix: str) -> None:
    apart = float(np.linalg.norm(seven[0] - seven[3]))
    if not EYES[0] <= apart <= EYES[1]:
        raise ConfigurationError(
            f"The outer eye corners of {name} are {apart:.4g} mm apart, those of a face {EYES[0]:.0f} to "
            f"{EYES[1]:.0f}: {fix}."
        )


def _scored_sphere(seven: Floats) -> tuple[Floats, float]:
    """Middle and radius, in the unit of the landmarks."""
    bridge = (seven[1] + seven[2]) / 2
    up = bridge - seven[4]
    radius = REACH * (np.linalg.norm(seven[0] - seven[3]) + np.linalg.norm(up)) / 2
    return seven[4] + 0.3 * up, float(radius)


def _used(points: Floats, faces: NDArray[np.int64]) -> Floats:
    """The points that are corners of triangles."""
    used: Floats = points[np.unique(faces)]
    return used


def _distances(points: Floats, vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """From points ``[N, 3]`` to the nearest points of a mesh's triangles, ``[N]``."""
    trimesh = import_trimesh()
    from trimesh.proximity import closest_point

    return np.asarray(closest_point(trimesh.Trimesh(vertices, faces, process=False), points)[1], dtype=np.float64)
