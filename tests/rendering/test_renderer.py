"""Pictures against closed forms: a sphere, known projections, finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import euler_to_matrix, weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceRenderer, PhongLight, rasterize_image
from lightning_faces.rendering.renderer import Raster, VertexNormals, _rasterize_on_device, sample_images, to_view
from tests.rendering.gradients import gradients

RADIUS, SIZE, SCALE = 80.0, 96, 0.5
CENTRE = (46.3, 49.1)


def sphere_pixels(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Unit normals ``[H, W, 3]`` (view frame) of a sphere of radius 40 px at CENTRE, and where it is well inside."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    nx, ny = (x - CENTRE[0]) / (RADIUS * SCALE), -(y - CENTRE[1]) / (RADIUS * SCALE)
    square = nx**2 + ny**2
    return torch.stack((nx, ny, (1 - square).clamp_min(0).sqrt()), dim=-1), square < 0.9**2


def sphere_vertices(model: MorphableModel, angles: tuple[float, float, float] = (0.3, -0.7, 0.2)) -> Tensor:
    return weak_perspective(model.mean[None], torch.tensor([[SCALE, *angles, *CENTRE]]))


def test_sphere_has_the_phong_shading_of_richardson(sphere_model: MorphableModel) -> None:
    """Section 6.1 with shininess 10: I = albedo (ka + kd max(n.l, 0)) + ks max(r.v, 0)^10, r the mirrored light."""
    direction = torch.tensor([0.4, 0.5, 0.8])
    light = PhongLight(direction[None] * 3.0, torch.tensor([0.5]), torch.tensor([0.7]), torch.tensor([0.3]))
    albedo = torch.tensor([0.6, 0.4, 0.2]).expand(1, sphere_model.num_vertices, 3)
    image, mask = FaceRenderer(sphere_model, SIZE)(sphere_vertices(sphere_model), albedo, light)

    normals, inside = sphere_pixels()
    unit = direction / direction.norm()
    cosine = (normals * unit).sum(-1)
    mirrored = 2 * cosine[..., None] * normals - unit
    highlight = torch.where(cosine > 0, mirrored[..., 2].clamp_min(0), 0.0) ** 10
    expected = torch.tensor([0.6, 0.4, 0.2]) * (0.5 + 0.7 * cosine.clamp_min(0))[..., None] + 0.3 * highlight[..., None]

    assert mask[0, 0][inside].min() == 1.0
    assert (mask.sum() / (math.pi * (RADIUS * SCALE) ** 2)).item() == pytest.approx(1.0, abs=0.01)
    error = (image[0].permute(1, 2, 0) - expected)[inside].abs()
    assert error.max() < 0.02
    assert error.mean() < 0.002


def test_every_pixel_shows_the_surface_point_that_projects_there(embedded: MorphableModel) -> None:
    """Interpolating the vertices' own image coordinates gives back the pixel: no shift, no mirror, non-square too."""
    pose = torch.tensor([[0.5, 0.2, -0.9, 0.3, 40.2, 50.7]])
    vertices = weak_perspective(embedded.mean[None], pose)
    raster = rasterize_image(vertices, embedded.faces, (110, 90))
    place = raster.interpolate(vertices, embedded.faces)
    assert raster.shape == (1, 110, 90)
    assert raster.pixel.numel() > 3000
    column, row = raster.pixel % 90, raster.pixel // 90
    error = (place[:, :2] - torch.stack((column, row), dim=1)).norm(dim=-1)
    # PyTorch3D adds 1e-8 to a triangle's area, which shows on slivers.
    assert error.median() < 1e-3
    assert error.max() < 0.1


def test_a_known_rotation_moves_points_where_the_matrix_says(sphere_model: MorphableModel) -> None:
    angles = (0.3, -0.7, 0.2)
    vertices = sphere_vertices(sphere_model, angles)[0]
    turned = sphere_model.mean @ euler_to_matrix(torch.tensor(angles)).T
    assert torch.allclose(vertices[:, 0], SCALE * turned[:, 0] + CENTRE[0], atol=1e-4)
    assert torch.allclose(vertices[:, 1], CENTRE[1] - SCALE * turned[:, 1], atol=1e-4)
    raster = rasterize_image(vertices[None], sphere_model.faces, SIZE)
    shown = raster.to_image(raster.interpolate(sphere_model.mean, sphere_model.faces))[0].permute(1, 2, 0)
    normals, inside = sphere_pixels()
    expected = RADIUS * normals @ euler_to_matrix(torch.tensor(angles))  # R^-1 n, the object point
    assert (shown - expected)[inside].norm(dim=-1).max() < 0.5  # mm; the icosphere itself is 0.2 mm off the sphere


@pytest.mark.parametrize(("size", "cull"), [((50, 70), False), ((70, 50), True)])
def test_a_devices_rasteriser_run_on_the_cpu_shows_the_same(
    embedded: MorphableModel, size: tuple[int, int], cull: bool
) -> None:
    """Pixels, triangles, weights and gradients of PyTorch3D's rasteriser and of the scan lines, for two at once."""
    pose = torch.tensor([[0.35, 0.2, -0.9, 0.3, 30.2, 32.7], [0.31, 0.0, 0.5, 0.0, 30.0, 36.0]])
    vertices = weak_perspective(embedded.mean.expand(2, -1, -1), pose)
    attributes = torch.stack((embedded.mean, embedded.mean.flip(0)))  # not the same in both images
    shown, rasters = [], []
    for rasterize in (rasterize_image, _rasterize_on_device):
        leaf = vertices.clone().requires_grad_(True)
        raster: Raster = rasterize(leaf, embedded.faces, size, cull)
        rasters.append(raster)
        assert raster.shape == (2, *size)
        values = [raster.interpolate(value, embedded.faces) for value in (attributes, leaf)]
        values += [raster.interpolate(embedded.mean, embedded.faces.clone()), raster.face[:, None].float()]
        image = raster.to_image(torch.cat(values, dim=1), -1.0)
        shown.append(image.detach())
        (gradient,) = torch.autograd.grad(image[:, 0].sum(), leaf)
        shown.append(gradient)
    ours, our_gradient, theirs, their_gradient = shown
    same = ours[:, -1] == theirs[:, -1]
    assert (ours[:, -1] >= 0).float().mean() > 0.2
    assert (~same).float().mean() < 1e-3
    difference = (ours - theirs).abs().amax(1)[same]
    # PyTorch3D adds 1e-8 to a triangle's area, which shows on slivers.
    assert difference.median() < 1e-3
    assert (difference > 0.1).float().mean() < 1e-3
    # mm at a vertex that moves by a pixel.
    error = (our_gradient - their_gradient)[:, :, :2].norm(dim=-1)
    assert (error > 0.02 * our_gradient.norm(dim=-1).max()).float().mean() < 2e-3


def test_edges_through_pixel_centres_leave_no_holes() -> None:
    """A mesh that is symmetric to the picture's middle, on either path: PyTorch3D leaves such pixels uncovered."""
    # Four squares of two triangles: level, upright and slanting edges.
    vertices = torch.tensor([[[float(x), float(y), 0.0] for y in (0, 4, 8) for x in (0, 4, 8)]])
    squares = torch.tensor([[i, i + 1, i + 3, i + 4] for i in (0, 1, 3, 4)])
    faces = torch.cat((squares[:, [0, 2, 1]], squares[:, [1, 2, 3]]))
    for rasterize in (rasterize_image, _rasterize_on_device):
        raster = rasterize(vertices, faces, (9, 9), False)
        covered = torch.zeros(9, 9).index_put((raster.pixel // 9, raster.pixel % 9), torch.tensor(1.0))
        assert bool(covered[1:8, 1:8].all()), rasterize


def test_the_nearer_surface_hides_the_farther(sphere_model: MorphableModel) -> None:
    vertices = sphere_vertices(sphere_model)
    both = torch.cat((vertices, vertices + torch.tensor([0.0, 0.0, 200.0])), dim=1)
    faces = torch.cat((sphere_model.faces, sphere_model.faces + sphere_model.num_vertices))
    raster = rasterize_image(both, faces, SIZE)
    assert bool((raster.face >= len(sphere_model.faces)).all())


def test_back_faces_are_never_in_front_of_a_closed_surface(sphere_model: MorphableModel) -> None:
    vertices = sphere_vertices(sphere_model)
    assert torch.equal(
        rasterize_image(vertices, sphere_model.faces, SIZE).face,
        rasterize_image(vertices, sphere_model.faces, SIZE, cull_backfaces=True).face,
    )


def test_batch_gives_the_images_of_its_members(embedded: MorphableModel) -> None:
    pose = torch.tensor([[0.3, 0.2, -0.9, 0.3, 30.2, 32.7], [0.3, 0.0, 0.5, 0.0, 30.0, 36.0]])
    vertices = weak_perspective(embedded.mean.expand(2, -1, -1), pose)
    renderer = FaceRenderer(embedded, 64)
    colour = embedded.albedo(torch.tensor([[0.5] * len(embedded.albedo_std), [-0.5] * len(embedded.albedo_std)]))
    light = PhongLight.random(2, torch.Generator().manual_seed(3))
    together, _ = renderer(vertices, colour, light)
    for i in range(2):
        one = PhongLight(*(getattr(light, k)[i : i + 1] for k in ("direction", "ambient", "diffuse", "specular")))
        alone, _ = renderer(vertices[i : i + 1], colour[i : i + 1], one)
        assert torch.allclose(alone[0], together[i], atol=1e-5)


def test_random_lights_are_richardsons() -> None:
    """Section 6.1: ambient, diffuse and specular around 0.5, 0.7 and 0.05; directions over the frontal half sphere."""
    light = PhongLight.random(4000, torch.Generator().manual_seed(0))
    for name, mean in (("ambient", 0.5), ("diffuse", 0.7), ("specular", 0.05)):
        drawn = getattr(light, name)
        assert drawn.shape == (4000,)
        assert drawn.min() >= 0.0
        assert drawn.mean().item() == pytest.approx(mean, rel=0.02), name
        assert drawn.std().item() == pytest.approx(0.2 * mean, rel=0.05), name
    x, y, z = light.direction.T
    assert torch.allclose(light.direction.norm(dim=1), torch.ones(4000), atol=1e-5)
    # Of a sphere, every slice of the same thickness has the same area (Archimedes); half of the sphere is in front.
    for axis, low, high in ((x, -1.0, 1.0), (y, -1.0, 1.0), (z, 0.0, 1.0)):
        assert low <= axis.min() < low + 0.01
        counts = torch.histc(axis, 10, low, high) / 4000
        assert (counts - 0.1).abs().max() < 0.02
    everything = torch.stack((light.ambient, light.diffuse, light.specular, x, y, z))
    assert (torch.corrcoef(everything) - torch.eye(6)).abs().max() < 0.07


def test_vertex_normals_equal_the_models(embedded: MorphableModel) -> None:
    shapes = embedded.mean.expand(2, -1, -1) * torch.tensor([1.0, 1.3]).reshape(2, 1, 1)
    ours = VertexNormals(embedded.faces, embedded.num_vertices)(shapes)
    assert torch.allclose(ours, embedded.vertex_normals(shapes), atol=1e-4)


def test_texture_lookup_is_grid_samples() -> None:
    images = torch.rand(2, 3, 7, 5)
    place = torch.rand(40, 2) * 1.2 - 0.1
    which = torch.arange(40) % 2
    ours = sample_images(images, place, which)
    for i in range(2):
        grid = (place[which == i] * 2 - 1)[None, None]
        theirs = torch.nn.functional.grid_sample(images[i : i + 1], grid, padding_mode="border", align_corners=False)
        assert torch.allclose(ours[which == i], theirs[0, :, 0].T, atol=1e-5)


def test_a_raised_left_eyebrow_appears_on_the_images_right(embedded: MorphableModel) -> None:
    expression = torch.zeros(2, embedded.num_expression)
    expression[1, embedded.expression_names.index("browOuterUpLeft")] = 1.0
    shapes = embedded.vertices(torch.zeros(2, embedded.num_identity), expression)
    vertices = weak_perspective(shapes, torch.tensor([[0.5, 0.0, 0.0, 0.0, 64.3, 70.2]]).expand(2, 6))
    rise = embedded.landmarks(vertices)[0] - embedded.landmarks(vertices)[1]
    assert rise[22:27, 1].mean() > 1.0  # the subject's left brow, landmarks 22-26, goes up (y is down) ...
    assert rise[17:22, 1].abs().max() < 0.2
    image, _ = FaceRenderer(embedded, 128)(vertices, torch.ones(2, embedded.num_vertices, 3), PhongLight.frontal(2))
    change = (image[0] - image[1]).abs().sum(dim=(0, 1))
    assert change[65:].sum() > 20 * change[:64].sum()  # ... and is on the right of the picture


def test_landmarks_lie_on_the_rendered_surface(embedded: MorphableModel) -> None:
    vertices = weak_perspective(embedded.mean[None], torch.tensor([[1.0, 0.0, 0.0, 0.0, 127.6, 140.3]]))
    landmarks = embedded.landmarks(vertices)[0]
    raster = rasterize_image(vertices, embedded.faces, 256)
    depth = raster.to_image(raster.interpolate(vertices[..., 2:], embedded.faces))[0, 0]
    inner = landmarks[[*range(17, 36), 51, 57]]
    shown = depth[inner[:, 1].round().long(), inner[:, 0].round().long()]
    assert (shown - inner[:, 2]).abs().max() < 2.0


def test_gradients_agree_with_finite_differences(sphere_model: MorphableModel) -> None:
    """In coefficients, pose, light and albedo, away from the silhouette (where no image gradient exists)."""
    _, inside = sphere_pixels()
    weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * inside
    weights = torch.nn.functional.avg_pool2d(weights[None], 9, 1, 4)[0] * inside
    renderer = FaceRenderer(sphere_model, SIZE)
    colour = 0.5 + 0.4 * torch.sin(sphere_model.mean / 20.0)
    start = {
        "coefficients": torch.tensor([0.3, -0.2, 0.4]),
        "pose": torch.tensor([SCALE, 0.3, -0.4, 0.2, *CENTRE]),
        "light": torch.tensor([0.3, 0.4, 0.9, 0.5, 0.7, 0.2]),
        "albedo": torch.tensor([1.0, 0.8, 0.6]),
    }
    steps = {"coefficients": 5e-2, "pose": 1e-2, "light": 1e-2, "albedo": 1e-1}

    def loss(p: dict[str, Tensor]) -> Tensor:
        shape = sphere_model.vertices(p["coefficients"][None, :2], p["coefficients"][None, 2:])
        vertices = weak_perspective(shape, p["pose"][None])
        light = PhongLight(p["light"][None, :3], *p["light"][3:, None])
        image, _ = renderer(vertices, (colour * p["albedo"])[None], light)
        return (image[0] * weights).double().sum()

    for key, analytic, numeric in gradients(loss, start, steps):
        assert (analytic - numeric).norm() < 0.03 * numeric.norm(), (key, analytic, numeric)


def test_albedo_gradient_reaches_the_texture(embedded: MorphableModel) -> None:
    coefficients = torch.zeros(1, len(embedded.albedo_std), requires_grad=True)
    vertices = weak_perspective(embedded.mean[None], torch.tensor([[0.3, 0.0, 0.4, 0.0, 31.7, 36.2]]))
    image, _ = FaceRenderer(embedded, 64)(vertices, embedded.albedo(coefficients), PhongLight.frontal(1))
    image.sum().backward()
    assert bool((coefficients.grad.abs() > 0).all())


def test_a_model_without_uv_is_refused_by_name(sphere_model: MorphableModel) -> None:
    renderer = FaceRenderer(sphere_model, 32)
    with pytest.raises(ConfigurationError, match="'sphere' has no UV map"):
        renderer(sphere_vertices(sphere_model), torch.zeros(1, 3, 8, 8), PhongLight.frontal(1))


def test_view_frame_only_turns_y() -> None:
    assert torch.equal(to_view(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[1.0, -2.0, 3.0]]))
