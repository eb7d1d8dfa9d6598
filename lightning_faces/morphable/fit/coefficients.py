"""Coefficients of a face model from offsets of its vertices: linear least squares with Tikhonov regularisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.fit.result import vertex_modes
from lightning_faces.morphable.model import MorphableModel

BLENDSHAPE_STD = 0.3
"""How much an activation of a blendshape varies, where 1 is the full action: the root mean square of the embedded
model's facial actions in synthetic faces is 0.2 to 0.4 where they happen."""

OUTLIER = 4.0
"""An outlier's distance over the median distance."""


def prior(face_model: MorphableModel, identity_weight: float, expression_weight: float) -> Tensor:
    """Weights ``[K]`` of the squared coefficients, identity then expression.

    Raises:
        ConfigurationError: If a weight is not positive.
    """
    for name, weight in (("identity_weight", identity_weight), ("expression_weight", expression_weight)):
        if not weight > 0:
            raise ConfigurationError(f"{name} is {weight}: it must be positive (square millimetres).")
    if face_model.expression_kind == "blendshapes":
        expression_weight = expression_weight / BLENDSHAPE_STD**2
    identity = torch.full((face_model.num_identity,), identity_weight)
    return torch.cat((identity, torch.full((face_model.num_expression,), expression_weight)))


@torch.no_grad()
def solve_coefficients(
    vertex_ids: Sequence[Tensor],
    offsets: Sequence[Tensor],
    face_model: MorphableModel,
    *,
    identity_weight: float = 0.1,
    expression_weight: float = 0.1,
    trims: int = 3,
) -> Tensor:
    """Coefficients of N images of one subject: one identity, and an expression for each (Pix2face 2017, eq. 5).

    With N = 1 this is equation 4. Minimises the squared distance in square millimetres between the offsets and the
    model's, plus ``identity_weight |c_id|^2 + expression_weight |c_exp / d|^2`` (d as in
    :func:`~lightning_faces.morphable.fit.landmarks.fit_landmarks`). The paper says Tikhonov regularisation with the
    coefficients' standard deviations; in the published code the square root of a weight is 0.1 over a coefficient's
    range, which is less still than the default here. Both are for offsets that are nearly true. A network's errors are
    alike over whole regions, so that many vertices count as one: errors of 2 mm want weights of 10 or more.

    The normal equations have the shape of an arrow: expressions of different images meet only through the identity.
    Each image's block is eliminated by its Schur complement, so that time and memory grow linearly with N.

    Args:
        vertex_ids: For each image, int64 ``[M]``: the vertices that were found in it.
        offsets: For each image, ``[M, 3]``: their offsets from the mean face, millimetres, object frame.
        face_model: The model.
        identity_weight: mm^2.
        expression_weight: mm^2.
        trims: How many times the vertices that the solution misses by more than :data:`OUTLIER` times the median are
            left out and the rest is solved again; 0 for plain least squares. A PNCC is ambiguous where lids or lips
            touch on the mean face, and one wrong vertex in a hundred there costs as much accuracy as all the rest.

    Returns:
        ``[N, K]``, identity (the same in all rows) then expression, in the type of the offsets. Solved in float64.

    Raises:
        ConfigurationError: If there is no image, a vertex does not exist, or a weight is not positive.

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> true = torch.zeros(1, model.num_identity)
        >>> true[0, 0] = 1.5
        >>> shape = model.vertices(true, torch.zeros(1, model.num_expression))[0]
        >>> ids = torch.arange(0, model.num_vertices, 3)
        >>> found = solve_coefficients([ids], [(shape - model.mean)[ids]], model)
        >>> round(float(found[0, 0]), 1)
        1.5
    """
    if not len(vertex_ids) == len(offsets) > 0:
        raise ConfigurationError(
            f"{len(vertex_ids)} lists of vertices and {len(offsets)} of offsets: give one of each per image."
        )
    solver = CoefficientSolver(face_model, identity_weight, expression_weight, offsets[0].device)
    return solver.solve(vertex_ids, offsets, trims)


class CoefficientSolver:
    """:func:`solve_coefficients` for many subjects.

    Args:
        face_model: The model.
        identity_weight: mm^2.
        expression_weight: mm^2.
        device: Where to compute.

    Raises:
        ConfigurationError: If a weight is not positive.
    """

    def __init__(
        self, face_model: MorphableModel, identity_weight: float, expression_weight: float, device: torch.device
    ) -> None:
        self.face_model = face_model
        self.weights = prior(face_model, identity_weight, expression_weight).to(device).double()
        # [V, 3, K] in double precision: modes that the seen vertices hardly show would drown in rounding.
        self.rows = vertex_modes(face_model)[1].to(device).permute(1, 2, 0).double().contiguous()

    def solve(self, vertex_ids: Sequence[Tensor], offsets: Sequence[Tensor], trims: int = 3) -> Tensor:
        """Coefficients ``[N, K]`` of N images of one subject; arguments as for :func:`solve_coefficients`."""
        for ids in vertex_ids:
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.rows):
                raise ConfigurationError(
                    f"Vertices {int(ids.min())} to {int(ids.max())} were given for face model "
                    f"{self.face_model.name!r}: it has vertices 0 to {len(self.rows) - 1}."
                )
        vertex_ids = [ids.to(self.rows.device) for ids in vertex_ids]
        normals = [self._normal(ids, values) for ids, values in zip(vertex_ids, offsets)]
        coefficients = _solve_arrow(normals, self.weights, self.face_model.num_identity)
        for _ in range(trims):
            trimmed = []
            moved = (coefficients @ self.rows.flatten(0, 1).T).reshape(len(normals), *self.rows.shape[:2])
            for (normal, right), ids, values, fitted in zip(normals, vertex_ids, offsets, moved):
                error = (values - fitted[ids]).norm(dim=1)
                far = error > OUTLIER * error.median() if error.numel() else error > 0
                less, less_right = self._normal(ids[far], values[far])
                trimmed.append((normal - less, right - less_right))
            coefficients = _solve_arrow(trimmed, self.weights, self.face_model.num_identity)
        return coefficients.to(offsets[0].dtype)

    def _normal(self, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Normal matrix ``[K, K]`` and right-hand side ``[K]`` of vertices and their offsets ``[M, 3]``."""
        block = self.rows[ids].reshape(-1, self.rows.shape[2])
        return block.T @ block, block.T @ offsets.double().reshape(-1)


def _solve_arrow(normals: Sequence[tuple[Tensor, Tensor]], weights: Tensor, count: int) -> Tensor:
    """Coefficients ``[N, K]`` of N images that share the first ``count`` of them."""
    head, head_right = torch.diag(weights[:count]), weights.new_zeros(count)
    backs = []
    for normal, right in normals:
        across, own = normal[:count, count:], normal[count:, count:] + torch.diag(weights[count:])
        both = torch.cat((across.T, right[count:, None]), dim=1)
        solved = torch.cholesky_solve(both, torch.linalg.cholesky(own))
        head = head + normal[:count, :count] - across @ solved[:, :-1]
        head_right = head_right + right[:count] - across @ solved[:, -1]
        backs.append(solved)
    identity = torch.cholesky_solve(head_right[:, None], torch.linalg.cholesky(head))[:, 0]
    expressions = torch.stack([solved[:, -1] - solved[:, :-1] @ identity for solved in backs])
    return torch.cat((identity.expand(len(backs), -1), expressions), dim=1)
