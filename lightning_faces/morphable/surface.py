"""Triangle-mesh geometry that the model builders share: nearest surface points, boundaries, mirrors, PCA (numpy)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def nearest_on_surface(points: Floats, vertices: Floats, faces: Ints, allowed: Bools) -> tuple[Ints, Floats, Floats]:
    """The nearest point of a mesh to each given point (Ericson, Real-Time Collision Detection, 5.1.5).

    Args:
        points: ``[L, 3]``.
        vertices: ``[V, 3]``.
        faces: ``[F, 3]``.
        allowed: Bool ``[L, F]``: the triangles that each point may be put on.

    Returns:
        Triangle ids ``[L]``, barycentric weights ``[L, 3]`` and distances ``[L]``.
    """
    triangle = np.zeros(len(points), np.int64)
    weights = np.zeros((len(points), 3))
    distance = np.zeros(len(points))
    corners = vertices[faces]
    middle = corners.mean(1)
    radius = np.linalg.norm(corners - middle[:, None], axis=2).max(1)
    for i, point in enumerate(points):
        reach = np.linalg.norm(middle - point, axis=1)
        # No triangle can win whose nearest possible point lies behind the middle of another.
        near = allowed[i] & (reach - radius <= reach[allowed[i]].min())
        candidates = np.flatnonzero(near)
        barycentric = closest_barycentric(point, corners[candidates])
        gap = np.linalg.norm((barycentric[..., None] * corners[candidates]).sum(1) - point, axis=1)
        best = int(gap.argmin())
        triangle[i], weights[i], distance[i] = candidates[best], barycentric[best], gap[best]
    return triangle, weights, distance


def closest_barycentric(point: Floats, triangles: Floats) -> Floats:
    """Barycentric weights ``[F, 3]`` of the points of triangles ``[F, 3, 3]`` that are nearest to ``point`` ``[3]``."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    edge_ab, edge_ac = b - a, c - a
    normal = np.cross(edge_ab, edge_ac)
    area = np.maximum((normal**2).sum(1), 1e-30)
    v = (np.cross(point - a, edge_ac) * normal).sum(1) / area
    w = (np.cross(edge_ab, point - a) * normal).sum(1) / area
    inside = np.stack([1.0 - v - w, v, w], axis=1)
    options = [inside]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, end = triangles[:, i], triangles[:, j]
        length = np.maximum(((end - start) ** 2).sum(1), 1e-30)
        t = np.clip(((point - start) * (end - start)).sum(1) / length, 0.0, 1.0)
        option = np.zeros_like(inside)
        option[:, i], option[:, j] = 1.0 - t, t
        options.append(option)
    stacked = np.stack(options, axis=1)
    gap = np.linalg.norm(np.einsum("fok,fkd->fod", stacked, triangles) - point, axis=-1)
    gap[:, 0] = np.where((inside >= 0.0).all(1), gap[:, 0], np.inf)
    best: Floats = stacked[np.arange(len(stacked)), gap.argmin(1)]
    return best


def boundary_loops(faces: Ints) -> list[Ints]:
    """Closed loops of boundary vertices, longest first, in the direction of the boundary half-edges of the faces."""
    half_edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in half_edges}
    following: dict[int, list[int]] = {}
    for a, b in half_edges:
        if (int(b), int(a)) not in known:
            following.setdefault(int(a), []).append(int(b))
    loops = []
    while following:
        start = next(iter(following))
        loop = [start]
        while True:
            here = loop[-1]
            onward = following[here].pop()
            if not following[here]:
                del following[here]
            if onward == start:
                break
            loop.append(onward)
        loops.append(np.array(loop, np.int64))
    return sorted(loops, key=len, reverse=True)


def components(faces: Ints, num_vertices: int) -> Ints:
    """Component number of each vertex ``[V]``; vertices of no face form components of their own."""
    rows, columns = faces.ravel(), np.roll(faces, 1, axis=1).ravel()
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(num_vertices, num_vertices))
    labels: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def largest_component(faces: Ints, num_vertices: int) -> Bools:
    """Which faces belong to the component with the most faces, bool ``[F]``."""
    labels = components(faces, num_vertices)[faces[:, 0]]
    chosen: Bools = labels == np.bincount(labels).argmax()
    return chosen


def face_neighbours(faces: Ints) -> Ints:
    """For each face the faces across its three edges ``[F, 3]``, -1 at a boundary; for manifold meshes."""
    half_edges = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    size = int(faces.max()) + 1
    key, back = half_edges[:, 0] * size + half_edges[:, 1], half_edges[:, 1] * size + half_edges[:, 0]
    order = np.argsort(key)
    place = np.minimum(np.searchsorted(key[order], back), len(key) - 1)
    found = order[place]
    neighbours: Ints = np.where(key[found] == back, found // 3, -1).reshape(-1, 3)
    return neighbours


def mirror_permutation(vertices: Floats, tolerance: float = 0.05) -> Ints | None:
    """For each vertex the one at (-x, y, z), or None if the shape is not symmetric within the tolerance.

    Args:
        vertices: ``[V, 3]``.
        tolerance: Largest allowed distance, in the unit of the vertices.

    Returns:
        Int64 ``[V]``, its own inverse, or None.
    """
    distance, found = cKDTree(vertices).query(vertices * (-1.0, 1.0, 1.0))
    partner: Ints = found.astype(np.int64)
    if distance.max() > tolerance or not np.array_equal(partner[partner], np.arange(len(vertices))):
        return None
    return partner


def compact_mesh(keep: Bools, faces: Ints, num_vertices: int) -> tuple[Ints, Ints]:
    """Drop faces and the vertices that only they used.

    Args:
        keep: Bool ``[F]``.
        faces: ``[F, 3]``.
        num_vertices: V.

    Returns:
        The old ids of the remaining vertices ``[V']``, and the remaining faces in new ids ``[F', 3]``.
    """
    used = np.unique(faces[keep])
    renumber = np.full(num_vertices, -1, np.int64)
    renumber[used] = np.arange(len(used))
    return used, renumber[faces[keep]]


def principal_components(samples: Floats, count: int) -> tuple[Floats, Floats]:
    """Orthonormal principal directions of centred samples and their standard deviations.

    Args:
        samples: ``[N, D]`` with the mean already taken out.
        count: Number of directions, at most N.

    Returns:
        Directions ``[count, D]`` and standard deviations ``[count]``, largest first. The largest component of each
        direction is positive, so that the signs do not depend on the linear algebra library.
    """
    values, vectors = np.linalg.eigh(samples @ samples.T)
    order = np.argsort(values)[::-1][:count]
    std = np.sqrt(np.maximum(values[order], 0.0) / max(len(samples) - 1, 1))
    directions = vectors[:, order].T @ samples
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    largest = np.abs(directions).argmax(1)
    directions *= np.sign(directions[np.arange(len(directions)), largest])[:, None]
    return directions, std


def rigid_align(samples: Floats, mask: Bools, iterations: int = 4) -> Floats:
    """Generalised Procrustes alignment without scale: every sample is rotated and moved onto the common mean.

    Args:
        samples: ``[N, V, 3]``.
        mask: Bool ``[V]``: the vertices that the alignment looks at.
        iterations: Rounds of aligning and averaging.

    Returns:
        Aligned samples ``[N, V, 3]``; the first round's target is the first sample's frame.
    """
    aligned: Floats = samples - samples[:, mask].mean(1, keepdims=True)
    target = aligned.mean(0)
    for _ in range(iterations):
        u, _, vt = np.linalg.svd(np.einsum("nvi,vj->nij", aligned[:, mask], target[mask]))
        sign = np.ones((len(samples), 3))
        sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
        aligned = np.einsum("nvi,nik,nk,nkj->nvj", aligned, u, sign, vt, optimize=True)
        aligned -= aligned[:, mask].mean(1, keepdims=True)
        target = aligned.mean(0)
    return aligned


def triangle_areas(vertices: NDArray[Any], faces: Ints) -> Floats:
    """Areas; for vertices in the plane ``[V, 2]`` signed, positive where counter-clockwise with the second axis up."""
    first, second = vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    if vertices.shape[1] == 2:
        signed: Floats = 0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        return signed
    plain: Floats = 0.5 * np.linalg.norm(np.cross(first, second), axis=1)
    return plain


def tidy_faces(keep: Bools, candidates: Bools, faces: Ints, seed: int | None = None) -> Bools:
    """Smooth the border of a set of triangles (most neighbours decide, within the candidates) and keep one component.

    Args:
        keep: Bool ``[F]``.
        candidates: Bool ``[F]``.
        faces: ``[F, 3]``.
        seed: A triangle of the component to keep; None for the largest.

    Returns:
        Bool ``[F]``.
    """
    neighbours = face_neighbours(faces)
    for _ in range(10):
        known = np.where(neighbours >= 0, keep[neighbours], False).sum(1)
        smoothed = candidates & ((keep & (known >= 2)) | (known == 3))
        if np.array_equal(smoothed, keep):
            break
        keep = smoothed
    part = components(faces[keep], int(faces.max()) + 1)[faces[:, 0]]
    wanted = np.bincount(part[keep]).argmax() if seed is None else part[seed]
    tidy: Bools = keep & (part == wanted)
    return tidy
