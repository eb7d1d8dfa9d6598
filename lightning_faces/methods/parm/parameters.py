"""The parameter vector of PARM: normalised by the face box, its landmarks, their Jacobian, and which can be seen.

Normalised frame: the centre of the face box is the origin and ``sqrt(w h)`` of the box the unit; x right, y down.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.geometry.camera import weak_perspective
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.morphable import MorphableModel

POSE = 6
"""Scale, pitch, yaw, roll, tx, ty: the first parameters."""
ANGLES = slice(1, 4)
SHIFT = slice(4, 6)
PATCH = 12.0
"""Radius in millimetres of the surface around a landmark whose mean normal says whether it can be seen. At 8 mm the
folds of lips and eyelids decide; on rendered faces 12 mm agree with the true visibility of the jaw best (0.90)."""
INNER_REGIONS = ("eye_inside", "mouth_inside", "eyeball")
"""Parts of the mesh behind its surface, where the model names them."""


def box_frame(box: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``[B, 2]`` and size ``sqrt(w h)`` ``[B, 1]`` of boxes (x0, y0, x1, y1) ``[B, 4]``, pixels."""
    centre = (box[:, :2] + box[:, 2:]) / 2
    size = (box[:, 2:] - box[:, :2]).prod(dim=1, keepdim=True).sqrt()
    return centre, size


def normalize_pose(pose: Tensor, box: Tensor) -> Tensor:
    """Poses ``[B, 6]`` of the image frame in the frame of face boxes ``[B, 4]`` (section 4.2).

    Of the two triples of Euler angles of a rotation, the one with the smaller pitch and roll is taken, so that a head
    that turns beyond 90 degrees has no jump of 180 degrees in pitch and roll.

    Returns:
        ``[B, 6]``: scale per ``sqrt(w h)``, radians, and the shift from the box's centre in ``sqrt(w h)``.

    Example:
        >>> pose = torch.tensor([[0.5, 0.0, 0.0, 0.0, 50.0, 60.0]])
        >>> normalize_pose(pose, torch.tensor([[20.0, 30.0, 120.0, 130.0]]))
        tensor([[ 0.0050,  0.0000,  0.0000,  0.0000, -0.2000, -0.2000]])
    """
    centre, size = box_frame(box)
    angles = pose[:, ANGLES]
    half_turn = angles.new_tensor((math.pi, math.pi, math.pi))
    other = half_turn + angles * angles.new_tensor((1.0, -1.0, 1.0))
    both = torch.stack((angles, other))
    both = torch.remainder(both + math.pi, 2 * math.pi) - math.pi
    far = both[..., 0].abs() + both[..., 2].abs()
    angles = torch.where((far[0] <= far[1])[:, None], both[0], both[1])
    return torch.cat((pose[:, :1] / size, angles, (pose[:, SHIFT] - centre) / size), dim=1)


def denormalize_pose(pose: Tensor, box: Tensor) -> Tensor:
    """Inverse of :func:`normalize_pose`: poses ``[B, 6]`` in the image frame."""
    centre, size = box_frame(box)
    return torch.cat((pose[:, :1] * size, pose[:, ANGLES], pose[:, SHIFT] * size + centre), dim=1)


class FaceParameters(nn.Module):
    """What a parameter vector ``p = [s, pitch, yaw, roll, tx, ty, identity, expression]`` says about a face.

    Parameters are float64: landmarks are rounded to pixels, and what a face gives must not depend on its batch.

    Args:
        model: The face model.
        embedding: Which of its landmarks.
    """

    mean: Tensor
    basis: Tensor
    rim_mean: Tensor
    rim_basis: Tensor
    rim_edges: Tensor

    def __init__(self, model: MorphableModel, embedding: str = "bfm") -> None:
        super().__init__()
        std = torch.cat((model.identity_std, model.expression_std))[:, None, None]
        modes = torch.cat((model.identity_basis, model.expression_basis)) * std
        self.register_buffer("mean", model.landmarks(model.mean[None], embedding)[0].double(), persistent=False)
        self.register_buffer("basis", model.landmarks(modes, embedding).double(), persistent=False)
        edges = [_boundary(triangles) for triangles in _patches(model, self.mean.float())]
        vertices, renamed = torch.unique(torch.cat(edges), return_inverse=True)
        self.register_buffer("rim_mean", model.mean[vertices], persistent=False)
        self.register_buffer("rim_basis", modes[:, vertices].contiguous(), persistent=False)
        # Rows of one length, filled up with an edge from a vertex to itself, which adds nothing.
        rows = torch.zeros((len(edges), max(map(len, edges)), 2), dtype=torch.int64)
        for row, named in zip(rows, torch.split(renamed, [len(part) for part in edges])):
            row[: len(named)] = named
        self.register_buffer("rim_edges", rows, persistent=False)

    @property
    def count(self) -> int:
        """Length D of the vector."""
        return POSE + len(self.basis)

    def shape(self, parameters: Tensor) -> Tensor:
        """Landmarks ``[B, L, 3]`` in millimetres, object frame, of parameters ``[B, D]``."""
        return self.mean + torch.einsum("bk,kld->bld", parameters[:, POSE:], self.basis)

    def landmarks(self, parameters: Tensor) -> Tensor:
        """x(p): landmarks ``[B, L, 3]`` of parameters ``[B, D]`` in the normalised frame; z larger = nearer (eq. 2)."""
        return weak_perspective(self.shape(parameters), parameters[:, :POSE])

    def jacobian(self, parameters: Tensor) -> Tensor:
        """Derivative of x and y of :meth:`landmarks` by the parameters (J in eq. 4).

        Args:
            parameters: ``[B, D]``.

        Returns:
            ``[B, L, 2, D]``.
        """
        shape = self.shape(parameters)
        scale = parameters[:, :1, None]
        rotation = euler_to_matrix(parameters[:, ANGLES])
        by_pitch = _generator(rotation, 0) @ rotation
        by_roll = rotation @ _generator(rotation, 2)
        first = parameters[:, ANGLES] * parameters.new_tensor((1.0, 0.0, 0.0))
        pitched = euler_to_matrix(first)
        by_yaw = pitched @ _generator(rotation, 1) @ pitched.transpose(1, 2) @ rotation
        flip = parameters.new_tensor(((1.0,), (-1.0,)))
        turned = [shape @ (matrix[:, :2] * flip).transpose(1, 2) for matrix in (rotation, by_pitch, by_yaw, by_roll)]
        result = parameters.new_zeros((*shape.shape[:2], 2, self.count))
        for column, values in enumerate(turned):
            result[..., column] = values if column == 0 else values * scale
        result[:, :, 0, 4] = 1.0
        result[:, :, 1, 5] = 1.0
        projection = rotation[:, :2] * flip * scale
        result[..., POSE:] = torch.einsum("bcd,kld->blck", projection, self.basis)
        return result

    def visible(self, parameters: Tensor) -> Tensor:
        """Whether the surface around each landmark faces the viewer (section 4.2): bool ``[B, L]``.

        The normal is the average of the deformed shape over a patch, weighted by area. By Stokes' theorem it is half
        the sum of ``a x b`` over the patch's directed boundary edges (a, b), so its part towards the viewer is the area
        of the outline in the image, and folds within a patch do not matter.
        """
        alpha = parameters[:, POSE:].to(self.rim_mean.dtype)
        rim = (self.rim_mean.flatten() + alpha @ self.rim_basis.flatten(1)).view(len(alpha), *self.rim_mean.shape)
        rotation = euler_to_matrix(parameters[:, ANGLES]).to(rim.dtype)
        x, y = (rim @ rotation[:, :2].transpose(1, 2)).unbind(2)
        begin, end = self.rim_edges.flatten(0, 1).unbind(1)
        area = x[:, begin] * y[:, end] - x[:, end] * y[:, begin]
        return area.view(len(area), *self.rim_edges.shape[:2]).sum(dim=2) > 0

    def effect(self, model: MorphableModel) -> Tensor:
        """How far a unit of each parameter moves the vertices of the mean face ``[D]``, up to a common factor.

        Root of the summed squared distances over all vertices, in the face's own millimetres, so that it does not
        depend on the pose (the weights of 3DDFA's weighted parameter distance cost, with the mean face's scale).
        """
        mean = model.mean.double() - model.mean.double().mean(dim=0)
        axes = mean.square().sum(dim=0)
        # Turning about an axis moves what is away from it; millimetres per unit of scale and shift need the scale.
        scale = 1.0 / float((self.mean[:, :2].amax(dim=0) - self.mean[:, :2].amin(dim=0)).prod().sqrt())
        turn = torch.stack((axes[1] + axes[2], axes[0] + axes[2], axes[0] + axes[1])).sqrt()
        shift = torch.full((2,), math.sqrt(len(mean)) / scale, dtype=mean.dtype)
        modes = torch.cat((model.identity_basis, model.expression_basis)).double().flatten(1).norm(dim=1)
        modes = modes * torch.cat((model.identity_std, model.expression_std))
        return torch.cat((axes.sum().sqrt()[None] / scale, turn, shift, modes))


def _patches(model: MorphableModel, landmarks: Tensor) -> list[Tensor]:
    """The triangles ``[N, 3]`` within ``PATCH`` of each landmark ``[L, 3]`` of the mean face, but for inner ones."""
    inner = torch.zeros(model.num_vertices, dtype=torch.bool)
    for name in INNER_REGIONS:
        if name in model.region_masks:
            inner |= model.region_masks[name]
    outer = model.faces[~inner[model.faces].any(dim=1)]
    centres = model.mean[outer].mean(dim=1)
    distances = torch.cdist(landmarks, centres)
    # Where a mesh is coarse, at least the nearest triangle.
    return [outer[row <= max(PATCH, float(row.min()))] for row in distances]


def _boundary(triangles: Tensor) -> Tensor:
    """The directed edges ``[E, 2]`` of triangles ``[N, 3]`` that no other triangle runs along the other way."""
    edges = torch.cat([triangles[:, [k, (k + 1) % 3]] for k in range(3)])
    size = int(edges.max()) + 1
    code, opposite = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
    return edges[~torch.isin(code, opposite)]


def _generator(like: Tensor, axis: int) -> Tensor:
    """Derivative at zero of the rotation factor of pitch, yaw or roll in ``euler_to_matrix``, ``[3, 3]``."""
    matrix = like.new_zeros((3, 3))
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    matrix[i, j], matrix[j, i] = 1.0, -1.0
    return matrix


def gauss_newton_step(jacobian: Tensor, update: Tensor, parameters: Tensor, prior: Tensor) -> Tensor:
    """PCLM's parameter update ``(J'J + r W)^-1 (J' dx - r W p)`` (eq. 9).

    Args:
        jacobian: ``[B, N, D]``.
        update: ``[B, N]``, the landmark update dx.
        parameters: ``[B, D]``.
        prior: ``[D]``, the diagonal of r W.

    Returns:
        ``[B, D]``.
    """
    normal = jacobian.transpose(1, 2) @ jacobian + torch.diag(prior)
    right = (jacobian.transpose(1, 2) @ update[..., None])[..., 0] - prior * parameters
    # A unit of scale is hundreds of times a unit of shape: without this a float32 factorisation could break down.
    unit = normal.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(normal.dtype).tiny).rsqrt()
    factor = torch.linalg.cholesky(normal * unit[:, :, None] * unit[:, None, :])
    return torch.cholesky_solve((right * unit)[..., None], factor)[..., 0] * unit
