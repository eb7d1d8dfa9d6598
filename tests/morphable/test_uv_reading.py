"""Maps in UV space: what their texels show, their weights, and points read back from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.camera import face_size
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import UVGrid
from tests.methods.test_prnet import posed_faces


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


@pytest.fixture(scope="module")
def grid(model: MorphableModel) -> UVGrid:
    return UVGrid(model, 64)


def test_a_map_of_uv_coordinates_shows_the_centres_of_its_texels(model: MorphableModel, grid: UVGrid) -> None:
    assert model.uv is not None and model.uv_faces is not None and model.uv_face_ids is not None
    values = torch.zeros(model.num_vertices, 2)
    values[model.faces[model.uv_face_ids]] = model.uv[model.uv_faces]
    shown = grid.position_map(values[None])[0]
    centre = (torch.arange(64) + 0.5) / 64
    expected = torch.stack((centre.expand(64, 64), centre[:, None].expand(64, 64)))
    torch.testing.assert_close(shown[:, grid.mask], expected[:, grid.mask], atol=1e-6, rtol=0)
    assert not bool(shown[:, ~grid.mask].any())
    assert 0.8 < float(grid.mask.float().mean()) < 1.0


def test_maps_agree_with_the_renderer(model: MorphableModel, grid: UVGrid) -> None:
    from lightning_faces.rendering.maps import FaceMaps

    vertices, _ = posed_faces(model, 2, 64)
    rendered = FaceMaps(model, 64, 64).position_map(vertices)
    # The renderer moves the grid by a hundredth of a texel, and a texel on an edge may belong to either triangle.
    difference = (grid.position_map(vertices) - rendered)[..., grid.mask].abs()
    assert float((difference < 0.03).float().mean()) > 0.999


def test_weights_follow_the_regions(model: MorphableModel, grid: UVGrid) -> None:
    weights = grid.weights((16.0, 4.0, 3.0, 0.0))
    assert sorted(weights.unique().tolist()) == [0.0, 3.0, 4.0, 16.0]
    assert 60 <= int((weights == 16).sum()) <= 68
    assert not bool(weights[~grid.mask].any())
    everything = grid.weights((1.0, 1.0, 1.0, 1.0))
    assert bool((everything == grid.mask).all())
    # The neck is at the bottom of the map, the nose in its middle columns.
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    assert float(rows[grid.region == 4].mean()) > float(rows[grid.region == 3].mean()) + 10


@pytest.mark.parametrize(("size", "landmark_limit", "vertex_limit"), [(48, 0.005, 0.005), (64, 0.004, 0.004)])
def test_points_are_read_back_from_maps(
    model: MorphableModel, size: int, landmark_limit: float, vertex_limit: float
) -> None:
    grid = UVGrid(model, size)
    vertices, _ = posed_faces(model, 16, 96)
    landmarks = model.landmarks(vertices)
    maps = grid.position_map(vertices)
    scale = face_size(landmarks)[:, None]
    assert float(((grid.landmarks(maps) - landmarks).norm(dim=-1) / scale).mean()) < landmark_limit
    assert float(((grid.vertices(maps) - vertices[:, grid.vertex_ids]).norm(dim=-1) / scale).mean()) < vertex_limit
    # Weights sum to 1: moving the map moves the points.
    torch.testing.assert_close(grid.landmarks(maps + 7.0), grid.landmarks(maps) + 7.0, atol=1e-3, rtol=0)


def test_a_model_that_cannot_be_unwrapped_is_refused(model: MorphableModel) -> None:
    fields: dict[str, Any] = {
        key: getattr(model, key)
        for key in ("mean", "faces", "identity_basis", "identity_std", "expression_basis", "expression_std")
    }
    with pytest.raises(ConfigurationError, match="has no UV map"):
        UVGrid(MorphableModel("bare", **fields), 32)
    fields.update(uv=model.uv, uv_faces=model.uv_faces, uv_face_ids=model.uv_face_ids)
    with pytest.raises(ConfigurationError, match="has no landmarks 'bfm'"):
        UVGrid(MorphableModel("bare", **fields), 32)
    assert model.uv_face_ids is not None
    outside = next(i for i in range(len(model.faces)) if i not in set(model.uv_face_ids.tolist()))
    landmarks = {"bfm": (torch.tensor([outside]), torch.tensor([[1.0, 0.0, 0.0]]))}
    with pytest.raises(DataError, match="outside its UV map"):
        UVGrid(MorphableModel("bare", **fields, landmark_embeddings=landmarks), 32)
