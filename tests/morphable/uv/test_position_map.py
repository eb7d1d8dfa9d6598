"""One position map: its texels against an independent search, and the same values wherever it is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.components.dense import DenseTargets
from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import PositionMap, UVGrid
from lightning_faces.morphable.uv.texels import continued, texel_image, texel_triangles
from lightning_faces.rendering.maps import FaceMaps


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def faces(model: MorphableModel, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(count, model.num_identity, generator=generator)
    return model.vertices(identity, torch.rand(count, model.num_expression, generator=generator) * 0.3)


def search(uv: np.ndarray, triangles: np.ndarray, place: np.ndarray) -> list[int]:
    """The triangles that a place in UV lies in, by the signs of three areas."""
    sides = []
    for k in range(3):
        start, end = uv[triangles[:, k]], uv[triangles[:, (k + 1) % 3]]
        sides.append(
            (end[:, 0] - start[:, 0]) * (place[1] - start[:, 1]) - (end[:, 1] - start[:, 1]) * (place[0] - start[:, 0])
        )
    same = np.stack(sides)
    return [int(row) for row in np.flatnonzero((same >= 0).all(0) | (same <= 0).all(0))]


def test_a_texel_shows_the_triangle_of_its_centre(model: MorphableModel) -> None:
    assert model.uv is not None
    assert model.uv_faces is not None
    size = 24
    triangle, weights = texel_triangles(model.uv, model.uv_faces, size)
    uv, uv_faces = model.uv.double().numpy(), model.uv_faces.numpy()
    for texel in range(size * size):
        place = np.array([(texel % size + 0.5) / size, (texel // size + 0.5) / size])
        expected = search(uv, uv_faces, place)
        if triangle[texel] < 0:
            assert not expected
            assert not weights[texel].any()
        else:
            assert int(triangle[texel]) in expected
            read = (uv[uv_faces[triangle[texel]]] * weights[texel].numpy()[:, None]).sum(0)
            np.testing.assert_allclose(read, place, atol=1e-12)
    assert int((triangle >= 0).sum()) == 546


def test_the_last_of_several_triangles_is_shown() -> None:
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    triangle, weights = texel_image(uv, np.array([[0, 1, 2], [0, 1, 2], [1, 3, 2], [0, 0, 0]]), 4)
    assert triangle.tolist() == [[1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 2], [2, 2, 2, 2]]
    np.testing.assert_allclose(weights[0, 0], [0.75, 0.125, 0.125])


def test_off_the_map_the_nearest_triangle_goes_on() -> None:
    """A plane stays a plane up to 1.5 texels off the map, and its border's value further out."""
    uv = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]], dtype=torch.float64)
    uv_faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    triangle, weights = continued(uv, uv_faces, *texel_triangles(uv, uv_faces, 16))
    read = (uv[uv_faces[triangle]] * weights[..., None]).sum(1).reshape(16, 16, 2)
    texel = (torch.arange(16).double() + 0.5) / 16
    expected = texel.clamp(0.25 - 1.5 / 16, 0.75 + 1.5 / 16)
    torch.testing.assert_close(read[8, :, 0], expected)
    torch.testing.assert_close(read[:, 8, 1], expected)


def test_values_and_gradients_are_those_of_a_sum_over_corners(model: MorphableModel) -> None:
    spread = PositionMap(model, 32)
    vertices = faces(model).double().requires_grad_()
    maps = spread(vertices)
    plain = (vertices[:, spread.corners] * spread.weights[..., None]).sum(2).reshape(2, 32, 32, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps, plain, atol=1e-12, rtol=0)
    given = torch.randn(maps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((value * given).sum(), vertices, retain_graph=True)[0] for value in (maps, plain)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)
    assert not maps[..., ~spread.covered].any()


@pytest.mark.parametrize("size", [32, 64])
def test_renderer_data_sets_and_prnet_share_it(model: MorphableModel, size: int) -> None:
    vertices = faces(model)
    grid, rendered = UVGrid(model, size), FaceMaps(model, 64, size).position_map(vertices)
    maps = grid.position_map(vertices)
    assert torch.equal(maps[..., grid.mask], rendered[..., grid.mask])
    assert rendered[..., ~grid.mask].abs().amax() > 50.0
    keys = ("mean", "faces", "uv", "uv_faces", "uv_face_ids", "identity_basis", "identity_std")
    fields = {key: getattr(model, key) for key in keys}
    fields |= {"expression_basis": model.expression_basis[:29], "expression_std": model.expression_std[:29]}
    small = MorphableModel("small", **fields, landmark_embeddings=model.landmark_embeddings)
    targets = DenseTargets(small, frozenset({"position_map"}), size, None)
    pose = np.array([1.0, 0.1, -0.4, 0.05, 30.0, 40.0], np.float32)
    given = targets(np.linspace(-2, 2, 199), np.linspace(-1, 1, 29), pose, 3.0, (64, 64))["position_map"]
    _, placed = targets.vertices(np.linspace(-2, 2, 199), np.linspace(-1, 1, 29), pose, 3.0)
    np.testing.assert_array_equal(given, grid.position_map(placed[None])[0].numpy())


def test_a_model_without_a_uv_map_is_named(model: MorphableModel) -> None:
    keys = ("mean", "faces", "identity_basis", "identity_std", "expression_basis", "expression_std")
    bare = MorphableModel("bare", **{key: getattr(model, key) for key in keys})
    with pytest.raises(ConfigurationError, match="'bare' has no UV map"):
        PositionMap(bare, 32)
