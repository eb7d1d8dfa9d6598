"""Maps in UV space: which surface point a texel shows, position maps of vertices, and points read back from them.

A texel (row i, column j) of a map of side U has its centre at ``((j + 0.5) / U, (i + 0.5) / U)`` in the model's UV.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable.model import MorphableModel

REGIONS = ("landmarks", "eye_nose_mouth", "face", "neck")
"""The sub-regions 1 to 4 of PRNet's weight mask, in the order of its ratios."""
_NEIGHBOURS = 16
_REGULARIZATION = 1.0
"""Square millimetres: weight of a texel's own error beside that of reading; 1 was best of 0.01 to 4 at 0.5 px noise."""


class UVGrid(nn.Module):
    """The texels of a UV map of one face model.

    A point is read from a map as a weighted sum of the 16 face texels nearest to it in UV. The weights sum to 1 and are
    those that reproduce the point best on the model's mean and modes (as in locally linear embedding, Roweis and Saul
    2000), so that folds narrower than a texel, such as lips and eyelids, and the rim of the map do no harm: bilinear
    lookup errs by 0.8 % of the face size at the landmarks of the embedded model on a map of 64 texels, this by 0.2 %.

    Attributes:
        size: Side U of the map in texels.
        mask: Bool ``[U, U]``: texels whose centre lies on the face.
        region: Int64 ``[U, U]``: 1 to 4 as in :data:`REGIONS`, 0 outside the face.
        vertex_ids: Int64 ``[N]``: vertices that the UV map contains.
    """

    mask: Tensor
    region: Tensor
    vertex_ids: Tensor
    corners: Tensor
    barycentric: Tensor
    texels: Tensor
    texel_weights: Tensor

    def __init__(self, model: MorphableModel, size: int, embedding: str = "bfm") -> None:
        """Rasterise the UV triangles of a face model, once.

        Args:
            model: A face model with a UV map.
            size: Side U of the map in texels.
            embedding: Which landmarks of the model :meth:`landmarks` reads and region 1 marks.

        Raises:
            ConfigurationError: If the model has no UV map or no such landmarks, or the map is too small.
            DataError: If a landmark lies outside the UV map.
        """
        super().__init__()
        if model.uv is None or model.uv_faces is None or model.uv_face_ids is None:
            raise ConfigurationError(
                f"Face model {model.name!r} has no UV map, which position maps need: use the model 'embedded'."
            )
        if embedding not in model.landmark_embeddings:
            raise ConfigurationError(
                f"Face model {model.name!r} has no landmarks {embedding!r}, which position maps need: use the model "
                "'embedded', or import the model with landmarks."
            )
        if size < 8:
            raise ConfigurationError(f"A position map of side {size} is too small: use at least 8.")
        self.size = size
        uv, uv_faces = model.uv.double().cpu().numpy(), model.uv_faces.cpu().numpy()
        mesh_corners = model.faces[model.uv_face_ids].cpu().numpy()
        triangle, barycentric = _rasterize(uv * size - 0.5, uv_faces, size)
        covered = triangle >= 0
        corners = np.where(covered[..., None], mesh_corners[triangle], 0)
        self.register_buffer("mask", torch.from_numpy(covered), persistent=False)
        self.register_buffer("corners", torch.from_numpy(corners), persistent=False)
        self.register_buffer("barycentric", torch.from_numpy(barycentric).float(), persistent=False)

        vertex_ids = np.unique(mesh_corners)
        vertex_uv = np.zeros((model.num_vertices, 2))
        vertex_uv[mesh_corners] = uv[uv_faces]
        landmark_uv = _landmark_uv(model, embedding, uv, uv_faces)
        self.register_buffer("vertex_ids", torch.from_numpy(vertex_ids), persistent=False)

        place = np.argwhere(covered)
        tree = cKDTree(place)
        points = np.concatenate((landmark_uv, vertex_uv[vertex_ids]))[:, ::-1] * size - 0.5
        near = tree.query(points, k=_NEIGHBOURS)[1]
        self.num_landmarks = len(landmark_uv)
        self.register_buffer("texels", torch.from_numpy((place @ (size, 1))[near]), persistent=False)
        self.register_buffer("texel_weights", self._reading_weights(model, embedding), persistent=False)

        region = _regions(model, corners, barycentric, covered)
        marked = place[near[: self.num_landmarks, 0]]
        region[marked[:, 0], marked[:, 1]] = 1
        self.register_buffer("region", torch.from_numpy(region), persistent=False)

    def weights(self, ratios: tuple[float, float, float, float]) -> Tensor:
        """Weight mask of PRNet's loss.

        Args:
            ratios: Weights of the 68 landmarks, of eyes, nose and mouth, of the other face and of the neck (section
                3.2: 16, 4, 3, 0).

        Returns:
            ``[U, U]``, 0 outside the face.
        """
        return torch.tensor((0.0, *ratios), device=self.region.device)[self.region]

    def position_map(self, vertices: Tensor) -> Tensor:
        """Any values of vertices ``[B, V, C]`` as a map ``[B, C, U, U]``, interpolated in each triangle; 0 outside."""
        values = (vertices[:, self.corners] * self.barycentric[..., None].to(vertices.dtype)).sum(dim=-2)
        return (values * self.mask[..., None]).permute(0, 3, 1, 2)

    def vertices(self, maps: Tensor) -> Tensor:
        """Values ``[B, N, C]`` of a map ``[B, C, U, U]`` at the vertices ``vertex_ids``."""
        return self._read(maps, slice(self.num_landmarks, None))

    def landmarks(self, maps: Tensor) -> Tensor:
        """Values ``[B, L, C]`` of a map ``[B, C, U, U]`` at the landmarks."""
        return self._read(maps, slice(None, self.num_landmarks))

    def _read(self, maps: Tensor, points: slice) -> Tensor:
        values = maps.flatten(2)[..., self.texels[points]]
        read: Tensor = (values * self.texel_weights[points].to(maps.dtype)).sum(dim=-1).transpose(1, 2)
        return read

    def _reading_weights(self, model: MorphableModel, embedding: str) -> Tensor:
        """Weights ``[L + N, 16]`` that minimise the error on the mean and on each mode of the model at 1 sigma."""
        gram = torch.eye(_NEIGHBOURS, dtype=torch.float64) * _REGULARIZATION
        gram = gram.expand(len(self.texels), -1, -1).clone()
        modes = (
            model.mean[None],
            model.identity_basis * model.identity_std[:, None, None],
            model.expression_basis * model.expression_std[:, None, None],
        )
        for mode in torch.cat(modes).cpu():
            values = self.position_map(mode[None])[0].flatten(1)
            true = torch.cat((model.landmarks(mode[None], embedding)[0], mode[self.vertex_ids]))
            error = values[:, self.texels].permute(1, 2, 0) - true[:, None]
            gram += error @ error.transpose(1, 2)
        weights = torch.linalg.solve(gram, torch.ones(len(gram), _NEIGHBOURS, 1, dtype=torch.float64))[..., 0]
        normalized: Tensor = weights / weights.sum(dim=1, keepdim=True)
        return normalized.float()


def _landmark_uv(
    model: MorphableModel, embedding: str, uv: NDArray[np.float64], uv_faces: NDArray[np.int64]
) -> NDArray[np.float64]:
    assert model.uv_face_ids is not None
    triangle, barycentric = (value.cpu().numpy() for value in model.landmark_embeddings[embedding])
    uv_triangle = np.full(len(model.faces), -1)
    uv_triangle[model.uv_face_ids.cpu().numpy()] = np.arange(len(uv_faces))
    if (uv_triangle[triangle] < 0).any():
        raise DataError(
            f"Face model {model.name!r} has landmarks {embedding!r} outside its UV map, the first is number "
            f"{int(np.argmin(uv_triangle[triangle]))}: import the model with a UV map of the whole face."
        )
    points: NDArray[np.float64] = (uv[uv_faces[uv_triangle[triangle]]] * barycentric[..., None]).sum(axis=1)
    return points


def _rasterize(
    points: NDArray[np.float64], faces: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Triangle ``[U, U]`` (-1: none) and barycentric weights ``[U, U, 3]`` at each texel centre.

    Args:
        points: ``[N, 2]`` in texels, (column, row), the first texel's centre at (0, 0).
        faces: ``[F, 3]``.
        size: Side U.
    """
    first, second, third = (points[faces[:, k]] for k in range(3))
    double_area = _cross(second - first, third - first)
    low = np.clip(np.ceil(points[faces].min(axis=1)).astype(np.int64), 0, size)
    high = np.clip(np.floor(points[faces].max(axis=1)).astype(np.int64), -1, size - 1)
    extent = np.maximum(high - low + 1, 0)
    count = extent.prod(axis=1) * (double_area != 0)
    # Every texel of every bounding box, laid out flat.
    owner = np.repeat(np.arange(len(faces)), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    texel = low[owner] + np.stack((step % extent[owner, 0], step // extent[owner, 0]), axis=1)
    weights = (
        np.stack(
            (
                _cross(third[owner] - second[owner], texel - second[owner]),
                _cross(first[owner] - third[owner], texel - third[owner]),
                _cross(second[owner] - first[owner], texel - first[owner]),
            ),
            axis=1,
        )
        / double_area[owner, None]
    )
    inside = (weights >= -1e-9).all(axis=1)
    texel, weights, owner = texel[inside], weights[inside], owner[inside]
    triangle = np.full((size, size), -1)
    barycentric = np.zeros((size, size, 3))
    triangle[texel[:, 1], texel[:, 0]] = owner
    barycentric[texel[:, 1], texel[:, 0]] = weights
    return triangle, barycentric


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product


def _regions(
    model: MorphableModel, corners: NDArray[np.int64], barycentric: NDArray[np.float64], covered: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Region of each texel but the landmarks', by its nearest vertex; a model without region masks is all face."""
    nearest = np.take_along_axis(corners, barycentric.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    region = np.where(covered, 3, 0)
    for name, number in (("eye", 2), ("nose", 2), ("mouth", 2), ("neck", 4)):
        if name in model.region_masks:
            region[covered & model.region_masks[name].cpu().numpy()[nearest]] = number
    return region
