"""Position maps: what is known of a model's vertices, spread over its UV map (Feng et al. 2018, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.uv.texels import continued, texel_triangles


class PositionMap(nn.Module):
    """Spreads values of vertices over the texels of a UV map: one weighted sum from a table made once.

    Attributes:
        size: Side U of the map in texels.
        covered: Bool ``[U, U]``: texels whose centre lies on the face.
        corners: Int64 ``[U * U, 3]``: the vertices that each texel lies between.
        weights: ``[U * U, 3]``: theirs.

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> spread = PositionMap(model, 32)
        >>> positions = spread(model.mean[None])
        >>> positions.shape, int(spread.covered.sum())
        (torch.Size([1, 3, 32, 32]), 960)
    """

    covered: Tensor
    corners: Tensor
    weights: Tensor

    def __init__(self, model: MorphableModel, size: int, extend: bool = False) -> None:
        """Find the triangle of each texel.

        Args:
            model: A face model with a UV map.
            size: Side U of the map in texels.
            extend: What texels off the face hold, around it and in the openings of the map: the nearest triangle,
                extended; else 0.

        Raises:
            ConfigurationError: If the model has no UV map.
        """
        super().__init__()
        if model.uv is None or model.uv_faces is None or model.uv_face_ids is None:
            raise ConfigurationError(
                f"Face model {model.name!r} has no UV map, which position maps need: import the model again (a UV map "
                "is derived) or use the model 'embedded'."
            )
        self.size = size
        uv, uv_faces, face_ids = model.uv.detach().cpu(), model.uv_faces.cpu(), model.uv_face_ids.cpu()
        triangle, weights = texel_triangles(uv, uv_faces, size)
        covered = triangle >= 0
        if extend:
            triangle, weights = continued(uv, uv_faces, triangle, weights)
        corners = model.faces[face_ids[triangle.clamp_min(0)].to(model.faces.device)]
        self.register_buffer("covered", covered.reshape(size, size).to(corners.device), persistent=False)
        self.register_buffer("corners", corners, persistent=False)
        self.register_buffer("weights", weights.to(model.mean), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Any values of vertices ``[B, V, C]`` as maps ``[B, C, U, U]``, interpolated in each triangle."""
        batch, count, channels = values.shape
        rows = values.transpose(0, 1).reshape(count, batch * channels)
        spread = nn.functional.embedding_bag(
            self.corners, rows, per_sample_weights=self.weights.to(rows.dtype), mode="sum"
        )
        return spread.reshape(self.size, self.size, batch, channels).permute(2, 3, 0, 1)

    def nearest_vertex(self) -> Tensor:
        """Int64 ``[U, U]``: the vertex that each texel is nearest to in its triangle."""
        nearest = self.corners.gather(1, self.weights.argmax(1, keepdim=True))
        return nearest.reshape(self.size, self.size)
