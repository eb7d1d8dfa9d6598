"""Registration of a face model to scans, where the truth is known."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from datamodules.components import scans
from datamodules.components.scans import landmark_path, read_scan, register_scan, registered_scan
from lightning_faces.errors import DataError
from lightning_faces.geometry import euler_to_matrix
from lightning_faces.morphable import MorphableModel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trimesh") is None, reason="trimesh (extra scans) is absent")


def write_scan(path: Path, model: MorphableModel, seed: int = 0) -> np.ndarray:
    """A scan of a random face: another triangulation, other units, turned; returns the true vertices in its frame."""
    import trimesh

    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(1, model.num_identity, generator=generator)
    shape = model.vertices(identity, torch.zeros(1, model.num_expression))[0].double()
    rotation = euler_to_matrix(torch.tensor([0.2, 0.4, -0.1], dtype=torch.float64))
    truth = (0.1 * shape @ rotation.T + torch.tensor([3.0, -20.0, 50.0])).numpy()  # centimetres
    skin = model.region_masks["face"].numpy()
    faces = model.faces.numpy()
    mesh = trimesh.Trimesh(truth, faces[skin[faces].all(axis=1)], process=False)
    fine = mesh.subdivide()
    fine.vertices += np.random.default_rng(seed).normal(0, 0.005, size=fine.vertices.shape)  # 0.05 mm of noise
    fine.remove_unreferenced_vertices()
    fine.export(path)
    chosen = [36, 39, 42, 45, 30, 33, 48, 54, 51, 57, 8]
    marked = model.landmarks(torch.from_numpy(truth)[None], "ibug")[0].numpy()
    with landmark_path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "x", "y", "z"])
        writer.writerows([[i, *marked[i]] for i in chosen])
    return truth


@pytest.mark.slow
def test_registration_recovers_the_face(tmp_path: Path) -> None:
    model = MorphableModel.load("embedded")
    truth = write_scan(tmp_path / "a.ply", model)
    scan = read_scan(tmp_path / "a.ply")
    vertices, registered = register_scan(model, scan)
    skin = model.region_masks["face"].numpy()
    assert registered[skin].mean() > 0.95
    both = registered & skin
    error = 10 * np.linalg.norm(vertices - truth, axis=1)[both]  # millimetres
    mean_face = scans._placed(
        model,
        model.landmarks(model.mean[None].double(), "ibug")[0][torch.from_numpy(scan.indices)],
        torch.from_numpy(scan.landmarks),
    )
    before = 10 * np.linalg.norm(mean_face - truth, axis=1)[both]
    # It lies on the surface everywhere; along the surface, ICP cannot know better than smoothness says.
    near = cKDTree(scan.vertices).query(vertices[both])[0] * 10
    print(f"before {before.mean():.2f} mm, after {error.mean():.2f} mm, to the nearest point {near.mean():.2f} mm")
    assert error.mean() < 0.6 * before.mean()
    assert error.mean() < 2.0  # 1.7 measured


def test_cache_is_keyed_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MorphableModel.load("embedded")
    write_scan(tmp_path / "a.obj", model)
    calls = []

    def fake(model: MorphableModel, scan: scans.Scan, embedding: str) -> tuple[np.ndarray, np.ndarray]:
        calls.append(scan.path)
        count = model.num_vertices
        return np.full((count, 3), len(calls), dtype=np.float32), np.arange(count) % 5 != 1

    monkeypatch.setattr(scans, "register_scan", fake)
    first = registered_scan(model, tmp_path / "a.obj", tmp_path / "cache")
    again = registered_scan(model, tmp_path / "a.obj", tmp_path / "cache")
    assert len(calls) == 1
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    table = landmark_path(tmp_path / "a.obj")
    table.write_text(table.read_text().replace("36,", "37,", 1))
    registered_scan(model, tmp_path / "a.obj", tmp_path / "cache")
    assert len(calls) == 2
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    registered_scan(model, tmp_path / "a.obj", tmp_path / "cache")
    assert len(calls) == 3


def test_bad_scans_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.obj does not exist"):
        read_scan(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text("no mesh")
    with pytest.raises(DataError, match=r"a\.obj"):
        read_scan(tmp_path / "a.obj")
    (tmp_path / "b.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\n")
    with pytest.raises(DataError, match=r"b\.ply"):
        read_scan(tmp_path / "b.ply")
    model = MorphableModel.load("embedded")
    write_scan(tmp_path / "c.ply", model)
    landmark_path(tmp_path / "c.ply").write_text("index,x,y,z\n99,1,2,3\n")
    with pytest.raises(DataError, match="at least 4 landmarks"):
        read_scan(tmp_path / "c.ply")
    landmark_path(tmp_path / "c.ply").unlink()
    with pytest.raises(DataError, match=r"c\.landmarks\.csv does not exist"):
        read_scan(tmp_path / "c.ply")
