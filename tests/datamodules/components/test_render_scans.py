"""Renderings of a scan whose colours say where each of its points is."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.components.annotations import read_annotations
from datamodules.components.scans import landmark_path
from datamodules.florence import Florence
from lightning_faces.commands.datasets import main
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trimesh") is None, reason="trimesh (extra scans) is absent")
LOW, HIGH = -200.0, 200.0
CHOSEN = [8, 30, 33, 36, 39, 42, 45, 48, 54]


def write_scan(path: Path, coloured: bool = True, factor: float = 1.0) -> np.ndarray:
    """The mean face with a colour that is the place of each vertex in millimetres; returns its 68 points."""
    import trimesh

    model = MorphableModel.load("embedded")
    vertices = model.mean.double().numpy()
    colours = np.round(255 * (vertices - LOW) / (HIGH - LOW)).astype(np.uint8) if coloured else None
    mesh = trimesh.Trimesh(factor * vertices, model.faces.numpy(), vertex_colors=colours, process=False)
    path.parent.mkdir(exist_ok=True)
    mesh.export(path)
    points: np.ndarray = factor * model.landmarks(model.mean[None].double(), "ibug")[0].numpy()
    with landmark_path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "x", "y", "z"])
        writer.writerows([[i, *points[i]] for i in CHOSEN])
    return points


def test_every_pixel_shows_what_the_pose_puts_there(tmp_path: Path) -> None:
    points = torch.from_numpy(write_scan(tmp_path / "Florence" / "subject_01.ply"))
    folder = tmp_path / "Florence"
    assert main(["render", str(folder), "--pitch", "-20", "15", "--yaw", "-80", "0", "40", "--size", "240"]) == 0
    table = read_annotations(folder, "68", landmarks_needed=False)
    assert len(table.file) == 6
    assert table.numbers["view"].tolist() == list(range(6))
    assert set(table.scan or []) == {"subject_01.ply"}
    assert table.yaw is not None
    assert table.yaw.tolist() == pytest.approx([-80, 0, 40, -80, 0, 40])
    assert table.pose is not None
    assert np.degrees(table.pose[:, 1]).tolist() == pytest.approx([-20, -20, -20, 15, 15, 15])
    assert table.box is not None
    for row, file in enumerate(table.file):
        pose = torch.from_numpy(table.pose[row])
        image = np.asarray(Image.open(folder / file)).astype(np.float64)
        assert image.shape == (240, 240, 3)
        y, x = np.nonzero(image.any(axis=2))
        assert len(x) > 5_000
        shown = weak_perspective(torch.from_numpy(image[y, x] / 255 * (HIGH - LOW) + LOW), pose).numpy()
        # A step of a colour is 1.6 mm, 0.7 of which are a pixel.
        assert np.quantile(np.abs(shown[:, :2] - np.stack((x, y), axis=1)).max(axis=1), 0.99) < 1.5
        # The box is that of all 68 points, of which nine were given, in the middle of the picture.
        placed = weak_perspective(points, pose)
        expected = [*placed[:, :2].amin(dim=0).tolist(), *placed[:, :2].amax(dim=0).tolist()]
        assert table.box[row].tolist() == pytest.approx(expected, abs=0.05)
        assert np.allclose(table.box[row].reshape(2, 2).mean(axis=0), 119.5)
        side = float(placed[30, 0] - (placed[36, 0] + placed[45, 0]) / 2)
        assert np.sign(round(side)) == -np.sign(round(table.yaw[row]))  # +yaw: the nose to the image left
    module = Florence(root=str(tmp_path))
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    raw = dataset.read(2)
    assert raw.numbers == {"subject": 0, "view": 2}
    assert raw.targets["pose"].tolist() == pytest.approx(table.pose[2].tolist(), rel=1e-5)
    with pytest.raises(ConfigurationError, match="exists: remove it to render again"):
        main(["render", str(folder)])


def test_fifteen_poses_textured_and_grey_without_colours(tmp_path: Path) -> None:
    write_scan(tmp_path / "a" / "b.obj", coloured=False)
    write_scan(tmp_path / "c.obj", coloured=False)
    lines = (tmp_path / "c.obj").read_text().splitlines()
    corners = [line.replace("f ", "").split() for line in lines if line.startswith("f ")]
    (tmp_path / "c.obj").write_text(
        "\n".join(["mtllib c.mtl", "usemtl skin", *(line for line in lines if line.startswith("v ")), "vt 0.5 0.5"])
        + "\n"
        + "\n".join("f " + " ".join(f"{corner.split('/')[0]}/1" for corner in face) for face in corners)
    )
    (tmp_path / "c.mtl").write_text("newmtl skin\nmap_Kd c.png\n")
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "c.png")
    assert main(["render", str(tmp_path), "--size", "64"]) == 0
    table = read_annotations(tmp_path, "68", landmarks_needed=False)
    assert len(set(table.file)) == 30
    assert table.numbers["subject"].tolist() == [0] * 15 + [1] * 15
    assert all((tmp_path / name).is_file() for name in table.file)
    image = np.asarray(Image.open(tmp_path / table.file[17]))
    assert (image.max(axis=2) == image.min(axis=2)).all()
    assert image.max() > 180
    image = np.asarray(Image.open(tmp_path / table.file[2]))
    assert image[32, 32].tolist() == [200, 100, 50]


def test_scans_in_another_frame_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no OBJ or PLY file"):
        main(["render", str(tmp_path)])
    write_scan(tmp_path / "metres.ply", factor=0.001)
    with pytest.raises(DataError, match=r"0\.001 times as large as a mean face in millimetres"):
        main(["render", str(tmp_path)])
    assert not (tmp_path / "annotations.npz").exists()
