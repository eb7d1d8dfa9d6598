"""Known wrinkles on known faces, lit by a model that the estimator does not have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.refine import depth_mesh, normals_of_depth, shape_from_shading
from lightning_faces.refine.shape_from_shading import _divergence, _gradient, _laplacian
from lightning_faces.rendering.renderer import rasterize_image

SIZE = 200
SCALE = 1.0
"""Pixels per millimetre."""


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def blurred(values: Tensor, weight: Tensor) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-6.0, 7.0) / 2).square())
    for shape in ((1, 1, 1, 13), (1, 1, 13, 1)):
        values = nn.functional.conv2d(values, kernel.reshape(shape), padding="same")
        weight = nn.functional.conv2d(weight, kernel.reshape(shape), padding="same")
    return values / weight.clamp(min=1e-6)


def photograph(model: MorphableModel, seed: int, wrinkles: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, coarse depth, true depth and mask of a face with wrinkles of an amplitude in millimetres.

    The image has Phong's diffuse and specular light (0.5, 0.7, 0.05, shininess 10), an albedo that varies by a tenth,
    and noise of 1 %. The light comes across the wrinkles to within 40 degrees.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    identity = torch.randn(1, model.num_identity, generator=generator)
    expression = 0.2 * torch.rand(1, model.num_expression, generator=generator)
    angles = [uniform(-0.2, 0.2) for _ in range(3)]
    points = weak_perspective(model.vertices(identity, expression), torch.tensor([[SCALE, *angles, 100.0, 100.0]]))
    raster = rasterize_image(points, model.faces, SIZE)
    mask = raster.to_image(torch.ones(len(raster.face), 1)) > 0
    coarse = raster.to_image(raster.interpolate(points, raster.faces))[:, 2:3]
    # The mesh is coarser than a pixel: without its facets.
    coarse = torch.where(mask, blurred(coarse, mask.float()), 0.0)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    turn, length = uniform(0, 2 * math.pi), uniform(7, 11)
    distance = (x - uniform(70, 130)).square() + (y - uniform(60, 120)).square()
    wave = torch.sin(2 * math.pi / length * (x * math.cos(turn) + y * math.sin(turn)))
    relief = wrinkles * SCALE * torch.exp(-distance / (2 * 30**2)) * wave
    true = torch.where(mask, coarse + relief, 0.0)
    normals = normals_of_depth(true, mask)
    azimuth = turn + uniform(-0.7, 0.7)
    light = torch.tensor([0.9 * math.cos(azimuth), 0.9 * math.sin(azimuth), 1.0])
    light = (light / light.norm())[:, None, None]
    diffuse = (normals * light).sum(dim=1, keepdim=True).clamp(min=0)
    specular = (2 * diffuse * normals - light)[:, 2:].clamp(min=0) ** 10
    spots = torch.randn(1, 1, 6, 6, generator=generator)
    albedo = 0.6 * (1 + 0.08 * nn.functional.interpolate(spots, size=(SIZE, SIZE), mode="bicubic"))
    image = albedo * (0.5 + 0.7 * diffuse) + 0.05 * specular
    noise = 0.01 * torch.randn(image.shape, generator=generator)
    return (image + noise).clamp(0, 1) * mask, coarse, true, mask


def error(depth: Tensor, true: Tensor, mask: Tensor) -> float:
    """Root mean square in millimetres."""
    return float((depth - true)[mask].square().mean().sqrt()) / SCALE


def test_known_wrinkles_are_found_and_a_smooth_face_stays_smooth(model: MorphableModel) -> None:
    torch.manual_seed(0)
    falls, rises, changes = [], [], []
    for seed in range(6):
        image, coarse, true, mask = photograph(model, seed, wrinkles=0.5)
        refined = shape_from_shading(image, coarse, mask)
        falls.append(1 - error(refined.depth, true, refined.mask) / error(coarse, true, refined.mask))
        image, coarse, true, mask = photograph(model, seed, wrinkles=0.0)
        refined = shape_from_shading(image, coarse, mask)
        rises.append(error(refined.depth, true, refined.mask))
        # A coarse depth as a network gives it, a millimetre off in broad waves.
        waves = nn.functional.interpolate(torch.randn(1, 1, 5, 5), size=(SIZE, SIZE), mode="bicubic") * SCALE
        wrong = torch.where(mask, coarse + waves, 0.0)
        refined = shape_from_shading(image, wrong, mask)
        changes.append(error(refined.depth, true, refined.mask) / error(wrong, true, refined.mask))
    assert np.mean(falls) >= 0.3
    assert min(falls) > 0
    # Where the coarse depth is the truth, any change is for the worse.
    assert max(rises) < 0.02
    assert max(changes) < 1.001


def test_normals_are_those_of_the_relief(model: MorphableModel) -> None:
    image, coarse, true, mask = photograph(model, 0, wrinkles=0.5)
    refined = shape_from_shading(image, coarse, mask)
    wrinkled = ((true - coarse).abs() > 0.15) & refined.mask

    def angle(normals: Tensor) -> float:
        cosine = (normals * normals_of_depth(true, mask)).sum(dim=1, keepdim=True).clamp(-1, 1)
        return float(cosine.acos().rad2deg()[wrinkled].mean())

    assert angle(refined.normals) < 0.7 * angle(normals_of_depth(coarse, mask))
    assert float((refined.normals.norm(dim=1, keepdim=True)[mask] - 1).abs().max()) < 1e-5


def test_a_batch_is_its_faces_one_by_one(model: MorphableModel) -> None:
    faces = [photograph(model, seed, wrinkles=0.5) for seed in (0, 1)]
    image, coarse, _, mask = (torch.cat(parts) for parts in zip(*faces))
    together = shape_from_shading(image.expand(-1, 3, -1, -1), coarse, mask).depth
    for number, (one_image, one_coarse, _, one_mask) in enumerate(faces):
        alone = shape_from_shading(one_image, one_coarse, one_mask).depth
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-3, rtol=0)


def test_a_face_without_pixels_is_left_as_it_is() -> None:
    depth = torch.zeros(2, 1, 24, 24)
    refined = shape_from_shading(torch.rand(2, 3, 24, 24), depth, torch.zeros(2, 1, 24, 24, dtype=torch.bool))
    assert torch.equal(refined.depth, depth)
    assert bool(refined.albedo.isfinite().all())
    assert bool(refined.lighting.isfinite().all())


def test_differences_are_adjoint_and_right_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 1, 15, 11, generator=generator) > 0.3
    a, b, c = (torch.randn(1, 1, 15, 11, dtype=torch.float64, generator=generator) for _ in range(3))
    across, down = _gradient(a, mask)
    assert float((across * b + down * c).sum()) == pytest.approx(float((a * _divergence(b, c, mask)).sum()))
    assert float((_laplacian(a, mask) * b).sum()) == pytest.approx(float((a * _laplacian(b, mask)).sum()))
    full = torch.ones_like(mask)
    x, y = torch.arange(11.0).expand(15, 11), torch.arange(15.0)[:, None].expand(15, 11)
    across, down = _gradient((3 * x - 2 * y)[None, None], full)
    assert bool((across == 3).all()) and bool((down == -2).all())


def test_a_depth_image_becomes_a_mesh() -> None:
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = False
    depth = torch.arange(9.0).reshape(1, 3, 3)
    vertices, faces = depth_mesh(depth, mask)
    assert vertices[0].tolist() == [1.0, 0.0, 1.0]
    assert len(faces) == 7
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    # Counter-clockwise with y up: the normal points to the viewer.
    upright = torch.tensor([1.0, -1.0, 1.0])
    assert bool((torch.linalg.cross((b - a) * upright, (c - a) * upright)[:, 2] > 0).all())
