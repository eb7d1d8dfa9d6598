"""Meshes and point clouds as files, read back by trimesh and by this platform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.batch import FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.face_mesh import FaceMesh
from lightning_faces.morphable.mesh_files import write_mesh, write_textured_obj
from lightning_faces.morphable.meshes import read_mesh


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def colours(count: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_trimesh_reads_a_coloured_mesh(model: MorphableModel, tmp_path: Path, suffix: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    path = write_mesh(tmp_path / f"face{suffix}", model.mean, model.faces, colours(model.num_vertices))
    mesh = trimesh.load(path, process=False)
    np.testing.assert_allclose(mesh.vertices, model.mean.numpy(), atol=1e-3)
    np.testing.assert_array_equal(mesh.faces, model.faces.numpy())
    shown = np.asarray(mesh.visual.vertex_colors)[:, :3]
    np.testing.assert_allclose(shown / 255, colours(model.num_vertices).numpy(), atol=0.5 / 255 + 1e-3)
    normals = mesh.face_normals[model.uv_face_ids.numpy()]
    assert normals[:, 2].mean() > 0.3, "the face's triangles look at the viewer"


def test_trimesh_reads_a_coloured_point_cloud(model: MorphableModel, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = trimesh.load(write_mesh(tmp_path / "cloud.ply", model.mean, colours=colours(4280)), process=False)
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_allclose(cloud.vertices, model.mean.numpy(), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], (colours(4280) * 255).round().numpy())


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".PLY"])
def test_they_can_be_read_here(model: MorphableModel, tmp_path: Path, suffix: str) -> None:
    path = write_mesh(tmp_path / f"face{suffix}", model.mean.double().numpy(), model.faces.numpy())
    vertices, faces = read_mesh(path)
    np.testing.assert_allclose(vertices, model.mean.numpy(), atol=1e-3)
    np.testing.assert_array_equal(faces, model.faces.numpy())


def test_what_cannot_be_written_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    points, faces = np.eye(3), [[0, 1, 2]]
    for message, name, arguments in (
        (r"cannot be written as a mesh: use \.obj or \.ply", "a.stl", (points, faces)),
        (r"vertices .* have shape \(1, 3, 3\)", "a.ply", (points[None], faces)),
        ("not finite", "a.ply", (points * np.nan, faces)),
        ("2 colours were given for the 3 vertices", "a.ply", (points, faces, np.zeros((2, 3)))),
        ("outside 0 to 2", "a.obj", (points, [[0, 1, 3]])),
        ("colour of the mesh is not finite", "a.obj", (points, faces, points + np.inf)),
    ):
        with pytest.raises(ConfigurationError, match=message):
            write_mesh(tmp_path / name, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_colours_outside_the_range_are_clamped(tmp_path: Path) -> None:
    path = write_mesh(tmp_path / "a.obj", np.eye(3), colours=[[-1.0, 0.5, 2.0]] * 3)
    assert path.read_text().splitlines()[0] == "v 1 0 0 0.0000 0.5020 1.0000"


def test_trimesh_reads_a_textured_face(model: MorphableModel, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    coefficients = torch.zeros(1, model.num_coefficients)
    mesh = FaceMesh.of_prediction(FacePrediction(torch.zeros(1, 68, 3), coefficients=coefficients), 0, model)
    grid = (torch.arange(128) + 0.5) / 128
    ramps = torch.stack((grid.expand(128, 128), grid[:, None].expand(128, 128), torch.full((128, 128), 0.25)))
    path = write_textured_obj(tmp_path / "a face.obj", mesh, ramps)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a face.obj", "a_face.mtl", "a_face.png"]
    assert model.uv is not None and model.uv_faces is not None and model.uv_face_ids is not None
    parts = trimesh.load(path, process=False).geometry
    face, skin = parts["face"], parts["skin"]
    assert len(face.faces) + len(skin.faces) == len(model.faces)
    order = model.uv_face_ids.argsort()
    np.testing.assert_allclose(face.triangles, model.mean[model.faces[model.uv_face_ids[order]]].numpy(), atol=1e-3)
    # The picture's red and green are u and v (down), so the colours at the corners are their own places in the UV map.
    colours = face.visual.to_color().vertex_colors[face.faces][..., :2] / 255
    np.testing.assert_allclose(colours, model.uv[model.uv_faces[order]].numpy(), atol=1.5 / 128)
    assert skin.visual.material.diffuse[2] == pytest.approx(64, abs=1)
    vertices, faces = read_mesh(path)
    assert len(vertices) == model.num_vertices and len(faces) == len(model.faces)


def test_a_texture_needs_a_uv_map(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no UV map: write it with colours"):
        write_textured_obj(tmp_path / "a.obj", FaceMesh(np.eye(3), np.array([[0, 1, 2]])), np.zeros((3, 4, 4)))
    assert list(tmp_path.iterdir()) == []
