"""The scan lines of pictures against the exact rasteriser, and that neighbours share every pixel out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.rasterizer import covered_pixels
from lightning_faces.rendering.renderer import rasterize_together
from lightning_faces.rendering.scanline import visible_faces


def exact(vertices: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> tuple[Tensor, Tensor]:
    """Pixels and triangles that PyTorch3D's rules give; vertices ``[V, 3]`` image frame."""
    height, width = size
    unit = 2.0 / min(size)
    x, y = ((width - 1) / 2 - vertices[:, 0]) * unit, ((height - 1) / 2 - vertices[:, 1]) * unit
    z = (vertices[:, 2].max() - vertices[:, 2]) * unit + 1.0
    found = covered_pixels(torch.stack((x, y, z), dim=1), faces, [len(faces)], size, cull_backfaces=cull)
    return found[0], found[1]


def fast(vertices: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> tuple[Tensor, Tensor]:
    """The same of the scan lines, by pixel; triangles come in ascending order, each pixel once, with its own place."""
    image = torch.zeros(len(faces), dtype=torch.int64)
    ids, pixels, row, column = visible_faces(vertices.T, faces.T, image, (1, *size), cull)
    assert bool((ids[1:] >= ids[:-1]).all())
    assert torch.equal(row * size[1] + column, pixels.float())
    order = torch.argsort(pixels)
    assert bool((pixels[order][1:] > pixels[order][:-1]).all())
    return pixels[order], ids[order]


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("yaw", [0.03, -0.9, 1.5])
def test_same_as_the_exact_rasteriser_on_a_head(embedded: MorphableModel, yaw: float, cull: bool) -> None:
    """Larger than the picture too, so that triangles are cut off at all sides."""
    for scale in (0.31, 1.07):
        vertices = weak_perspective(embedded.mean[None], torch.tensor([[scale, 0.1, yaw, 0.2, 40.3, 37.1]]))[0]
        pixels, ids = exact(vertices, embedded.faces, (71, 83), cull)
        ours, our_ids = fast(vertices, embedded.faces, (71, 83), cull)
        assert torch.equal(pixels, ours)
        assert (ids != our_ids).sum() <= 1


def test_random_triangles() -> None:
    generator = torch.Generator().manual_seed(0)
    vertices = torch.rand(90, 3, generator=generator) * 60 - torch.tensor([10.0, 10, 0])
    faces = torch.randint(0, 90, (200, 3), generator=generator)  # some of them degenerate
    for cull in (False, True):
        pixels, ids = exact(vertices, faces, (40, 40), cull)
        ours, our_ids = fast(vertices, faces, (40, 40), cull)
        assert torch.equal(pixels, ours)
        assert (ids != our_ids).float().mean() < 0.01


def test_a_pixel_centre_on_an_edge_belongs_to_one_of_the_two() -> None:
    """A square of four triangles whose edges all run through pixel centres has no holes."""
    vertices = torch.tensor([[0.0, 0, 0], [8, 0, 0], [8, 8, 0], [0, 8, 0], [4, 4, 0]])
    faces = torch.tensor([[0, 4, 1], [1, 4, 2], [2, 4, 3], [3, 4, 0]])
    pixels, ids = fast(vertices, faces, (9, 9), True)
    rows, columns = pixels // 9, pixels % 9
    assert pixels.numel() == 64
    assert rows.max() == 7
    assert columns.min() == 1
    assert ids.bincount().min() >= 8


def test_of_two_equally_near_triangles_the_first_is_seen() -> None:
    vertices = torch.tensor([[0.5, 0.5, 3.0], [6.2, 0.5, 3.0], [0.5, 6.2, 3.0]])
    faces = torch.tensor([[0, 2, 1], [1, 0, 2], [2, 1, 0]])
    pixels, ids = fast(vertices, faces, (9, 9), True)
    assert pixels.numel() == 15
    assert bool((ids == 0).all())


def test_nothing_in_the_picture() -> None:
    vertices = torch.tensor([[50.0, 50, 1], [60, 50, 1], [50, 60, 1]])
    for faces in (torch.tensor([[0, 2, 1]]), torch.zeros(0, 3, dtype=torch.int64)):
        pixels, ids = fast(vertices, faces, (9, 9), False)
        assert pixels.numel() == ids.numel() == 0


def test_meshes_together_are_those_alone(embedded: MorphableModel) -> None:
    pose = torch.tensor([[0.3, 0.2, -0.9, 0.3, 30.2, 32.7], [0.3, 0.0, 0.5, 0.0, 30.0, 36.0]])
    two = weak_perspective(embedded.mean.expand(2, -1, -1), pose)
    one, some = two[1:] * 1.1, embedded.faces[::2]
    together = rasterize_together([(two, embedded.faces), (one, some)], 64, cull_backfaces=True)
    for raster, (vertices, faces) in zip(together, ((two, embedded.faces), (one, some)), strict=True):
        for i in range(len(vertices)):
            alone = rasterize_together([(vertices[i : i + 1], faces)], 64, cull_backfaces=True)[0]
            mine = raster.image == i
            for key in ("pixel", "face", "weights"):
                assert torch.equal(getattr(raster, key)[mine], getattr(alone, key)), key
