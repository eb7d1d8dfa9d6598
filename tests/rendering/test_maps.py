"""Target maps: closed forms on a sphere and round trips on the embedded model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import euler_to_matrix, weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import sample_images

SIZE = 96


@pytest.fixture(scope="module")
def maps(embedded: MorphableModel) -> FaceMaps:
    return FaceMaps(embedded, SIZE, position_map_size=128)


def some_faces(model: MorphableModel, yaw: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Random shapes (mm), poses and image-frame vertices, one for each yaw in radians."""
    generator = torch.Generator().manual_seed(1)
    count = len(yaw)
    expression = torch.rand(count, model.num_expression, generator=generator) * 0.3
    shapes = model.vertices(torch.randn(count, model.num_identity, generator=generator), expression)
    pose = torch.tensor([[0.33, 0.1, y, -0.2, 46.4, 50.3] for y in yaw])
    return shapes, pose, weak_perspective(shapes, pose)


def test_pncc_and_offsets_of_a_sphere_have_their_closed_form(sphere_model: MorphableModel) -> None:
    """Stretched by 10% along x: the pixel at x shows the mean's point x / 1.1, which has moved by 0.1 of it."""
    maps = FaceMaps(sphere_model, SIZE, 16)
    shapes = sphere_model.vertices(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1))
    angles, scale, centre = torch.tensor([0.2, 0.5, -0.3]), 0.5, (47.2, 45.9)
    vertices = weak_perspective(shapes, torch.tensor([[scale, *angles, *centre]]))
    pncc, offsets, mask = (image[0].permute(1, 2, 0) for image in maps.pncc(maps.face_region(vertices), shapes))

    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    # Solve for the depth of the ellipsoid (x/1.1)^2 + y^2 + z^2 = 80^2 along each pixel's ray.
    turn = euler_to_matrix(angles)
    squeeze = torch.tensor([1 / 1.1, 1.0, 1.0])
    start = (
        torch.stack(((x - centre[0]) / scale, -(y - centre[1]) / scale, torch.zeros_like(x)), dim=-1) @ turn
    ) * squeeze
    ray = turn[2] * squeeze
    a, b, c = (ray * ray).sum(), (start * ray).sum(-1), (start * start).sum(-1) - 80.0**2
    root = b * b - a * c
    inside = root > 0.15 * root.max()
    expected = start + ((-b + root.clamp_min(0).sqrt()) / a)[..., None] * ray
    assert mask[inside].min() == 1.0
    assert (pncc - expected)[inside].norm(dim=-1).max() < 0.6
    assert (offsets - 0.1 * expected * torch.tensor([1.0, 0, 0]))[inside].abs().max() < 0.1
    assert pncc[mask[..., 0] == 0].abs().sum() == 0.0


def test_pncc_plus_offsets_project_to_their_own_pixels(embedded: MorphableModel, maps: FaceMaps) -> None:
    """The surface that the two images add up to is the rendered one."""
    shapes, pose, vertices = some_faces(embedded, (-1.3, 0.2))
    pncc, offsets, mask = maps.pncc(maps.face_region(vertices), shapes)
    for i in range(2):
        rows, columns = torch.nonzero(mask[i, 0], as_tuple=True)
        assert rows.numel() > 800
        surface = (pncc + offsets)[i][:, rows, columns].T
        place = weak_perspective(surface, pose[i])
        error = (place[:, :2] - torch.stack((columns, rows), dim=1)).norm(dim=-1)
        # PyTorch3D adds 1e-8 to a triangle's area, which shows on slivers.
        assert error.median() < 1e-3
        assert error.max() < 0.1


def test_position_map_gives_back_vertices_and_landmarks(embedded: MorphableModel) -> None:
    """Hidden parts included, at profile; landmarks within half a pixel of a 256 pixel picture."""
    maps = FaceMaps(embedded, 256, position_map_size=256)
    shapes, pose, _ = some_faces(embedded, (-1.4, 0.0, 0.8))
    pose = pose * torch.tensor([256 / SIZE, 1, 1, 1, 256 / SIZE, 256 / SIZE])
    vertices = weak_perspective(shapes, pose)
    position = maps.position_map(vertices)
    known, uv = maps.vertex_uv()
    which = torch.arange(3).repeat_interleave(known.numel())
    read = sample_images(position, uv.repeat(3, 1), which).reshape(3, -1, 3)
    error = (read - vertices[:, known])[..., :2].norm(dim=-1)
    assert error.mean() < 0.2
    assert (error < 0.5).float().mean() > 0.95
    landmarks = embedded.landmarks(vertices)
    read = sample_images(position, maps.landmark_uv().repeat(3, 1), torch.arange(3).repeat_interleave(68)).reshape(
        3, 68, 3
    )
    error = (read - landmarks)[..., :2].norm(dim=-1)
    assert error.max() < 0.5


def test_position_map_is_a_weighted_sum_that_passes_gradients(embedded: MorphableModel, maps: FaceMaps) -> None:
    vertices = some_faces(embedded, (0.3,))[2].requires_grad_(True)
    maps.position_map(vertices).sum().backward()
    assert vertices.grad.sum().item() == pytest.approx(3 * 128 * 128, rel=1e-4)


def test_weight_mask_is_16_4_3_0_and_the_neck_really_0(embedded: MorphableModel, maps: FaceMaps) -> None:
    weights = maps.weight_mask()
    assert weights.shape == (1, 128, 128)
    assert weights.unique().tolist() == [0.0, 3.0, 4.0, 16.0]
    assert 60 <= int((weights == 16).sum()) <= 68
    vertices, uv = maps.vertex_uv()
    texel = (uv * 128 - 0.5).round().long().clamp(0, 127)
    at_vertex = weights[0][texel[:, 1], texel[:, 0]]
    neck = embedded.region_masks["neck"][vertices]
    nose = embedded.region_masks["nose"][vertices]
    assert (at_vertex[neck] == 0).float().mean() > 0.9
    assert (at_vertex[nose] >= 4).float().mean() > 0.95
    assert weights[maps.uv_mask() == 0].max() <= 16.0


def test_shading_and_mask_under_a_frontal_light(sphere_model: MorphableModel) -> None:
    maps = FaceMaps(sphere_model, SIZE, 16)
    vertices = weak_perspective(sphere_model.mean[None], torch.tensor([[0.5, 0.0, 0.0, 0.0, 47.3, 47.6]]))
    shading, mask = maps.shading(maps.face_region(vertices), maps.view_normals(vertices))
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    square = ((x - 47.3) ** 2 + (y - 47.6) ** 2) / 40.0**2
    assert (shading[0, 0] - (1 - square).clamp_min(0).sqrt())[square < 0.8].abs().max() < 0.01
    assert mask.unique().tolist() == [0.0, 1.0]
    assert torch.equal(mask[0, 0] > 0, shading[0, 0] > 0)


def test_depth_and_normals_of_a_sphere(sphere_model: MorphableModel) -> None:
    maps = FaceMaps(sphere_model, SIZE, 16)
    vertices = weak_perspective(sphere_model.mean[None], torch.tensor([[0.5, 0.4, 0.1, 0.0, 47.3, 47.6]]))
    raster = maps.face_region(vertices)
    depth, normals = maps.depth(raster, vertices)[0, 0], maps.normal_map(raster, maps.view_normals(vertices))[0]
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    u, v = (x - 47.3) / 40.0, -(y - 47.6) / 40.0
    inside = u * u + v * v < 0.8
    z = (1 - u * u - v * v).clamp_min(0).sqrt()
    assert (depth - 40.0 * z)[inside].abs().max() < 0.2
    assert (normals - torch.stack((u, v, z)))[:, inside].abs().max() < 0.02


def test_half_of_the_landmarks_are_seen_in_profile(embedded: MorphableModel, maps: FaceMaps) -> None:
    """Nose to the image left (+yaw): the subject's left side (landmarks 8-16, 22-26, 42-47) is seen."""
    shapes = embedded.mean.expand(3, -1, -1)
    pose = torch.tensor([[0.33, 0.0, yaw, 0.0, 48.0, 50.0] for yaw in (0.0, 1.3, -1.3)])
    frontal, left, right = maps.visible_by_normal(weak_perspective(shapes, pose))
    assert bool(frontal[17:].float().mean() > 0.8)
    assert bool(left[9:17].all())
    assert bool(left[22:27].all())
    assert not bool(left[0:7].any())
    assert not bool(left[17:19].any())
    mirrored = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31)]
    assert torch.equal(right[:31], left[mirrored])


def test_visibility_by_depth(maps: FaceMaps) -> None:
    depth = torch.full((1, 1, 4, 4), -1e6)
    depth[0, 0, 1, 2] = 5.0
    points = torch.tensor([[[2.2, 0.8, 4.5], [2.0, 1.0, 2.0], [0.0, 0.0, -3.0], [7.0, 0.0, 0.0]]])
    assert maps.visible_by_depth(points, depth, torch.tensor([[1.0]])).tolist() == [[True, False, True, False]]


def test_models_without_uv_or_regions_are_refused_by_name(sphere_model: MorphableModel) -> None:
    maps = FaceMaps(sphere_model, 32, 16)
    with pytest.raises(ConfigurationError, match="'sphere' has no UV map"):
        maps.position_map(sphere_model.mean[None])
