"""Target maps: closed forms on a sphere and round trips on the embedded model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import euler_to_matrix, weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import sample_images
from tests.rendering.gradients import gradients

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
    known, uv = embedded.faces[embedded.uv_face_ids].reshape(-1), embedded.uv[embedded.uv_faces.reshape(-1)]
    which = torch.arange(3).repeat_interleave(known.numel())
    read = sample_images(position, uv.repeat(3, 1), which).reshape(3, -1, 3)
    error = (read - vertices[:, known])[..., :2].norm(dim=-1)
    assert error.mean() < 0.2
    assert (error < 0.5).float().mean() > 0.95
    triangle, weights = embedded.landmark_embeddings["bfm"]
    on_map = torch.nonzero(torch.isin(triangle, embedded.uv_face_ids)).squeeze(1)
    assert len(on_map) > 60
    place = {face: row for row, face in enumerate(embedded.uv_face_ids.tolist())}
    corners = embedded.uv[embedded.uv_faces[[place[face] for face in triangle[on_map].tolist()]]]
    uv, which = (corners * weights[on_map, :, None]).sum(1), torch.arange(3).repeat_interleave(len(on_map))
    read = sample_images(position, uv.repeat(3, 1), which).reshape(3, -1, 3)
    error = (read - embedded.landmarks(vertices)[:, on_map])[..., :2].norm(dim=-1)
    assert error.max() < 0.5


def test_position_map_is_a_weighted_sum_that_passes_gradients(embedded: MorphableModel, maps: FaceMaps) -> None:
    vertices = some_faces(embedded, (0.3,))[2].requires_grad_(True)
    maps.position_map(vertices).sum().backward()
    assert vertices.grad.sum().item() == pytest.approx(3 * 128 * 128, rel=1e-4)


@pytest.mark.parametrize("target", ["position_map", "pncc", "offsets"])
def test_gradients_of_targets_are_finite_differences(
    embedded: MorphableModel, sphere_model: MorphableModel, target: str
) -> None:
    """In coefficients and pose, in double precision; images inside a sphere's outline, which has no gradient."""
    model = copy.deepcopy(embedded if target == "position_map" else sphere_model).double()
    maps = FaceMaps(model, 48, position_map_size=24)
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    inside = ((x - 23.2) ** 2 + (y - 24.1) ** 2).sqrt() < 15.0
    weights = torch.randn(3, 24, 24, generator=generator, dtype=torch.float64)
    if target != "position_map":
        weights = torch.randn(3, 48, 48, generator=generator, dtype=torch.float64) * inside
    start = {
        "identity": torch.tensor([0.3, -0.2], dtype=torch.float64),
        "expression": torch.tensor([0.4], dtype=torch.float64),
        "pose": torch.tensor([0.25, 0.3, -0.4, 0.2, 23.2, 24.1], dtype=torch.float64),
    }

    def loss(p: dict[str, Tensor]) -> Tensor:
        identity, expression = (
            torch.nn.functional.pad(p[key], (0, count - p[key].numel()))[None]
            for key, count in (("identity", model.num_identity), ("expression", model.num_expression))
        )
        shapes = model.vertices(identity, expression)
        vertices = weak_perspective(shapes, p["pose"][None])
        if target == "position_map":
            return (maps.position_map(vertices)[0] * weights).sum()
        images = dict(zip(("pncc", "offsets"), maps.pncc(maps.face_region(vertices), shapes)))
        return (images[target][0] * weights).sum()

    for key, analytic, numeric in gradients(loss, start, dict.fromkeys(start, 1e-6)):
        assert numeric.norm() > 0.1, key
        assert (analytic - numeric).norm() < 1e-4 * numeric.norm(), (key, analytic, numeric)


def test_normals_of_a_sphere(sphere_model: MorphableModel) -> None:
    maps = FaceMaps(sphere_model, SIZE, 16)
    vertices = weak_perspective(sphere_model.mean[None], torch.tensor([[0.5, 0.4, 0.1, 0.0, 47.3, 47.6]]))
    raster = maps.face_region(vertices)
    normals = maps.normal_map(raster, maps.view_normals(vertices))[0]
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    u, v = (x - 47.3) / 40.0, -(y - 47.6) / 40.0
    inside = u * u + v * v < 0.8
    z = (1 - u * u - v * v).clamp_min(0).sqrt()
    assert (normals - torch.stack((u, v, z)))[:, inside].abs().max() < 0.02


MIRRORED = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
"""Landmarks 0-35 with left and right exchanged."""


def turned(model: MorphableModel, pitch: float, yaw: float, roll: float = 0.0) -> Tensor:
    """The mean face turned by degrees, ``[1, V, 3]`` in the image frame."""
    angles = torch.tensor([pitch, yaw, roll]).deg2rad()
    return weak_perspective(
        model.mean[None], torch.cat((torch.tensor([0.33]), angles, torch.tensor([48.0, 50.0])))[None]
    )


def test_a_frontal_face_shows_its_whole_jaw_line(embedded: MorphableModel, maps: FaceMaps) -> None:
    """Which is its silhouette: single normals there turn towards the viewer or away by chance."""
    for pitch, roll in ((0.0, 0.0), (0.0, 40.0), (4.0, 0.0), (-2.0, 0.0)):
        assert maps.visible_by_normal(turned(embedded, pitch, 0.0, roll)).all(), (pitch, roll)
    # From behind nothing but that silhouette is.
    assert not maps.visible_by_normal(turned(embedded, 0.0, 180.0))[:, 17:].any()


@pytest.mark.parametrize("yaw", [20.0, 40.0, 60.0, 75.0])
def test_turning_hides_the_far_side_and_not_the_near_one(embedded: MorphableModel, maps: FaceMaps, yaw: float) -> None:
    """Nose to the image left (+yaw): the subject's left side (landmarks 8-16, 22-26, 42-47) is seen."""
    left, right = (maps.visible_by_normal(turned(embedded, 0.0, side * yaw))[0] for side in (1.0, -1.0))
    assert bool(left[8:17].all())
    assert bool(left[22:27].all())
    assert bool(left[42:48].all())
    assert torch.equal(right[:36], left[:36][MIRRORED])
    if yaw >= 40.0:  # one run of hidden points from the far ear on
        hidden = int((~left[:17]).sum())
        assert hidden >= {40.0: 6, 60.0: 7, 75.0: 8}[yaw]
        assert not bool(left[:hidden].any())
    if yaw >= 60.0:
        assert not bool(left[17:19].any())


def test_visibility_by_depth(maps: FaceMaps) -> None:
    depth = torch.full((1, 1, 4, 4), -1e6)
    depth[0, 0, 1, 2] = 5.0
    points = torch.tensor([[[2.2, 0.8, 4.5], [2.0, 1.0, 2.0], [0.0, 0.0, -3.0], [7.0, 0.0, 0.0]]])
    assert maps.visible_by_depth(points, depth, torch.tensor([[1.0]])).tolist() == [[True, False, True, False]]


def test_models_without_uv_or_regions_are_refused_by_name(sphere_model: MorphableModel) -> None:
    maps = FaceMaps(sphere_model, 32, 16)
    with pytest.raises(ConfigurationError, match="'sphere' has no UV map"):
        maps.position_map(sphere_model.mean[None])


def test_a_model_without_landmarks_is_refused_by_name(embedded: MorphableModel) -> None:
    model = MorphableModel(
        name="bare", mean=embedded.mean, faces=embedded.faces, identity_basis=embedded.identity_basis[:1],
        identity_std=[1.0], expression_basis=embedded.expression_basis[:1], expression_std=[1.0], uv=embedded.uv,
        uv_faces=embedded.uv_faces, uv_face_ids=embedded.uv_face_ids, region_masks=embedded.region_masks,
    )  # fmt: skip
    maps = FaceMaps(model, 32, 16)
    assert maps.position_map(model.mean[None]).shape == (1, 3, 16, 16)
    with pytest.raises(ConfigurationError, match="'bare' has no landmarks 'bfm'"):
        maps.visible_by_normal(model.mean[None])


def test_double_precision_gives_the_numbers_of_single(embedded: MorphableModel, maps: FaceMaps) -> None:
    shapes, _, vertices = some_faces(embedded, (-1.3, 0.2))
    precise = FaceMaps(copy.deepcopy(embedded).double(), SIZE, position_map_size=128)

    def everything(maps: FaceMaps, shapes: Tensor, vertices: Tensor) -> dict[str, Tensor]:
        raster = maps.face_region(vertices)
        pncc, offsets, mask = maps.pncc(raster, shapes)
        normals = maps.normal_map(raster, maps.view_normals(vertices))
        position = maps.position_map(vertices)
        return {"pncc": pncc, "offsets": offsets, "mask": mask, "normals": normals, "position": position}

    ours = everything(maps, shapes, vertices)
    double = everything(precise, shapes.double(), vertices.double())
    for key, value in double.items():
        assert value.dtype == torch.float64, key
        scale = ours[key].abs().max()
        assert (value - ours[key]).abs().max() < 1e-4 * scale, key
    assert torch.equal(precise.visible_by_normal(vertices.double()), maps.visible_by_normal(vertices))
