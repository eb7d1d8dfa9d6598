"""Landmarks and vertices read back from maps in UV space, and the regions of PRNet's loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.uv.position_map import PositionMap

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
        position_map: Spreads values of vertices ``[B, V, C]`` over maps ``[B, C, U, U]``, 0 off the face.
        region: Int64 ``[U, U]``: 1 to 4 as in :data:`REGIONS`, 0 outside the face.
        vertex_ids: Int64 ``[N]``: vertices that the UV map contains.

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> grid = UVGrid(model, 32)
        >>> maps = grid.position_map(model.mean[None])
        >>> read = grid.landmarks(maps)
        >>> maps.shape, read.shape, float((read - model.landmarks(model.mean[None])).norm(dim=-1).mean()) < 1.0
        (torch.Size([1, 3, 32, 32]), torch.Size([1, 68, 3]), True)
    """

    region: Tensor
    vertex_ids: Tensor
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
        if size < 8:
            raise ConfigurationError(f"A position map of side {size} is too small: use at least 8.")
        self.size = size
        self.position_map = PositionMap(model, size)
        if embedding not in model.landmark_embeddings:
            raise ConfigurationError(
                f"Face model {model.name!r} has no landmarks {embedding!r}, which position maps need: use the model "
                "'embedded', or import the model with landmarks."
            )
        assert model.uv is not None
        assert model.uv_faces is not None
        assert model.uv_face_ids is not None
        uv, uv_faces = model.uv.double().cpu().numpy(), model.uv_faces.cpu().numpy()
        mesh_corners = model.faces[model.uv_face_ids].cpu().numpy()
        vertex_ids = np.unique(mesh_corners)
        vertex_uv = np.zeros((model.num_vertices, 2))
        vertex_uv[mesh_corners] = uv[uv_faces]
        landmark_uv = _landmark_uv(model, embedding, uv, uv_faces)
        self.register_buffer("vertex_ids", torch.from_numpy(vertex_ids), persistent=False)

        place = np.argwhere(self.mask.cpu().numpy())
        tree = cKDTree(place)
        points = np.concatenate((landmark_uv, vertex_uv[vertex_ids]))[:, ::-1] * size - 0.5
        near = tree.query(points, k=_NEIGHBOURS)[1]
        self.num_landmarks = len(landmark_uv)
        self.register_buffer("texels", torch.from_numpy((place @ (size, 1))[near]), persistent=False)
        self.register_buffer("texel_weights", self._reading_weights(model, embedding), persistent=False)

        region = _regions(model, self.position_map)
        region.view(-1)[self.texels[: self.num_landmarks, 0]] = 1
        self.register_buffer("region", region, persistent=False)

    @property
    def mask(self) -> Tensor:
        """Bool ``[U, U]``: texels whose centre lies on the face."""
        return self.position_map.covered

    def weights(self, ratios: tuple[float, float, float, float]) -> Tensor:
        """Weight mask of PRNet's loss.

        Args:
            ratios: Weights of the 68 landmarks, of eyes, nose and mouth, of the other face and of the neck (section
                3.2: 16, 4, 3, 0).

        Returns:
            ``[U, U]``, 0 outside the face.
        """
        return torch.tensor((0.0, *ratios), device=self.region.device)[self.region]

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


def _regions(model: MorphableModel, position_map: PositionMap) -> Tensor:
    """Region of each texel but the landmarks', by its nearest vertex; a model without region masks is all face."""
    covered, nearest = position_map.covered, position_map.nearest_vertex()
    region = torch.where(covered, 3, 0)
    for name, number in (("eye", 2), ("nose", 2), ("mouth", 2), ("neck", 4)):
        if name in model.region_masks:
            region[covered & model.region_masks[name][nearest]] = number
    return region
