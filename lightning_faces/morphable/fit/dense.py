"""Fitting to dense maps: what a network like Pix2face's predicts, or maps rendered from a known face."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import CameraKind
from lightning_faces.morphable.fit.camera import CameraFit, fit_affine, fit_weak_perspective
from lightning_faces.morphable.fit.checks import as_points, usable
from lightning_faces.morphable.fit.coefficients import CoefficientSolver
from lightning_faces.morphable.fit.landmarks import landmark_modes
from lightning_faces.morphable.fit.perspective import fit_perspective
from lightning_faces.morphable.fit.result import FaceFit, LandmarkFit, kept_cameras, place, vertex_modes
from lightning_faces.morphable.model import MorphableModel

FEWEST = 10
"""Pixels, and vertices, that a face needs; with fewer the published code gives up too."""
POINTS = 500
"""Pixels that the camera is fitted to: "only a small subset is needed" (Pix2face 2017, section 3.4.1)."""


@torch.no_grad()
def fit_dense_landmarks(
    pncc: Tensor,
    offsets: Tensor,
    mask: Tensor,
    face_model: MorphableModel,
    *,
    camera: CameraKind = "affine",
    embedding: str = "bfm",
    seed: int = 0,
) -> LandmarkFit:
    """Cameras and landmarks from dense maps, the fast way: no coefficients are solved for.

    Each landmark takes the offset of the pixel whose PNCC is nearest to it on the mean face, and is projected by the
    camera; a hidden one takes that of the nearest visible surface.

    Args:
        pncc: ``[B, 3, H, W]``: which place on the mean face a pixel shows, millimetres, object frame.
        offsets: ``[B, 3, H, W]``: where it is on this face, less that place; millimetres, object frame.
        mask: Bool ``[B, 1, H, W]``, or numbers of which those over 0.5 count: the pixels that show the face. Pixels
            with NaN are left out anyway.
        face_model: The model, whose mean face the PNCC is of.
        camera: Kind of the cameras; see :func:`~lightning_faces.morphable.fit.camera.fit_affine`,
            :func:`~lightning_faces.morphable.fit.camera.fit_weak_perspective` (on the pixels that agree with an affine
            camera) and :func:`~lightning_faces.morphable.fit.perspective.fit_perspective`.
        embedding: Which landmarks of the model.
        seed: Of the choice of pixels.

    Returns:
        The cameras, with the landmarks in the image frame of the maps. ``residual`` is over the chosen pixels that
        agree. A face with fewer than 10 pixels, or with all of them on a plane, is not valid.

    Raises:
        ConfigurationError: If the shapes do not belong together, there is no such kind of camera, or the model lacks
            the embedding.
    """
    pncc, offsets = as_points(pncc), as_points(offsets)
    shown, good = _good_pixels(pncc, offsets, mask)
    on_mean = face_model.landmarks(face_model.mean[None], embedding)[0].to(pncc)
    fit = _cameras(pncc, offsets, shown, good, camera, seed)
    stacked = on_mean.repeat(pncc.shape[0], 1, 1)
    for face in torch.nonzero(fit.valid).flatten().tolist():
        pixels, tree = _tree(pncc[face], good[face])
        nearest = torch.from_numpy(tree.query(on_mean.double().cpu().numpy())[1])
        stacked[face] += offsets[face].flatten(1)[:, pixels[nearest.to(pixels.device)]].T
    landmarks = place(fit.camera, stacked, fit.depth, fit.valid)
    return LandmarkFit(fit.camera, fit.depth, landmarks, fit.residual, fit.valid, fit.reason)


@torch.no_grad()
def fit_dense(
    pncc: Tensor,
    offsets: Tensor,
    mask: Tensor,
    face_model: MorphableModel,
    *,
    camera: CameraKind = "affine",
    subject: Tensor | None = None,
    identity_weight: float = 0.1,
    expression_weight: float = 0.1,
    embedding: str = "bfm",
    landmark_vertices: Tensor | None = None,
    seed: int = 0,
) -> FaceFit:
    """Cameras and coefficients from dense maps (Pix2face 2017, section 3.4).

    Each vertex of the face region is looked for among the pixels by its place on the mean face (eq. 3, by a KD-tree);
    it is seen where the nearest PNCC is no further than a pixel is wide on the face. The offset there is its constraint
    on the coefficients (eq. 4, or 5 for several images of one subject).

    Args:
        pncc: As for :func:`fit_dense_landmarks`, like the next four.
        offsets: ``[B, 3, H, W]``.
        mask: ``[B, 1, H, W]``.
        face_model: The model.
        camera: Kind of the cameras.
        subject: Int64 ``[B]``: images with one number share their identity coefficients; -1 is nobody else's, and None
            is -1 for all.
        identity_weight: mm^2, see :func:`~lightning_faces.morphable.fit.coefficients.solve_coefficients`. The defaults
            are for maps that are nearly true; a network's, with errors of 2 mm, want 10 or more.
        expression_weight: mm^2.
        embedding: Which landmarks of the model.
        landmark_vertices: Int64 ``[L]``, vertices that are the landmarks instead (section 4,
            :func:`~lightning_faces.morphable.fit.landmark_vertices.choose_landmark_vertices`).
        seed: Of the choice of pixels.

    Returns:
        The fit, in the image frame of the maps; a face whose identity is shared is solved with the valid ones of its
        subject. ``residual`` is the camera's, over the chosen pixels that agree.

    Raises:
        ConfigurationError: If the shapes do not belong together, there is no such kind of camera, the model lacks the
            embedding, or a weight is not positive.

    Example:
        >>> from lightning_faces.geometry import Camera
        >>> from lightning_faces.rendering.maps import FaceMaps
        >>> model = MorphableModel.load("embedded")
        >>> shape = model.mean[None] + 2.0  # moved by 2 mm along each axis
        >>> true = Camera.from_pose(torch.tensor([[0.5, 0.1, 0.3, 0.2, 64.0, 64.0]]))
        >>> maps = FaceMaps(model, 128)
        >>> pncc, offsets, mask = maps.pncc(maps.face_region(true.project(shape)), shape)
        >>> fit = fit_dense(pncc, offsets, mask, model)
        >>> [round(x, 2) for x in fit.camera.pose[0].tolist()]
        [0.5, 0.1, 0.3, 0.2, 64.0, 64.0]
    """
    pncc, offsets = as_points(pncc), as_points(offsets)
    shown, good = _good_pixels(pncc, offsets, mask)
    if landmark_vertices is None:
        mean_points, modes = (values.to(pncc) for values in landmark_modes(face_model, embedding))
    else:
        mean_points, modes = (values[..., landmark_vertices, :].to(pncc) for values in vertex_modes(face_model))
    solver = CoefficientSolver(face_model, identity_weight, expression_weight, pncc.device)
    fit = _cameras(pncc, offsets, shown, good, camera, seed)
    valid, reason = fit.valid.clone(), list(fit.reason)
    region = _region_vertices(face_model)
    mean = face_model.mean[region.to(face_model.mean.device)].double().cpu().numpy()
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for face in torch.nonzero(valid).flatten().tolist():
        pixels, tree = _tree(pncc[face], good[face])
        footprint = 1.0 / float(fit.camera.pose[face, 0])
        distance, nearest = tree.query(mean, distance_upper_bound=footprint)
        seen = torch.from_numpy(distance <= footprint)
        count = int(seen.sum())
        if count < FEWEST:
            valid[face] = False
            reason[face] = f"{count} vertices of the face model were found in it, at least {FEWEST} are needed"
            continue
        rows = pixels[torch.from_numpy(nearest)[seen].to(pixels.device)]
        found[face] = region[seen], offsets[face].flatten(1)[:, rows].T
    coefficients = pncc.new_zeros(pncc.shape[0], face_model.num_coefficients)
    for faces in _subjects(subject, found, pncc.shape[0]):
        ids, values = zip(*(found[face] for face in faces))
        coefficients[faces] = solver.solve(ids, values)
    points = mean_points + (coefficients @ modes.flatten(1)).reshape(-1, *mean_points.shape)
    kept, residual = kept_cameras(fit.camera, valid), torch.where(valid, fit.residual, 0.0)
    landmarks = place(kept, points, fit.depth, valid)
    return FaceFit(kept, fit.depth, landmarks, residual, valid, reason, coefficients, face_model)


def point_cloud(pncc: Tensor, offsets: Tensor, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The surface that one face's maps show, coloured by its picture (Pix2face 2017, section 3.3).

    :func:`lightning_faces.morphable.mesh_files.write_mesh` writes it.

    Args:
        pncc: ``[3, H, W]``, as for :func:`fit_dense_landmarks`.
        offsets: ``[3, H, W]``.
        mask: ``[1, H, W]``.
        image: ``[3, H, W]`` RGB in [0, 1].

    Returns:
        Points ``[P, 3]``, millimetres, object frame, and their colours ``[P, 3]``.
    """
    good = _good_pixels(pncc[None], offsets[None], mask[None])[1][0]
    return (pncc + offsets).flatten(1)[:, good].T, image.flatten(1)[:, good].T


def _good_pixels(pncc: Tensor, offsets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that show the face, and those of them that can be used, bool ``[B, H W]``."""
    batch, _, height, width = pncc.shape if pncc.ndim == 4 else (0, 0, 0, 0)
    for name, channels, values in (("pncc", 3, pncc), ("offsets", 3, offsets), ("mask", 1, mask)):
        if pncc.ndim != 4 or tuple(values.shape) != (batch, channels, height, width):
            raise ConfigurationError(
                f"{name} has shape {tuple(values.shape)}, pncc {tuple(pncc.shape)}: give [B, {channels}, H, W], all of "
                "one batch and size."
            )
    shown = (mask if mask.dtype == torch.bool else mask > 0.5).flatten(1)
    places, moves = (values.flatten(2).transpose(1, 2) for values in (pncc, offsets))
    return shown, shown & usable(places, moves)


def _cameras(pncc: Tensor, offsets: Tensor, shown: Tensor, good: Tensor, kind: CameraKind, seed: int) -> CameraFit:
    """Cameras from some of the pixels."""
    if kind not in ("affine", "weak_perspective", "perspective"):
        raise ConfigurationError(f"There is no camera {kind!r}: use 'affine', 'weak_perspective' or 'perspective'.")
    height, width = pncc.shape[2:]
    total = good.sum(dim=1)
    # The usable pixels, row by row, in as many equal parts as points are wanted, and one drawn from each part.
    count = min(POINTS, height * width)
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fractions = ((torch.arange(count) + draws) / count).to(good.device)
    rank = torch.minimum((fractions * total[:, None]).long() + 1, total[:, None])
    pixels = torch.searchsorted(good.cumsum(dim=1), rank).clamp(max=height * width - 1)
    chosen = good.gather(1, pixels)
    index = pixels[:, None].expand(-1, 3, -1)
    points = pncc.flatten(2).gather(2, index) + offsets.flatten(2).gather(2, index)
    image = torch.stack((pixels % width, torch.div(pixels, width, rounding_mode="floor")), dim=2).to(pncc)
    few = total < FEWEST
    fit = fit_affine(points.transpose(1, 2), image, chosen & ~few[:, None], seed=seed)
    if kind == "weak_perspective":
        affine = fit
        fit = fit_weak_perspective(points.transpose(1, 2), image, affine.inliers)
        fit.reason = [first or second for first, second in zip(affine.reason, fit.reason)]
    elif kind == "perspective":
        fit = fit_perspective(points.transpose(1, 2), image, (height, width), affine=fit, seed=seed)
    for face in torch.nonzero(few).flatten().tolist():
        fit.reason[face] = f"it has {int(total[face])} valid pixels, at least {FEWEST} are needed"
        if lost := int(shown[face].sum() - total[face]):
            fit.reason[face] += f" ({lost} more have values that are not finite or out of range)"
    return fit


def _tree(pncc: Tensor, good: Tensor) -> tuple[Tensor, cKDTree]:
    """The usable pixels ``[P]`` of one face, and a tree of their places on the mean face."""
    pixels = torch.nonzero(good).flatten()
    return pixels, cKDTree(pncc.flatten(1)[:, pixels].T.double().cpu().numpy(), balanced_tree=False)


def _region_vertices(face_model: MorphableModel) -> Tensor:
    """Int64: vertices of the face region, which is what the UV map covers, or of the whole mesh; on the CPU."""
    faces = face_model.faces if face_model.uv_face_ids is None else face_model.faces[face_model.uv_face_ids]
    return torch.unique(faces).cpu()


def _subjects(subject: Tensor | None, found: dict[int, tuple[Tensor, Tensor]], batch: int) -> list[list[int]]:
    """Faces in groups that share an identity."""
    numbers = [-1] * batch if subject is None else subject.tolist()
    groups: dict[int, list[int]] = {}
    alone = []
    for face in found:
        if numbers[face] < 0:
            alone.append([face])
        else:
            groups.setdefault(numbers[face], []).append(face)
    return alone + list(groups.values())
