"""Injective UV maps of a disc-like part of a mesh: Floater's mean value coordinates on a convex boundary.

The position map of Feng et al. (2018) unwraps the face with a Tutte embedding (Floater 1997); positive weights and a
strictly convex boundary make it injective whatever the shape (Tutte 1963, Floater 2003). The stretch is then reduced by
re-weighting (Yoshizawa, Belyaev and Seidel 2004), which keeps the weights positive and therefore the map injective.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from lightning_faces.errors import DataError
from lightning_faces.morphable.surface import Bools, Floats, Ints, boundary_loops, compact_mesh, triangle_areas

SQUARENESS = 5.0
"""Exponent of the boundary curve ``|x|^p + |y|^p = 1``: strictly convex, and close to the unit square."""
STRETCH_ROUNDS = 8
"""Rounds of stretch reduction at most; it stops as soon as the stretch grows."""


def disc_uv(
    vertices: Floats, faces: Ints, keep: Bools, hole_depth: Callable[[Floats], float] = lambda rim: 0.0
) -> tuple[Floats, Ints, Ints, dict[int, Floats]]:
    """Map a part of a mesh injectively onto the unit square.

    Args:
        vertices: ``[V, 3]`` object frame, symmetric or nearly so about x = 0.
        faces: ``[F, 3]``, counter-clockwise from outside.
        keep: Bool ``[F]``, the faces to map; one component. All its boundary loops but the longest are holes.
        hole_depth: For the outline ``[n, 3]`` of a hole, how far behind it (towards -z) the tip of the cone lies that
            closes it while the map is made: the deeper, the more of the map the hole takes.

    Returns:
        ``uv`` ``[V_uv, 2]`` (u right, v down), ``uv_faces`` ``[F_uv, 3]`` into it, the mesh vertex of each UV vertex
        ``[V_uv]``, and for each hole's first mesh vertex the UV polygon of the hole ``[n, 2]`` in loop order.

    Raises:
        DataError: If the part is not a disc with holes, or the result is not injective.
    """
    used, local = compact_mesh(keep, faces, len(vertices))
    points = vertices[used]
    loops = boundary_loops(local)
    if not loops:
        raise DataError("The part of the mesh to unwrap has no boundary: leave out the back of the head.")
    lengths = [np.linalg.norm(points[loop] - points[np.roll(loop, -1)], axis=1).sum() for loop in loops]
    outer = loops[int(np.argmax(lengths))]
    holes = [loop for loop in loops if loop is not outer]
    filled = [local]
    centres: list[Floats] = []
    for loop in holes:
        filled.append(np.stack([np.roll(loop, -1), loop, np.full(len(loop), len(points) + len(centres))], axis=1))
        centres.append(points[loop].mean(0) - (0.0, 0.0, hole_depth(points[loop])))
    solid = np.concatenate(filled)
    solid_points = np.concatenate([points, np.array(centres).reshape(-1, 3)])
    position = _boundary_positions(points, outer)
    weights = _mean_value_weights(solid_points, solid)
    best, best_stretch = None, np.inf
    for _ in range(STRETCH_ROUNDS):
        plane = _solve(weights, outer, position, len(solid_points))
        stretch_per_vertex, stretch = _stretch(solid_points, plane, solid)
        if best is not None and stretch >= best_stretch * 0.999:
            break
        best, best_stretch = plane, stretch
        rows, columns, values = weights
        weights = (rows, columns, values / stretch_per_vertex[columns])
    assert best is not None
    if triangle_areas(best, solid).min() <= 0.0:
        raise DataError("The part of the mesh to unwrap is not a disc with holes: its UV map has flipped triangles.")
    uv = np.stack([0.5 + 0.5 * best[:, 0], 0.5 - 0.5 * best[:, 1]], axis=1)
    polygons = {int(used[loop[0]]): uv[loop] for loop in holes}
    return uv[: len(points)], local, used, polygons


def _boundary_positions(points: Floats, loop: Ints) -> Floats:
    """Places on the boundary curve by arc length on either side of the top and bottom points nearest x = 0."""
    order = points[loop]
    centre = order.mean(0)
    middle = np.abs(order[:, 0])
    top = int(np.where(order[:, 1] > centre[1], middle, np.inf).argmin())
    bottom = int(np.where(order[:, 1] <= centre[1], middle, np.inf).argmin())
    count = len(loop)
    angle = np.zeros(count)
    # The boundary runs counter-clockwise (x right, y up): from the top over the left (-x) to the bottom and back.
    for start, end, begin in ((top, bottom, 0.5 * np.pi), (bottom, top, 1.5 * np.pi)):
        steps = (end - start) % count or count
        ids = (start + np.arange(steps + 1)) % count
        walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(order[ids], axis=0), axis=1))])
        angle[ids[:-1]] = begin + np.pi * walked[:-1] / walked[-1]
    # Arc length along the boundary curve itself, so that texels are spread evenly.
    dense = np.linspace(0.0, 2.0 * np.pi, 20001)
    curve = _superellipse(dense)
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    return _superellipse(np.interp(angle % (2.0 * np.pi), walked / walked[-1] * 2.0 * np.pi, dense))


def _superellipse(angle: Floats) -> Floats:
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radius = (np.abs(direction) ** SQUARENESS).sum(1) ** (-1.0 / SQUARENESS)
    curve: Floats = direction * radius[:, None]
    return curve


def _mean_value_weights(points: Floats, faces: Ints) -> tuple[Ints, Ints, Floats]:
    """Half-edge weights tan(half the angle) / length on both sides of each edge (Floater 2003, eq. 2.1)."""
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, m = faces[:, k], faces[:, (k + 1) % 3], faces[:, (k + 2) % 3]
        to_j, to_m = points[j] - points[i], points[m] - points[i]
        length_j, length_m = np.linalg.norm(to_j, axis=1), np.linalg.norm(to_m, axis=1)
        cosine = np.clip((to_j * to_m).sum(1) / np.maximum(length_j * length_m, 1e-12), -1.0, 1.0)
        half = np.clip(np.tan(0.5 * np.arccos(cosine)), 1e-3, 1e3)
        rows += [i, i]
        columns += [j, m]
        values += [half / np.maximum(length_j, 1e-3), half / np.maximum(length_m, 1e-3)]
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def _solve(weights: tuple[Ints, Ints, Floats], boundary: Ints, position: Floats, count: int) -> Floats:
    rows, columns, values = weights
    matrix = coo_matrix((values, (rows, columns)), shape=(count, count)).tocsr()
    total = np.asarray(matrix.sum(1)).ravel()
    fixed = np.zeros(count, bool)
    fixed[boundary] = True
    plane = np.zeros((count, 2))
    plane[boundary] = position
    free = np.flatnonzero(~fixed)
    system = coo_matrix((total[free], (np.arange(len(free)), np.arange(len(free))))) - matrix[free][:, free]
    right = matrix[free][:, boundary] @ position
    system = system.tocsc()
    plane[free] = np.stack([spsolve(system, right[:, k]) for k in range(2)], axis=1)
    return plane


def _stretch(points: Floats, plane: Floats, faces: Ints) -> tuple[Floats, float]:
    """Per-vertex L2 stretch of the map from the plane to the surface (Sander et al. 2001), and the mesh's own."""
    area_plane = np.maximum(triangle_areas(plane, faces), 1e-12)
    area = triangle_areas(points, faces)
    q = points[faces]
    p = plane[faces]
    next_corner, last_corner = np.roll(p, -1, axis=1), np.roll(p, -2, axis=1)
    derivative_s = (q * (next_corner - last_corner)[..., 1:]).sum(1)
    derivative_t = (q * (last_corner - next_corner)[..., :1]).sum(1)
    squares = ((derivative_s**2).sum(1) + (derivative_t**2).sum(1)) / (2.0 * area_plane) ** 2 / 2.0
    numerator, denominator = np.zeros(len(points)), np.zeros(len(points))
    for k in range(3):
        np.add.at(numerator, faces[:, k], area * squares)
        np.add.at(denominator, faces[:, k], area)
    per_vertex = np.sqrt(numerator / np.maximum(denominator, 1e-12))
    return np.maximum(per_vertex, 1e-9), float(np.sqrt((area * squares).sum() / area.sum()))
