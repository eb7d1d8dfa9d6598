"""What an imported model lacks, from its shape and the embedded model: frame, landmarks, regions, UV map, albedo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from lightning_faces.errors import DataError
from lightning_faces.geometry import similarity_transform
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.regions import LOWER_LIP, UPPER_LIP, region_masks
from lightning_faces.morphable.surface import (
    Bools,
    Floats,
    Ints,
    nearest_on_surface,
    tidy_faces,
    triangle_areas,
)
from lightning_faces.morphable.uv.embedding import disc_uv
from lightning_faces.morphable.uv.texels import texel_image

MAX_ALBEDO_MODES = 40
ALBEDO_SIZE = 256
FIRST_INNER = 17
"""Landmarks from this one on are not on the jaw line, whose depth differs from model to model."""
SIZE = (0.6, 1.6)
"""Sizes of a face relative to the embedded one that are believed."""
MAX_RMS = {"closest points": 2.5, "landmarks": 8.0}
"""Root mean square distance in mm, of faces of the embedded model's size, up to which an alignment counts as one.

Closest points (worst quarter left out): ICT-FaceKit 1.2, Surrey 1.6, either one turned to a wrong axis 2.9 and more.
Landmarks: 3.5 and 3.8, mirrored 19."""
MIN_OPENING = 4.0
"""How far a mode must part the lips, in mm, to tell which triangles belong to which."""


@dataclass
class Parts:
    """A model as read from a file, in millimetres, x right, y up, z towards the viewer.

    Attributes:
        name: Name of the model.
        mean: ``[V, 3]``.
        faces: ``[F, 3]``, any orientation.
        identity_basis: ``[Ki, V, 3]``.
        identity_std: ``[Ki]``.
        expression_basis: ``[Ke, V, 3]``.
        expression_std: ``[Ke]``.
        expression_kind: "pca" or "blendshapes".
        expression_names: One per expression, or none.
        landmark_scheme: "bfm" or "ibug": what ``landmark_vertices`` means.
        landmark_vertices: Vertex of each of the 68 landmarks, -1 where the model has none ``[68]``.
        native_frame: Whether the file's frame is the one of the Basel models, which is ours.
        regions: Masks that the file itself gives, bool ``[V]``.
        surface: Bool ``[V]``, the vertices of the skin; None for all.
        colour_mean: ``[V, 3]`` RGB in [0, 1], or None.
        colour_basis: ``[Kc, V, 3]``.
        colour_std: ``[Kc]``.
        uv: One UV coordinate per vertex ``[V, 2]`` in the file's own orientation, or None.
    """

    name: str
    mean: Floats
    faces: Ints
    identity_basis: NDArray[np.float32]
    identity_std: Floats
    expression_basis: NDArray[np.float32]
    expression_std: Floats
    expression_kind: str = "pca"
    expression_names: tuple[str, ...] = ()
    landmark_scheme: str = "bfm"
    landmark_vertices: Ints = field(default_factory=lambda: np.full(68, -1, np.int64))
    native_frame: bool = False
    regions: Mapping[str, Bools] = field(default_factory=dict)
    surface: Bools | None = None
    colour_mean: Floats | None = None
    colour_basis: NDArray[np.float32] | None = None
    colour_std: Floats | None = None
    uv: Floats | None = None


def complete(parts: Parts, report: Callable[[str], None]) -> MorphableModel:
    """Turn parts into a model, deriving what they lack.

    Args:
        parts: The model as read.
        report: Is told in one line what was derived, how, and how well it fits.

    Returns:
        The model; a field that could not be derived is None.

    Raises:
        DataError: If values are not finite, indices are out of range, or the shape is not a face in millimetres with
            x right, y up and z towards the viewer.
    """
    _check(parts)
    reference = MorphableModel.load("embedded")
    skin = np.ones(len(parts.mean), bool) if parts.surface is None else parts.surface
    parts = replace(parts, faces=_orient(parts.mean, parts.faces, report))
    skin_faces: Bools = np.asarray(skin[parts.faces].all(1))
    known = np.flatnonzero(parts.landmark_vertices >= 0)
    theirs = {name: _reference_points(reference, name) for name in ("bfm", "ibug")}
    inner = known[known >= FIRST_INNER]
    if len(inner) >= 8:
        source, target = theirs[parts.landmark_scheme][inner], parts.mean[parts.landmark_vertices[inner]]
        fit = _fit(source, target)
        gap = np.linalg.norm(fit[0] * source @ fit[1].T + fit[2] - target, axis=1)
        rms, aligned = float(np.sqrt((gap**2).mean())), "landmarks"
    else:
        fit, rms = _closest_fit(reference, parts.mean[skin])
        aligned = "closest points"
        report(f"No landmarks in the file: aligned to the embedded model by closest points, {rms:.2f} mm rms.")
    scale, rotation, translation = fit
    if not (SIZE[0] < scale < SIZE[1] and rms < MAX_RMS[aligned] * scale):
        raise DataError(
            f"{parts.name!r} does not fit a face ({aligned}: {rms:.1f} mm rms at {scale:.2f} times the size): its unit "
            "or axes (x right, y up, z towards the viewer) are others"
            + ("." if aligned == "closest points" else ", or its landmarks are not the 68 in their order.")
        )
    if not parts.native_frame:
        parts = _into_frame(parts, rotation, translation, report)
        rotation, translation = np.eye(3), np.zeros(3)
    embeddings, landmarks = _landmarks(parts, theirs, (scale, rotation, translation), skin_faces, known, report)
    masks = region_masks(parts.mean, landmarks)
    masks = {name: mask & skin for name, mask in masks.items()} | dict(parts.regions)
    if parts.regions:
        masks["face"] = masks["face"] | (masks["eye"] | masks["nose"] | masks["mouth"]) & ~masks["neck"]
    uv = _uv(parts, skin_faces, masks, landmarks, embeddings, report)
    albedo = _albedo(parts, uv, report)
    return MorphableModel(
        name=parts.name,
        mean=parts.mean,
        faces=parts.faces,
        identity_basis=parts.identity_basis,
        identity_std=parts.identity_std,
        expression_basis=parts.expression_basis,
        expression_std=parts.expression_std,
        expression_kind=parts.expression_kind,
        expression_names=parts.expression_names,
        uv=None if uv is None else uv[0],
        uv_faces=None if uv is None else uv[1],
        uv_face_ids=None if uv is None else uv[2],
        landmark_embeddings=embeddings,
        region_masks=masks,
        albedo_mean=None if albedo is None else albedo[0],
        albedo_basis=None if albedo is None else albedo[1],
        albedo_std=None if albedo is None else albedo[2],
    )


def _check(parts: Parts) -> None:
    for key in ("mean", "identity_basis", "identity_std", "expression_basis", "expression_std",
                "colour_mean", "colour_basis", "colour_std", "uv"):  # fmt: skip
        values = getattr(parts, key)
        if values is not None and not np.isfinite(values).all():
            raise DataError(f"{parts.name!r} has values in {key} that are not finite: its file is damaged.")
    last = len(parts.mean) - 1
    wrong = parts.faces[(parts.faces < 0) | (parts.faces > last)]
    if len(wrong):
        raise DataError(f"{parts.name!r} has a triangle with vertex {wrong[0]}, but its vertices are 0 to {last}.")
    for number in np.flatnonzero(parts.landmark_vertices > last):
        raise DataError(
            f"{parts.name!r} has landmark {number} at vertex {parts.landmark_vertices[number]}, but its vertices are 0 "
            f"to {last}."
        )


def _orient(mean: Floats, faces: Ints, report: Callable[[str], None]) -> Ints:
    corners = mean[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if (normals * (corners.mean(1) - mean.mean(0))).sum() < 0.0:
        report("Triangles turned: the file has them clockwise seen from outside.")
        return np.ascontiguousarray(faces[:, ::-1])
    return faces


def _reference_points(reference: MorphableModel, embedding: str) -> Floats:
    points: Floats = reference.landmarks(reference.mean[None], embedding)[0].double().numpy()
    return points


def _fit(source: Floats, target: Floats) -> tuple[float, Floats, Floats]:
    scale, rotation, translation = similarity_transform(torch.from_numpy(source), torch.from_numpy(target))
    return float(scale), rotation.numpy(), translation.numpy()


def _closest_fit(reference: MorphableModel, target: Floats) -> tuple[tuple[float, Floats, Floats], float]:
    """Similarity of the embedded face onto a shape without landmarks: iterated closest points, worst quarter left out.

    Starts from the nose tips on top of each other, for several sizes, and keeps the best.

    Returns:
        Scale, rotation and translation; root mean square distance in mm of the three quarters.
    """
    face = (
        reference.region_masks["face"] & ~reference.region_masks["eyeball"] & ~reference.region_masks["ear"]
    ).numpy()
    source = reference.mean.double().numpy()[face][::4]
    tree = cKDTree(target)
    middle = np.abs(target[:, 0] - np.median(target[:, 0])) < 15.0
    tip = target[middle][target[middle][:, 2].argmax()]
    best: tuple[float, tuple[float, Floats, Floats]] | None = None
    for size in (0.85, 1.0, 1.15):
        fit = (size, np.eye(3), tip - size * source[source[:, 2].argmax()])
        error = np.inf
        for _ in range(60):
            gap, nearest = tree.query(fit[0] * source @ fit[1].T + fit[2])
            good = gap <= np.quantile(gap, 0.75)
            last, error = error, float(np.sqrt((gap[good] ** 2).mean()))
            if error > last - 1e-4:
                break
            fit = _fit(source[good], target[nearest[good]])
        # A small copy fits anywhere, so the size of the gap counts in units of the fit's own size.
        if best is None or error / fit[0] < best[0] / best[1][0]:
            best = (error, fit)
    assert best is not None
    return best[1], best[0]


def _into_frame(parts: Parts, rotation: Floats, translation: Floats, report: Callable[[str], None]) -> Parts:
    """Rotate and move a model so that its head sits in the object frame as the embedded one does; its size stays."""
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0)))
    shift = ", ".join(f"{-value:.1f}" for value in translation)
    report(f"Moved into the object frame: turned by {angle:.1f} degrees, shifted by ({shift}) mm.")
    turn = rotation.astype(np.float32)
    return replace(
        parts,
        mean=(parts.mean - translation) @ rotation,
        identity_basis=parts.identity_basis @ turn,
        expression_basis=parts.expression_basis @ turn,
    )


def _landmarks(
    parts: Parts,
    theirs: Mapping[str, Floats],
    fit: tuple[float, Floats, Floats],
    skin_faces: Bools,
    known: Ints,
    report: Callable[[str], None],
) -> tuple[dict[str, tuple[Ints, Floats]], Floats]:
    """Both landmark embeddings: the file's own vertices where it names them, else the embedded model's, snapped."""
    scale, rotation, translation = fit
    theirs = {name: scale * points @ rotation.T + translation for name, points in theirs.items()}
    allowed = np.tile(skin_faces, (68, 1))
    lips = _lip_triangles(parts, theirs["bfm"], skin_faces, report)
    if lips is not None:
        allowed[list(UPPER_LIP)] &= lips[0]
        allowed[list(LOWER_LIP)] &= lips[1]
    embeddings = {}
    for name, points in theirs.items():
        triangle, weights, distance = nearest_on_surface(points, parts.mean, parts.faces, allowed)
        derived = np.arange(68)
        if name == parts.landmark_scheme and len(known):
            own = (parts.mean[parts.faces[triangle]] * weights[..., None]).sum(1)[known]
            gap = np.linalg.norm(own - parts.mean[parts.landmark_vertices[known]], axis=1)
            report(
                f"Landmarks {name!r}: {len(known)} of 68 from the file; snapping would have missed them by "
                f"{gap.mean():.1f} mm on average, {gap.max():.1f} mm at most."
            )
            for i in known:
                triangle[i], weights[i] = _vertex_embedding(int(parts.landmark_vertices[i]), parts.faces)
            derived = np.setdiff1d(derived, known)
        if len(derived):
            report(
                f"Landmarks {name!r}: {len(derived)} of 68 snapped to the surface from the embedded model, "
                f"{distance[derived].mean():.1f} mm away on average, {distance[derived].max():.1f} mm at most."
            )
        embeddings[name] = (triangle, weights)
    triangle, weights = embeddings["bfm"]
    return embeddings, (parts.mean[parts.faces[triangle]] * weights[..., None]).sum(1)


def _lip_triangles(
    parts: Parts, points: Floats, skin_faces: Bools, report: Callable[[str], None]
) -> tuple[Bools, Bools] | None:
    """Triangles that can belong to the upper and to the lower lip, bool ``[F]`` each.

    Shut lips touch, so that the nearest triangle may be on the other one; the mode that parts them most tells: the
    upper lip moves as its outline does, the lower lip as its own. The outlines themselves are far enough apart.
    """
    outlines = np.array([[50, 51, 52], [56, 57, 58]])
    triangle, weights, _ = nearest_on_surface(
        points[outlines.ravel()], parts.mean, parts.faces, np.broadcast_to(skin_faces, (6, len(skin_faces)))
    )
    rise = parts.expression_basis[..., 1] * parts.expression_std[:, None]
    upper, lower = (rise[:, parts.faces[triangle]] * weights).sum(-1).reshape(-1, 2, 3).mean(-1).T
    opening = np.abs(upper - lower)
    if opening.max(initial=0.0) < MIN_OPENING:
        why = f"the modes part the lips by {opening.max():.1f} mm at most" if len(opening) else "no expression modes"
        report(f"Inner landmarks of the mouth may lie on the other lip: {why}.")
        return None
    mode = int(opening.argmax())
    share = ((rise[mode] - upper[mode]) / (lower[mode] - upper[mode]))[parts.faces]
    return share.max(1) < 0.5, share.min(1) > 0.5


def _vertex_embedding(vertex: int, faces: Ints) -> tuple[int, Floats]:
    rows, columns = np.nonzero(faces == vertex)
    if len(rows) == 0:
        raise DataError(f"The model's landmark vertex {vertex} belongs to no triangle: use the model's own triangles.")
    weights = np.zeros(3)
    weights[columns[0]] = 1.0
    return int(rows[0]), weights


def _uv(
    parts: Parts,
    skin_faces: Bools,
    masks: Mapping[str, Bools],
    landmarks: Floats,
    embeddings: Mapping[str, tuple[Ints, Floats]],
    report: Callable[[str], None],
) -> tuple[Floats, Ints, Ints] | None:
    if parts.uv is not None:
        uv = parts.uv.copy()
        for axis, world in ((0, 0), (1, 1)):
            rises = np.corrcoef(uv[:, axis], parts.mean[:, world])[0, 1] > 0.0
            if rises != (axis == 0):
                uv[:, axis] = uv[:, axis].max() + uv[:, axis].min() - uv[:, axis]
        if uv.min() >= 0.0 and uv.max() <= 1.0:
            area = -triangle_areas(uv.astype(np.float32).astype(np.float64), parts.faces)
            if area.min() > 0.0:
                report("UV map taken from the file.")
                return uv, parts.faces, np.arange(len(parts.faces))
            report(f"The file's UV map is not used: {(area <= 0.0).sum()} of its triangles are flipped or empty.")
    back = landmarks[[0, 16], 2].mean() - 25.0
    centroid = parts.mean[parts.faces].mean(1)
    wanted = (masks["face"] | masks["neck"])[parts.faces].any(1) | (centroid[:, 2] > back)
    wanted &= centroid[:, 1] > landmarks[8, 1] - 26.0
    wanted &= centroid[:, 1] < landmarks[17:27, 1].max() + 48.0
    wanted &= centroid[:, 2] > back
    keep = tidy_faces(skin_faces & wanted, skin_faces, parts.faces, int(embeddings["bfm"][0][30]))
    try:
        uv, uv_faces, _, _ = disc_uv(parts.mean, parts.faces, keep)
    except DataError as error:
        report(f"No UV map: {error}")
        return None
    uv = uv.astype(np.float32).astype(np.float64)
    area = -triangle_areas(uv, uv_faces)
    if area.min() <= 0.0:
        report(f"No UV map: {(area <= 0.0).sum()} triangles are too thin for float32.")
        return None
    density = area / np.maximum(triangle_areas(parts.mean, parts.faces[keep]), 1e-9)
    low, high = np.percentile(density, (5, 95))
    outside = [
        f"{sum(1 for t in triangle if not keep[t])} of {name!r}"
        for name, (triangle, _) in embeddings.items()
        if not keep[triangle].all()
    ]
    report(
        f"UV map made for {keep.sum()} triangles: no flipped triangle, texture density 95th over 5th percentile "
        f"{high / low:.1f}" + (f"; landmarks outside: {', '.join(outside)}." if outside else ".")
    )
    return uv, uv_faces, np.flatnonzero(keep)


def _albedo(
    parts: Parts, uv: tuple[Floats, Ints, Ints] | None, report: Callable[[str], None]
) -> tuple[Floats, NDArray[np.float32], Floats] | None:
    if parts.colour_mean is None or parts.colour_basis is None or parts.colour_std is None or uv is None:
        return None
    covering, weights = texel_image(uv[0], uv[1], ALBEDO_SIZE)
    near = distance_transform_edt(covering < 0, return_distances=False, return_indices=True)
    corners = parts.faces[uv[2][covering[near[0], near[1]]]]
    share = weights[near[0], near[1]].astype(np.float32)[..., None]

    def image(colours: NDArray[np.float32]) -> NDArray[np.float32]:
        picture: NDArray[np.float32] = (colours[corners] * share).sum(2).transpose(2, 0, 1)
        return picture

    count = min(MAX_ALBEDO_MODES, len(parts.colour_std))
    basis = np.stack([image(parts.colour_basis[k]) for k in range(count)])
    total = float((parts.colour_std**2).sum())
    report(
        f"Albedo: vertex colours drawn into {ALBEDO_SIZE} x {ALBEDO_SIZE} texels, {count} of {len(parts.colour_std)} "
        f"modes ({float((parts.colour_std[:count] ** 2).sum()) / total:.1%} of the variance)."
    )
    return image(parts.colour_mean.astype(np.float32)).clip(0.0, 1.0), basis, parts.colour_std[:count]
