"""What a network sees of a geometry: a sphere's shading in closed form, crops, batches, precision."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lightning_faces.geometry import crop_matrix, transform_pose
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import geometry_view

SIZE = 96


def faces(model: MorphableModel, count: int) -> tuple[Tensor, Tensor]:
    """Coefficients and poses at a side of 96 pixels."""
    generator = torch.Generator().manual_seed(4)
    coefficients = 0.6 * torch.randn(count, model.num_coefficients, generator=generator)
    coefficients[:, model.num_identity :].clamp_(0.0, 0.5)
    angles = torch.randn(count, 3, generator=generator) * torch.tensor([0.2, 0.7, 0.2])
    place = torch.tensor([[0.4, 0.0, 0.0, 0.0, 47.0, 49.0]]).expand(count, 6).clone()
    place[:, 1:4] = angles
    return coefficients, place


def test_a_sphere_is_lit_by_the_cosine_to_the_viewer(sphere_model: MorphableModel) -> None:
    pose = torch.tensor([[0.5, 0.3, -0.9, 0.2, 47.3, 47.6], [0.25, 0.0, 0.0, 0.0, 30.1, 60.4]])
    mask, shading = geometry_view(sphere_model, torch.zeros(2, 3), pose, SIZE)
    assert mask.shape == shading.shape == (2, 1, SIZE, SIZE)
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    for row, (radius, cx, cy) in enumerate(((40.0, 47.3, 47.6), (20.0, 30.1, 60.4))):
        square = ((x - cx) ** 2 + (y - cy) ** 2) / radius**2
        assert (shading[row, 0] - (1 - square).clamp_min(0).sqrt())[square < 0.8].abs().max() < 0.02
        # A polyhedron ends at most a pixel inside its sphere.
        assert bool((mask[row, 0][square < (1.0 - 1.0 / radius) ** 2] == 1.0).all())
        assert not bool(mask[row, 0][square > 1.0].any())
        assert not bool(shading[row, 0][mask[row, 0] == 0.0].any())


def test_a_plane_is_as_bright_as_its_cosine() -> None:
    corners = torch.tensor([[-60.0, -60.0, 0.0], [60.0, -60.0, 0.0], [60.0, 60.0, 0.0], [-60.0, 60.0, 0.0]])
    plane = MorphableModel(
        name="plane", mean=corners, faces=torch.tensor([[0, 1, 2], [0, 2, 3]]), identity_basis=torch.zeros(1, 4, 3),
        identity_std=[1.0], expression_basis=torch.zeros(1, 4, 3), expression_std=[1.0],
    )  # fmt: skip
    yaw = torch.tensor([0.0, 0.5, 1.2, 3.0])
    pose = torch.stack([torch.tensor([0.3, 0.0, float(angle), 0.0, 47.2, 47.4]) for angle in yaw])
    mask, shading = geometry_view(plane, torch.zeros(4, 2), pose, SIZE)
    for row in range(3):
        assert torch.allclose(shading[row][mask[row] > 0], yaw[row].cos(), atol=1e-5)
        assert float(mask[row].sum()) == pytest.approx(float(36.0**2 * yaw[row].cos()), rel=0.06)
    assert float(mask[3].sum()) == 0.0  # its back


def test_twice_the_size_averaged_is_the_size(embedded: MorphableModel) -> None:
    """At twice the size the centre of pixel (0, 0) is at (0.5, 0.5)."""
    coefficients, pose = faces(embedded, 4)
    large = pose.clone()
    large[:, 0] *= 2.0
    large[:, 4:] = 2.0 * pose[:, 4:] + 0.5
    small, double = geometry_view(embedded, coefficients, pose, SIZE), geometry_view(embedded, coefficients, large, 192)
    for image, fine in zip(small, double, strict=True):
        averaged = torch.nn.functional.avg_pool2d(fine, 2)
        # The mask's edge differs by half a pixel.
        assert (image - averaged).abs().mean() < 0.012
    inside = -torch.nn.functional.max_pool2d(-torch.nn.functional.avg_pool2d(double[0], 2), 3, 1, 1) == 1.0
    assert (small[1] - torch.nn.functional.avg_pool2d(double[1], 2))[inside].abs().mean() < 0.012


def test_a_crop_shows_what_its_pose_says(embedded: MorphableModel) -> None:
    """The pose moved into a crop draws what the crop cut out of the picture has."""
    coefficients, pose = faces(embedded, 3)
    mask, shading = geometry_view(embedded, coefficients, pose, SIZE)
    whole = crop_matrix(torch.tensor([[19.5, 15.5, 67.5, 63.5]]), 48, 1.0)  # from pixel (20, 16) on
    moved = transform_pose(whole.expand(3, -1, -1), pose)
    assert torch.allclose(moved[:, 4:], pose[:, 4:] - torch.tensor([20.0, 16.0]), atol=1e-4)
    cut_mask, cut_shading = geometry_view(embedded, coefficients, moved, 48)
    # An edge within a rounding error of a pixel's centre may fall to the other side.
    assert (cut_mask - mask[..., 16:64, 20:68]).abs().mean() < 1e-3
    assert (cut_shading - shading[..., 16:64, 20:68]).abs().mean() < 1e-3
    assert 0.3 < float(cut_mask.mean()) < 1.0


@torch.no_grad()
def test_alone_in_a_batch_and_under_autocast_it_is_the_same(embedded: MorphableModel) -> None:
    coefficients, pose = faces(embedded, 11)
    together = geometry_view(embedded, coefficients, pose, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = geometry_view(embedded, coefficients, pose, SIZE)
    one_by_one = [geometry_view(embedded, coefficients[i : i + 1], pose[i : i + 1], SIZE) for i in range(11)]
    for k in range(2):
        assert torch.equal(together[k], mixed[k])
        assert (together[k] - torch.cat([one[k] for one in one_by_one])).abs().max() <= 1e-4


def test_only_the_face_region_is_shown(embedded: MorphableModel) -> None:
    pose = torch.tensor([[0.4, 0.0, 0.0, 0.0, 48.0, 48.0]])
    mask, shading = geometry_view(embedded, torch.zeros(1, embedded.num_coefficients), pose, SIZE)
    bare = MorphableModel(
        name="bare", mean=embedded.mean, faces=embedded.faces, identity_basis=embedded.identity_basis[:1],
        identity_std=[1.0], expression_basis=embedded.expression_basis[:1], expression_std=[1.0],
    )  # fmt: skip
    everything, _ = geometry_view(bare, torch.zeros(1, 2), pose, SIZE)
    assert float(mask.sum()) < 0.95 * float(everything.sum())
    behind = pose + torch.tensor([0.0, 0.0, torch.pi, 0.0, 0.0, 0.0])
    back, whole = (
        geometry_view(m, torch.zeros(1, m.num_coefficients), behind, SIZE)[0].sum() for m in (embedded, bare)
    )
    assert float(back) < 0.3 * float(whole)
    assert shading[mask > 0].mean() > 0.6
    landmarks = embedded.landmarks(embedded.mean[None])[0, 17:] * torch.tensor([0.4, -0.4, 0.4]) + 48.0
    column, row = landmarks[:, 0].round().long(), landmarks[:, 1].round().long()
    assert mask[0, 0, row, column].mean() > 0.8  # but eyes and mouth


def test_a_model_that_moves_to_another_precision_is_looked_at_anew(sphere_model: MorphableModel) -> None:
    model = copy.deepcopy(sphere_model)
    pose = torch.tensor([[0.5, 0.0, 0.0, 0.0, 47.3, 47.6]])
    _, single = geometry_view(model, torch.zeros(1, 3), pose, SIZE)
    _, double = geometry_view(model.double(), torch.zeros(1, 3), pose, SIZE)
    assert double.dtype == torch.float64
    assert (single - double).abs().max() < 1e-4


WITHOUT_PYTORCH3D = """
import sys
sys.modules["pytorch3d"] = None
import torch
from datamodules import SyntheticFaces
from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceRenderer, FaceSynthesizer, PhongLight, geometry_view
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import _rasterize_on_device
from lightning_faces.rendering.synthesis import EXTRA_TARGETS

model = MorphableModel.load("embedded")
synthesizer = FaceSynthesizer(model, 32, position_map_size=16)
rendered = synthesizer.render(synthesizer.sample([0, 1]), tuple(EXTRA_TARGETS))
vertices = rendered["vertices"]
maps = FaceMaps(model, 32, 16)
assert maps.face_region(vertices).pixel.numel() > 100
image, mask = FaceRenderer(model, 32)(vertices, torch.full_like(vertices, 0.5), PhongLight.frontal(2))
assert image.mean() > 0.05
assert geometry_view(model, rendered["coefficients"], rendered["pose"], 32)[0].sum() > 100
data = SyntheticFaces(train_size=4)
data.setup("fit")
assert len(data.datasets["train"]) == 4
for needs in (
    lambda: _rasterize_on_device(vertices, model.faces, (32, 32), True),
    lambda: __import__("lightning_faces.rendering.rasterizer"),
):
    try:
        needs()
    except ConfigurationError as error:
        print(error)
"""


def test_all_but_pytorch3ds_own_rasteriser_works_without_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTORCH3D], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "Rendering on cpu needs PyTorch3D: pip install 'lightning-faces[render]'."
    assert second == "FaceRasterizer needs PyTorch3D: pip install 'lightning-faces[render]'."
