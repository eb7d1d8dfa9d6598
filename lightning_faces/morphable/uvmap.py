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
_NEIGHBOURS = 9


class UVGrid(nn.Module):
    """The texels of a UV map of one face model.

    Attributes:
        size: Side U of the map in texels.
        mask: Bool ``[U, U]``: texels whose centre lies on the face.
        region: Int64 ``[U, U]``: 1 to 4 as in :data:`REGIONS`, 0 outside the face.
        vertex_mask: Bool ``[V]``: vertices that the UV map contains.
    """

    mask: Tensor
    region: Tensor
    vertex_mask: Tensor
    corners: Tensor
    barycentric: Tensor
    vertex_uv: Tensor
    landmark_uv: Tensor
    rim: Tensor
    rim_sources: Tensor
    rim_weights: Tensor

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
                f"Face model {model.name!r} has no landmarks {embedding!r}, which PRNet weights need."
            )
        if size < 8:
            raise ConfigurationError(f"A position map of side {size} is too small: use at least 8.")
        self.size = size
        uv, uv_faces = model.uv.double().cpu().numpy(), model.uv_faces.cpu().numpy()
        mesh_corners = model.faces[model.uv_face_ids].cpu().numpy()
        triangle, barycentric = _rasterize(uv * size - 0.5, uv_faces, size)
        covered = triangle >= 0
        self.register_buffer("mask", torch.from_numpy(covered), persistent=False)
        corners = np.where(covered[..., None], mesh_corners[triangle], 0)
        self.register_buffer("corners", torch.from_numpy(corners), persistent=False)
        self.register_buffer("barycentric", torch.from_numpy(barycentric).float(), persistent=False)

        vertex_uv = np.full((model.num_vertices, 2), 0.5)
        vertex_uv[mesh_corners] = uv[uv_faces]
        vertex_mask = np.zeros(model.num_vertices, dtype=bool)
        vertex_mask[mesh_corners] = True
        self.register_buffer("vertex_uv", torch.from_numpy(vertex_uv).float(), persistent=False)
        self.register_buffer("vertex_mask", torch.from_numpy(vertex_mask), persistent=False)

        mesh_triangle, weights = (value.cpu().numpy() for value in model.landmark_embeddings[embedding])
        uv_triangle = np.full(len(model.faces), -1)
        uv_triangle[model.uv_face_ids.cpu().numpy()] = np.arange(len(uv_faces))
        landmark_triangle = uv_triangle[mesh_triangle]
        if (landmark_triangle < 0).any():
            raise DataError(
                f"Face model {model.name!r}: landmark {int(np.argmin(landmark_triangle))} of {embedding!r} lies outside "
                "the UV map; import the model with a UV map of the whole face."
            )
        landmark_uv = (uv[uv_faces[landmark_triangle]] * weights[..., None]).sum(axis=1)
        self.register_buffer("landmark_uv", torch.from_numpy(landmark_uv).float(), persistent=False)

        region = _regions(model, corners, barycentric, covered)
        texels = np.argwhere(covered)
        nearest = texels[cKDTree(texels).query(landmark_uv[:, ::-1] * size - 0.5)[1]]
        region[nearest[:, 0], nearest[:, 1]] = 1
        self.register_buffer("region", torch.from_numpy(region), persistent=False)

        rim, sources, rim_weights = _extrapolation(covered)
        self.register_buffer("rim", torch.from_numpy(rim), persistent=False)
        self.register_buffer("rim_sources", torch.from_numpy(sources), persistent=False)
        self.register_buffer("rim_weights", torch.from_numpy(rim_weights).float(), persistent=False)

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
        """Values ``[B, V, C]`` of a map ``[B, C, U, U]`` at the vertices; meaningless where not ``vertex_mask``."""
        return self._sample(maps, self.vertex_uv)

    def landmarks(self, maps: Tensor) -> Tensor:
        """Values ``[B, L, C]`` of a map ``[B, C, U, U]`` at the landmarks."""
        return self._sample(maps, self.landmark_uv)

    def _sample(self, maps: Tensor, uv: Tensor) -> Tensor:
        flat = maps.flatten(2)
        # Bilinear interpolation at the rim needs the texels just outside, which nothing was learnt for.
        outside = (flat[..., self.rim_sources] * self.rim_weights.to(flat.dtype)).sum(dim=-1)
        extended = flat.index_copy(2, self.rim, outside).reshape(maps.shape)
        grid = (2 * uv - 1).to(maps.dtype).expand(len(maps), 1, -1, -1)
        sampled = nn.functional.grid_sample(extended, grid, padding_mode="border", align_corners=False)
        return sampled[:, :, 0].transpose(1, 2)


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


def _extrapolation(covered: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Texels next to the face, and the weights that continue a map to them: an affine fit to the nearest face texels.

    Returns:
        Flat indices of the texels ``[R]``, of the face texels they are made of ``[R, 9]``, and the weights ``[R, 9]``.
    """
    size = len(covered)
    padded = np.pad(covered, 1)
    near = np.zeros_like(covered)
    for row in range(3):
        for column in range(3):
            near |= padded[row : row + size, column : column + size]
    rim, texels = np.argwhere(near & ~covered), np.argwhere(covered)
    nearest = cKDTree(texels).query(rim, k=_NEIGHBOURS)[1]
    offsets = (texels[nearest] - rim[:, None]).astype(np.float64)
    design = np.concatenate((np.ones((*offsets.shape[:2], 1)), offsets), axis=2)
    # The fit's value at the texel itself, where the offset is 0, is the first row of the pseudo-inverse.
    weights = np.linalg.pinv(design)[:, 0]
    sources = texels[nearest]
    return rim @ (size, 1), sources @ (size, 1), weights
