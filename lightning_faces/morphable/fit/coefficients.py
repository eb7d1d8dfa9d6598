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
    identity_weight: float = 0.01,
    expression_weight: float = 0.01,
) -> Tensor:
    """Coefficients of N images of one subject: one identity, and an expression for each (Pix2face 2017, eq. 5).

    With N = 1 this is equation 4. Minimises the squared distance in square millimetres between the offsets and the
    model's, plus ``identity_weight |c_id|^2 + expression_weight |c_exp / d|^2`` (d as in
    :func:`~lightning_faces.morphable.fit.landmarks.fit_landmarks`). The paper says Tikhonov regularisation with the
    coefficients' standard deviations; the published code weighs a coefficient over its range with 0.1, so that 0.01 is
    of its order.

    The normal equations have the shape of an arrow: expressions of different images meet only through the identity.
    Each image's block is eliminated by its Schur complement, so that time and memory grow linearly with N.

    Args:
        vertex_ids: For each image, int64 ``[M]``: the vertices that were found in it.
        offsets: For each image, ``[M, 3]``: their offsets from the mean face, millimetres, object frame.
        face_model: The model.
        identity_weight: mm^2.
        expression_weight: mm^2.

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
        >>> round(float(found[0, 0]), 2)
        1.5
    """
    if not len(vertex_ids) == len(offsets) > 0:
        raise ConfigurationError(
            f"{len(vertex_ids)} lists of vertices and {len(offsets)} of offsets: give one of each per image."
        )
    dtype, device = offsets[0].dtype, offsets[0].device
    _, modes = vertex_modes(face_model)
    rows = modes.to(device).transpose(0, 1)
    weights = prior(face_model, identity_weight, expression_weight).to(device).double()
    count = face_model.num_identity
    identity_normal = torch.diag(weights[:count])
    identity_right = identity_normal.new_zeros(count)
    backs = []
    for ids, values in zip(vertex_ids, offsets):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < face_model.num_vertices:
            raise ConfigurationError(
                f"Vertex {int(ids.max())} was given for face model {face_model.name!r}: it has vertices 0 to "
                f"{face_model.num_vertices - 1}."
            )
        # [3 M, K] in double precision: modes that the seen vertices hardly show would drown in rounding.
        block = rows[ids].transpose(1, 2).reshape(-1, rows.shape[1]).double()
        normal, right = block.T @ block, block.T @ values.double().reshape(-1)
        across, own = normal[:count, count:], normal[count:, count:] + torch.diag(weights[count:])
        factor = torch.linalg.cholesky(own)
        solved = torch.cholesky_solve(torch.cat((across.T, right[count:, None]), dim=1), factor)
        identity_normal = identity_normal + normal[:count, :count] - across @ solved[:, :-1]
        identity_right = identity_right + right[:count] - across @ solved[:, -1]
        backs.append(solved)
    identity = torch.cholesky_solve(identity_right[:, None], torch.linalg.cholesky(identity_normal))[:, 0]
    expressions = torch.stack([solved[:, -1] - solved[:, :-1] @ identity for solved in backs])
    return torch.cat((identity.expand(len(backs), -1), expressions), dim=1).to(dtype)
