"""Textures of rendered faces, compared under another light and from the other side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.refine import TextureRecovery, vertex_colours
from lightning_faces.rendering.renderer import FaceRenderer, PhongLight

COUNT = 6
YAW = torch.tensor([0.0, 0.4, 0.8, -0.8, -0.4, 0.2])


@pytest.fixture(scope="module")
def recovery() -> TextureRecovery:
    return TextureRecovery(MorphableModel.load("embedded"))


def faces(model: MorphableModel) -> tuple[Tensor, Tensor, torch.Generator]:
    """Shapes ``[B, V, 3]`` in the object frame and albedos ``[B, 3, T, T]``, drawn from the model."""
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(COUNT, model.num_identity, generator=generator)
    shapes = model.vertices(identity, torch.zeros(COUNT, model.num_expression))
    assert model.albedo_mean is not None and model.albedo_basis is not None and model.albedo_std is not None
    drawn = torch.randn(COUNT, len(model.albedo_std), generator=generator) * model.albedo_std
    albedo = model.albedo_mean + torch.einsum("bk,kchw->bchw", drawn, model.albedo_basis)
    return shapes, albedo.clamp(0, 1), generator


def placed(shapes: Tensor, yaw: Tensor) -> Tensor:
    zero = torch.zeros_like(yaw)
    return weak_perspective(shapes, torch.stack((zero + 1, zero, yaw, zero, zero + 100, zero + 100), dim=1))


def test_a_recovered_texture_shows_the_face_from_the_other_side_in_another_light(recovery: TextureRecovery) -> None:
    model = recovery.model
    shapes, albedo, generator = faces(model)
    renderer = FaceRenderer(model, 200)
    image, _ = renderer(placed(shapes, YAW), albedo, PhongLight.random(COUNT, generator))
    noisy = (image + 0.01 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    found = recovery(noisy, placed(shapes, YAW))
    light = PhongLight.random(COUNT, generator)

    def seen_from_there(texture: Tensor) -> Tensor:
        return renderer(placed(shapes, -YAW), texture, light)[0]

    true = seen_from_there(albedo)

    def error(texture: Tensor) -> Tensor:
        """Without one gain per face, since an image gives the product of light and skin only."""
        shown = seen_from_there(texture)
        gain = (shown * true).sum(dim=(1, 2, 3)) / shown.square().sum(dim=(1, 2, 3))
        return (gain[:, None, None, None] * shown - true).square().mean(dim=(1, 2, 3)).sqrt()

    assert model.albedo_mean is not None
    mean = error(model.albedo_mean.expand(COUNT, -1, -1, -1))
    # The last face is almost black: its photograph says little.
    assert bool((error(found.texture)[:5] < mean[:5]).all())
    assert float(error(found.texture)[:5].mean()) < 0.75 * float(mean[:5].mean())


def test_only_what_the_photograph_shows_is_taken_from_it(recovery: TextureRecovery) -> None:
    shapes, _, _ = faces(recovery.model)
    image = torch.rand(COUNT, 3, 200, 200, generator=torch.Generator().manual_seed(1))
    found = recovery(image, placed(shapes, YAW))
    assert torch.equal(
        found.texture[~found.seen.expand(-1, 3, -1, -1)], found.model_albedo[~found.seen.expand(-1, 3, -1, -1)]
    )
    left, right = found.seen[..., :128].float().mean(dim=(1, 2, 3)), found.seen[..., 128:].float().mean(dim=(1, 2, 3))
    # A nose to the image left (positive yaw) shows the subject's left half, which the UV map has at its right.
    assert bool((right[YAW > 0.3] > 1.5 * left[YAW > 0.3]).all())
    assert bool((left[YAW < -0.3] > 1.5 * right[YAW < -0.3]).all())


def test_a_face_outside_its_picture_gets_the_mean_albedo(recovery: TextureRecovery) -> None:
    shapes, _, _ = faces(recovery.model)
    found = recovery(torch.rand(1, 3, 64, 64), placed(shapes[:1], YAW[:1]) + 500)
    assert not bool(found.seen.any())
    assert recovery.model.albedo_mean is not None
    torch.testing.assert_close(found.texture[0], recovery.model.albedo_mean.clamp(0, 1))


def test_a_model_without_albedo_is_refused() -> None:
    model = MorphableModel.load("embedded")
    model.albedo_mean = None
    with pytest.raises(ConfigurationError, match="has no albedo model, which completes a texture"):
        TextureRecovery(model)


def test_vertices_take_the_colours_that_the_photograph_has_of_them(recovery: TextureRecovery) -> None:
    model = recovery.model
    shapes, _, _ = faces(model)
    # Red and green are the place in the picture: what is read there is known.
    ramp = torch.arange(200) / 199
    image = torch.stack((ramp.expand(200, 200), ramp[:, None].expand(200, 200), torch.full((200, 200), 0.5)))
    points = placed(shapes, YAW)
    colours, seen = vertex_colours(image.expand(COUNT, -1, -1, -1), points, model.faces)
    torch.testing.assert_close(colours[..., :2][seen], points[..., :2][seen] / 199, atol=1e-4, rtol=0)
    for face in range(COUNT):
        mean = colours[face][seen[face]].mean(dim=0)
        torch.testing.assert_close(colours[face][~seen[face]], mean.expand(int((~seen[face]).sum()), -1))
    # Of a head that is turned to the image left, its left half (x > 0) is seen; of a frontal one, both.
    cheek = model.region_masks["face"] & (model.mean[:, 2] > 0)
    left, right = (
        seen[:, cheek & side].float().mean(dim=1) for side in (model.mean[:, 0] > 20, model.mean[:, 0] < -20)
    )
    assert bool((left[YAW > 0.3] > 1.5 * right[YAW > 0.3]).all())
    assert bool((right[YAW < -0.3] > 1.5 * left[YAW < -0.3]).all())
    assert float((left[0] - right[0]).abs()) < 0.1 and float(left[0]) > 0.5
    away, none = vertex_colours(image[None], points[:1] + 500, model.faces)
    assert not bool(none.any()) and bool((away == 0.5).all())
