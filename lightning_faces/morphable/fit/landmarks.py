"""Fitting a face model to landmarks: weak-perspective camera and coefficients together, batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera, matrix_to_euler
from lightning_faces.geometry.landmarks import landmark_groups, num_landmarks
from lightning_faces.morphable.fit.camera import judge, rotation_of, weak_perspective_of
from lightning_faces.morphable.fit.checks import Verdict, as_points, usable
from lightning_faces.morphable.fit.coefficients import prior
from lightning_faces.morphable.fit.result import FaceFit, place
from lightning_faces.morphable.model import MorphableModel

CHUNK = 128
"""Faces that are fitted together; more would only need more memory."""
STEPS = 4
"""Steps of the fit. After four, coefficients and camera of the embedded model are within 0.2 % and 0.03 degrees of
where they end."""


@torch.no_grad()
def fit_landmarks(
    points: Any,
    scheme: str,
    face_model: MorphableModel,
    mask: Any = None,
    *,
    embedding: str = "bfm",
    mapping: Sequence[int | Sequence[int]] | None = None,
    identity_weight: float = 8.0,
    expression_weight: float = 8.0,
) -> FaceFit:
    """Fit a face model to landmarks that you already have, from any detector, in 2D or 3D.

    Minimises over a weak-perspective camera and the coefficients c, in square millimetres,

        sum_l |image_l - s F R X_l(c) - t|^2 / s^2 + identity_weight |c_id|^2 + expression_weight |c_exp / d|^2

    A weight is the variance of a landmark's error on the face, against coefficients that vary by one standard deviation
    (d is 1, or of blendshapes :data:`~lightning_faces.morphable.fit.coefficients.BLENDSHAPE_STD`). The default belongs
    to landmarks that are off by 2 % of the face's size.

    The camera of the mean face is the start; then both are solved together, step by step, the camera damped where a
    step does not help (Levenberg-Marquardt).

    Args:
        points: ``[B, L, 2]`` or ``[B, L, 3]``, tensor or array, image frame: pixels, x right, y down; z in the same
            unit, larger towards the viewer, from any origin. A landmark with NaN is missing.
        scheme: What the landmarks are: a name of :data:`lightning_faces.geometry.landmarks.SCHEMES`, such as "68".
        face_model: The model, with the embedding.
        mask: Bool ``[B, L]``, which landmarks there are.
        embedding: Which points of the model the 68 are: "bfm", fixed points of the surface as 300W-LP and AFLW2000-3D
            are labelled with, or "ibug", the silhouette that a photograph of a frontal face is labelled with.
        mapping: For schemes without a published map to the 68, see
            :func:`lightning_faces.geometry.landmarks.landmark_groups`.
        identity_weight: mm^2.
        expression_weight: mm^2.

    Returns:
        The fit, in the type of the points and on their device; its ``landmarks`` are all 68 of the embedding. A face
        with fewer than four landmarks (three in 3D), or with all of them on a line, is not valid.

    Raises:
        ConfigurationError: If the points do not have the scheme's number of landmarks, the model lacks the embedding,
            or a weight is not positive.

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> true = Camera.from_pose(torch.tensor([[1.5, 0.1, 0.5, 0.2, 100.0, 100.0]]))
        >>> points = true.project(model.landmarks(model.mean[None]))[..., :2]
        >>> fit = fit_landmarks(points, "68", model)
        >>> [round(x, 2) for x in fit.camera.pose[0].tolist()], fit.vertices.shape
        ([1.5, 0.1, 0.5, 0.2, 100.0, 100.0], torch.Size([1, 4280, 3]))
    """
    given = as_points(points)
    count = num_landmarks(scheme)
    if given.ndim != 3 or given.shape[1] != count or given.shape[2] not in (2, 3):
        raise ConfigurationError(
            f"Landmarks of shape {tuple(given.shape)} were given for the {scheme}-point scheme: give [B, {count}, 2] "
            f"or [B, {count}, 3]."
        )
    good = usable(given)
    if mask is not None:
        wanted = torch.as_tensor(mask, device=given.device)
        if wanted.shape != good.shape:
            raise ConfigurationError(
                f"The landmarks' mask has shape {tuple(wanted.shape)}: give {list(good.shape)}, one value per landmark."
            )
        good = good & wanted.bool()
    groups = landmark_groups(scheme, mapping)
    good = good & torch.tensor([bool(group) for group in groups], device=given.device)
    given = torch.where(good[..., None], given, 0.0)
    full_mean, full_modes = landmark_modes(face_model, embedding)
    full_mean, full_modes = full_mean.to(given), full_modes.to(given)
    average = _averages(groups, full_mean.shape[0]).to(given)
    fitter = _Fitter(average @ full_mean, average @ full_modes, prior(face_model, identity_weight, expression_weight))

    parts = [fitter.fit(some, ok) for some, ok in zip(torch.split(given, CHUNK), torch.split(good, CHUNK))]
    coefficients, pose, depth, residual, valid = (torch.cat(values) for values in list(zip(*parts))[:5])
    camera = Camera.from_pose(pose)
    shape = full_mean + (coefficients @ full_modes.flatten(1)).reshape(-1, *full_mean.shape)
    landmarks = place(camera, shape, depth, valid)
    reason = [text for part in parts for text in part[5]]
    return FaceFit(camera, depth, landmarks, residual, valid, reason, coefficients, face_model)


def landmark_modes(face_model: MorphableModel, embedding: str) -> tuple[Tensor, Tensor]:
    """Landmarks of the mean face ``[68, 3]`` and what one unit of each coefficient adds, ``[K, 68, 3]``, in mm.

    Raises:
        ConfigurationError: If the model lacks the embedding.
    """
    identity = face_model.landmarks(face_model.identity_basis, embedding) * face_model.identity_std[:, None, None]
    expression = face_model.landmarks(face_model.expression_basis, embedding) * face_model.expression_std[:, None, None]
    return face_model.landmarks(face_model.mean[None], embedding)[0], torch.cat((identity, expression))


def _averages(groups: Sequence[Sequence[int]], count: int) -> Tensor:
    """``[L, 68]``: each landmark of a scheme as a mean of the 68."""
    matrix = torch.zeros(len(groups), count)
    for row, group in enumerate(groups):
        matrix[row, list(group)] = 1.0 / max(len(group), 1)
    return matrix


class _Fitter:
    """The fit of one scheme.

    Args:
        mean: Landmarks of the mean face ``[L, 3]``.
        modes: ``[K, L, 3]``.
        weights: The prior's, ``[K]``, mm^2.
    """

    def __init__(self, mean: Tensor, modes: Tensor, weights: Tensor) -> None:
        self.mean = mean
        self.modes = modes
        self.prior = weights.to(modes)

    def fit(self, points: Tensor, good: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[str]]:
        """Coefficients, poses, depths, residuals and validity of points ``[B, L, D]``."""
        batch, _, width = points.shape
        weights = good.to(points)
        shape = torch.where(good[..., None], self.mean, 0.0)
        verdict: Verdict = judge(shape, points[..., :2], weights, 6 - width, flat_allowed=True)
        scale, rotation, shift = weak_perspective_of(shape, points, weights, verdict.valid)
        weights = weights * verdict.valid[:, None]
        scale = torch.where(verdict.valid, scale, 1.0)
        # From here on y points up in the image too, so that both frames are right-handed.
        image = torch.cat((points, points.new_zeros(batch, points.shape[1], 3 - width)), dim=2)
        flip = image.new_tensor([1.0, -1.0, 1.0])
        state = _State(scale, rotation, shift * flip, points.new_zeros(batch, self.modes.shape[0]))
        solid = width == 3
        whitened = self._whiten(weights)
        damping = torch.full_like(scale, 1e-4)
        loss = self._loss(state, image * flip, weights, solid)[0]
        for _ in range(STEPS):
            new = self._step(state, image * flip, weights, solid, whitened, damping)
            new_loss = self._loss(new, image * flip, weights, solid, state.scale)[0]
            better = new_loss <= loss
            state = state.moved_to(new, better)
            damping = torch.where(better, damping * 0.1, damping * 100.0)
            loss = self._loss(state, image * flip, weights, solid)[0]
        _, error = self._loss(state, image * flip, weights, solid)
        residual = (error.square().sum(dim=2) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
        residual = residual.sqrt() * state.scale
        finite = residual.isfinite() & state.coefficients.isfinite().all(dim=1) & (state.scale > 0)
        verdict.refuse(~finite, "the fit did not converge")
        valid = verdict.valid
        pose = torch.cat((state.scale[:, None], matrix_to_euler(state.rotation), (state.shift * flip)[:, :2]), dim=1)
        keep = valid[:, None]
        return (
            torch.where(keep, state.coefficients, 0.0),
            torch.where(keep, pose, 0.0),
            torch.where(valid, state.shift[:, 2], 0.0) if solid else torch.zeros_like(residual),
            torch.where(valid, residual, 0.0),
            valid,
            verdict.reason,
        )

    def _whiten(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in which the normal matrix of 3D points, ``sum_l w_l M_l^T M_l`` plus the prior, is 1.

        Returns:
            The inverse of its Cholesky factor ``[B, K, K]``, and the modes in these coordinates, with the square roots
            of the weights, ``[B, K, L, 3]``. Where all faces have one mask, B is 1.
        """
        if weights.shape[0] and bool((weights == weights[:1]).all()):
            weights = weights[:1]
        weighted = self.modes * weights.sqrt()[:, None, :, None]
        flat = weighted.flatten(2)
        factor = torch.linalg.cholesky(flat @ flat.transpose(1, 2) + torch.diag(self.prior))
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(self.prior)).to(factor), upper=False)
        return inverse, (inverse @ flat).reshape(weighted.shape)

    def _shape(self, state: _State) -> Tensor:
        return self.mean + (state.coefficients @ self.modes.flatten(1)).reshape(-1, *self.mean.shape)

    def _loss(
        self, state: _State, image: Tensor, weights: Tensor, solid: bool, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The objective ``[B]`` in mm^2, with its pixels in millimetres by ``scale``, and the errors ``[B, L, D]``."""
        scale = state.scale if scale is None else scale
        found = self._shape(state) @ (state.scale[:, None, None] * state.rotation).transpose(1, 2)
        error = (image - found - state.shift[:, None]) / scale[:, None, None]
        error = error if solid else error[..., :2]
        return (error.square().sum(dim=2) * weights).sum(dim=1) + state.coefficients.square() @ self.prior, error

    def _step(
        self,
        state: _State,
        image: Tensor,
        weights: Tensor,
        solid: bool,
        whitened: tuple[Tensor, Tensor],
        damping: Tensor,
    ) -> _State:
        """One Gauss-Newton step of camera and coefficients, in the object frame.

        Seen from there, an image error is the part of a point's displacement across the line of sight: ``P e`` with
        ``P = 1 - d d^T`` and d the direction to the viewer (in 3D ``P = 1``). In the coordinates of :meth:`_whiten` the
        normal matrix is then ``1 - Q Q^T`` with the modes' parts along d in Q ``[K, L]``, and its inverse
        ``1 + Q (1 - Q^T Q)^-1 Q^T`` takes a system of L unknowns (Woodbury).
        """
        inverse, modes = whitened
        root = weights.sqrt()
        shape = self._shape(state)
        rows = state.rotation if solid else state.rotation[:, :2]
        error = (self._loss(state, image, weights, solid)[1] @ rows) * root[..., None]
        # Columns of the camera: its scale, small rotations, and translations that can be seen, each [B, L, 3].
        x, y, z = shape.unbind(dim=2)
        zero = torch.zeros_like(x)
        turns = (torch.stack(v, dim=2) for v in ((zero, -z, y), (z, zero, -x), (-y, x, zero)))
        moves = rows[:, :, None].expand(-1, -1, shape.shape[1], -1)
        columns = torch.cat((torch.stack((shape, *turns), dim=1), moves), dim=1) * root[:, None, :, None]
        towards = state.rotation[:, 2]
        if not solid:
            columns = columns - (columns @ towards[:, None, :, None]) * towards[:, None, None]
        camera = columns.flatten(2) @ columns.flatten(2).transpose(1, 2)
        camera = camera + torch.diag_embed(damping[:, None] * camera.diagonal(dim1=1, dim2=2) + 1e-6)
        # Right-hand sides: of the coefficients, one for each column of the camera and the error's own.
        sides = torch.cat((columns, error[:, None]), dim=1)
        both = torch.einsum("bcld,bkld->bkc", sides, modes)
        both[..., -1] -= torch.einsum("bkj,bj->bk", inverse, state.coefficients * self.prior)
        mixed, solved = both[..., :-1], both
        if not solid:
            along = torch.einsum("bd,bkld->bkl", towards, modes)
            inner = torch.eye(along.shape[2]).to(along) - along.transpose(1, 2) @ along
            factor, _ = torch.linalg.cholesky_ex(inner)
            solved = both + along @ torch.cholesky_solve(along.transpose(1, 2) @ both, factor)
        # The coefficients are eliminated: what is left is the camera's few unknowns.
        down = (sides[:, :-1].flatten(2) @ error.flatten(1)[..., None])[..., 0]
        reduced = camera - mixed.transpose(1, 2) @ solved[..., :-1]
        step = torch.linalg.solve_ex(reduced, down - (mixed.transpose(1, 2) @ solved[..., -1:])[..., 0])[0]
        step = step.nan_to_num(0.0, 0.0, 0.0)
        change = solved[..., -1] - (solved[..., :-1] @ step[..., None])[..., 0]
        change = torch.einsum("bjk,bj->bk", inverse, change).nan_to_num(0.0, 0.0, 0.0)
        moved = (step[:, 4:, None] * (rows @ state.rotation.transpose(1, 2))).sum(dim=1)
        return _State(
            state.scale * step[:, 0].clamp(-0.7, 0.7).exp(),
            state.rotation @ rotation_of(step[:, 1:4].clamp(-1.0, 1.0)),
            state.shift + state.scale[:, None] * moved,
            state.coefficients + change,
        )


class _State:
    """Scale ``[B]``, rotation ``[B, 3, 3]``, shift ``[B, 3]`` (pixels, y up) and coefficients ``[B, K]``."""

    def __init__(self, scale: Tensor, rotation: Tensor, shift: Tensor, coefficients: Tensor) -> None:
        self.scale = scale
        self.rotation = rotation
        self.shift = shift
        self.coefficients = coefficients

    def moved_to(self, new: _State, better: Tensor) -> _State:
        """The new state of the faces that it is better for."""
        return _State(
            torch.where(better, new.scale, self.scale),
            torch.where(better[:, None, None], new.rotation, self.rotation),
            torch.where(better[:, None], new.shift, self.shift),
            torch.where(better[:, None], new.coefficients, self.coefficients),
        )
