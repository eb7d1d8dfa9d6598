"""The fast rasteriser against PyTorch3D's own, on everything it claims to reproduce."""

from __future__ import annotations

import pytest
import torch
from pytorch3d.renderer import (
    FoVPerspectiveCameras,
    MeshRasterizer,
    OrthographicCameras,
    RasterizationSettings,
)
from pytorch3d.renderer.mesh.rasterizer import Fragments
from pytorch3d.structures import Meshes
from pytorch3d.transforms import random_rotations
from pytorch3d.utils import ico_sphere
from torch import Tensor

from lightning_faces.rendering.rasterizer import FaceRasterizer


def rough_sphere(seed: int, level: int = 3) -> tuple[Tensor, Tensor]:
    """A bumpy sphere in front of the camera, partly out of the picture for some seeds."""
    torch.manual_seed(seed)
    sphere = ico_sphere(level)
    points = sphere.verts_packed()
    points = points * (0.5 + 0.1 * seed) @ random_rotations(1)[0] + 0.03 * torch.randn_like(points)
    return points + torch.tensor([0.12 * seed, -0.07 * seed, 3.0]), sphere.faces_packed()


def both(
    vertices: list[Tensor], faces: list[Tensor], size: int | tuple[int, int], cameras: object = None, **settings: object
) -> tuple[Fragments, list[Tensor], Fragments, list[Tensor]]:
    """Fragments and vertex gradients of a random linear function of them, PyTorch3D's first."""
    results = []
    weights = None
    for kind in (MeshRasterizer, FaceRasterizer):
        leaves = [v.clone().requires_grad_(True) for v in vertices]
        options = RasterizationSettings(image_size=size, **settings)
        fragments = kind(cameras or OrthographicCameras(), options)(Meshes(leaves, faces))
        if weights is None:
            weights = torch.randn_like(fragments.zbuf), torch.randn_like(fragments.bary_coords)
        ((fragments.zbuf * weights[0]).sum() + (fragments.bary_coords * weights[1]).sum()).backward()
        results += [fragments, [leaf.grad for leaf in leaves]]
    assert results[2].dists is None, "the fast path was not taken"
    return tuple(results)


def assert_identical(theirs: Fragments, gradients: list[Tensor], ours: Fragments, our_gradients: list[Tensor]) -> None:
    assert torch.equal(ours.pix_to_face, theirs.pix_to_face)
    assert torch.equal(ours.zbuf, theirs.zbuf)
    assert torch.equal(ours.bary_coords, theirs.bary_coords)
    for mine, reference in zip(our_gradients, gradients, strict=True):
        assert (mine - reference).abs().max() <= 2e-6 * reference.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_same_as_pytorch3d_on_bumpy_spheres(seed: int, cull: bool) -> None:
    points, faces = rough_sphere(seed)
    result = both([points], [faces], (37 + seed, 31 + 4 * seed), cull_backfaces=cull)
    assert (result[0].pix_to_face >= 0).sum() > 200
    assert_identical(*result)


@pytest.mark.parametrize("seed", range(3))
def test_same_as_pytorch3d_with_a_perspective_camera(seed: int) -> None:
    points, faces = rough_sphere(seed)
    assert_identical(*both([points], [faces], 40, FoVPerspectiveCameras()))


def test_batch_of_different_meshes_keeps_packed_face_ids() -> None:
    (a, fa), (b, fb) = rough_sphere(0, level=1), rough_sphere(3, level=2)
    result = both([a, b], [fa, fb], 32)
    assert int(result[2].pix_to_face[1].max()) >= len(fa)
    assert_identical(*result)


def test_random_triangles_with_corners_behind_the_camera() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator) * 3 - torch.tensor([1.5, 1.5, 0.4])
    faces = torch.randint(0, 60, (200, 3), generator=generator)  # some of them degenerate
    assert_identical(*both([points], [faces], 32))


@pytest.mark.parametrize("size", [8, 9, (8, 12)])
def test_grid_aligned_edges_degenerate_faces_and_depth_ties(size: int | tuple[int, int]) -> None:
    """Edges through pixel centres stay uncovered, zero areas are skipped, the lower id wins a tie: as in PyTorch3D."""
    points = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [0, 0, 1], [0.5, 0.5, 1]])
    faces = torch.tensor([[0, 4, 5], [0, 1, 2], [0, 2, 3], [0, 1, 2], [2, 1, 0]])
    result = both([points], [faces], size)
    assert_identical(*result)
    assert set(result[2].pix_to_face.unique().tolist()) <= {-1, 1, 2}


def test_nothing_in_the_picture() -> None:
    points = torch.tensor([[5.0, 5, 1], [6, 5, 1], [5, 6, 1]])
    result = both([points], [torch.tensor([[0, 1, 2]])], 8)
    assert_identical(*result)
    assert (result[2].pix_to_face == -1).all()


def test_anything_else_is_pytorch3ds_own() -> None:
    points, faces = rough_sphere(0, level=1)
    for settings in ({"faces_per_pixel": 2}, {"blur_radius": 1e-3}, {"cull_to_frustum": True}):
        options = RasterizationSettings(image_size=12, **settings)
        ours = FaceRasterizer(OrthographicCameras(), options)(Meshes([points], [faces]))
        theirs = MeshRasterizer(OrthographicCameras(), options)(Meshes([points], [faces]))
        assert torch.equal(ours.pix_to_face, theirs.pix_to_face)
        assert torch.equal(ours.dists, theirs.dists)
