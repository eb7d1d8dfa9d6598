"""Any bytes in the place of a data set's file give a sample or an error that names the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from datamodules import AFLW20003D, AFLWLFPA, W300LP, ImageFolder, Table
from datamodules.base import FaceDataModule
from datamodules.components.annotations import read_annotations
from datamodules.components.convert import read_points
from datamodules.components.images import read_image
from datamodules.components.meshes import load_mesh
from datamodules.components.scans import Scan, landmark_path, read_scan
from datamodules.image_folder import read_boxes
from lightning_faces.errors import DataError
from tests.fakes.photographs import smooth_picture, write_300w_lp, write_aflw2000, write_photograph, write_table
from tests.fuzz.damage import outcomes

pytestmark = pytest.mark.slow

TARGETS = frozenset({"landmarks", "landmark_mask", "visible", "face_size", "yaw", "pose"})


def samples(module: FaceDataModule, split: str) -> None:
    """The first samples of a split, as a loader takes them; what is no finite number is an error too."""
    warnings.simplefilter("ignore")
    dataset = module.make_dataset(split, TARGETS & module.available_targets)
    if dataset is None:
        return
    module.configure(dataset, split)
    for sample in dataset.__getitems__([(0, 0)]):
        for key, value in sample.items():
            if isinstance(value, torch.Tensor) and not torch.isfinite(value.float()).all():
                raise AssertionError(f"{key} is not finite")


def read_aflw2000(path: Path) -> None:
    samples(AFLW20003D(root=str(path.parent), image_size=32), "test")


def read_300w_lp(path: Path) -> None:
    samples(W300LP(root=str(path.parents[2]), image_size=32, subsets=["AFW"], val_fraction=0.0), "train")


def read_own_table(path: Path) -> None:
    samples(Table(str(path.parent), landmark_scheme="21", image_size=32), "test")


def read_mapping(path: Path) -> None:
    samples(AFLWLFPA(root=str(path.parent), image_size=32), "test")


def read_picture(path: Path) -> None:
    warnings.simplefilter("ignore")
    assert read_image(path, orient=True).dtype == np.uint8


def read_folder(path: Path) -> None:
    samples(ImageFolder(str(path.parent), boxes=str(path), image_size=32), "predict")


def read_box_table(path: Path) -> None:
    read_boxes(path)


def read_point_file(path: Path) -> None:
    if not np.isfinite(read_points(path)[:, :2]).all():
        raise DataError(f"{path} has missing points.")


def read_mesh(path: Path) -> None:
    load_mesh(path)


def read_scan_landmarks(path: Path) -> Scan:
    return read_scan(path.with_name(path.name.replace(".landmarks.csv", ".ply")))


def read_yaw_list(path: Path) -> None:
    AFLW20003D(root=str(path.parent), yaw_list=str(path)).make_dataset("test", TARGETS)


def clean(reader: Callable[[Path], object], source: Path, count: int) -> None:
    """Nothing but good files and named errors, and some of each."""
    counts = outcomes(reader, source, count)
    wrong = {name: number for name, number in counts.items() if name not in ("read", "named")}
    assert not wrong
    assert counts["read"] + counts["named"] == count
    assert counts["named"] > 0


@pytest.mark.parametrize("compressed", [False, True])
def test_label_files(tmp_path: Path, compressed: bool) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 1)
    (path,) = folder.glob("*.mat")
    rng = np.random.default_rng(0)
    write_photograph(path.with_suffix(".jpg"), rng, 64)
    face = rng.uniform(15, 50, size=(3, 68)).astype(np.float32)
    pose = np.array([[0.1, 0.2, 0.3, 32, 32, -10, 1e-4]], dtype=np.float32)
    fields = {"Pose_Para": pose, "pt3d_68": face, "roi": np.ones((1, 4), np.int16)}
    savemat(path, fields, do_compression=compressed)
    clean(read_aflw2000, path, 2000)


def test_rotated_labels(tmp_path: Path) -> None:
    write_300w_lp(tmp_path / "300W_LP", photographs=1, copies=1)
    (path,) = (tmp_path / "300W_LP" / "landmarks" / "AFW").glob("*.mat")
    clean(read_300w_lp, path, 800)


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_tables(tmp_path: Path, kind: str) -> None:
    columns = {"yaw": [1.0, 2.0], "subject": [0, 1], "split": ["test", "test"]}
    folder = write_table(tmp_path / "mine", 2, "21", **columns)  # type: ignore[arg-type]
    source = folder / "annotations.csv"
    if kind == "npz":
        table = read_annotations(folder, "21")
        source.unlink()
        source = type(table)(**{**table.__dict__, "path": folder / "annotations.npz"}).save()
    clean(read_own_table, source, 1500)


def test_maps_of_points(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "AFLW-LFPA", 1, "34", depth=False)
    (folder / "mapping.json").write_text(json.dumps([*range(30), [60, 64], [], [1, 2], 40]))
    clean(read_mapping, folder / "mapping.json", 600)


def test_boxes_and_points(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1,frame\na.png,10,10,50,50,\na.png,5,5,20,30,-1\n")
    clean(read_folder, tmp_path / "boxes.csv", 600)
    (tmp_path / "points.pts").write_text("version: 1\nn_points: 3\n{\n1.5 2.5\n3 4\n5 6\n}\n")
    counts = outcomes(read_point_file, tmp_path / "points.pts", 600)
    assert counts["read"] + counts["named"] == 600


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif", "webp", "gif", "lzw.tif", "alpha.png", "deep.png"])
def test_pictures(tmp_path: Path, kind: str) -> None:
    pixels = smooth_picture(np.random.default_rng(0), 48)
    image = Image.fromarray(pixels)
    if kind == "alpha.png":
        image.putalpha(128)
    elif kind == "deep.png":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    path = tmp_path / f"picture.{kind}"
    options = {"compression": "tiff_lzw"} if kind == "lzw.tif" else {}
    image.save(path, **options)
    clean(read_picture, path, 700)


@pytest.mark.parametrize("kind", ["obj", "ascii.ply", "binary.ply"])
def test_scans(tmp_path: Path, kind: str) -> None:
    clean(read_mesh, write_mesh(tmp_path, kind), 800)


def test_landmarks_of_scans(tmp_path: Path) -> None:
    path = landmark_path(write_mesh(tmp_path, "binary.ply"))
    path.write_text("index,x,y,z\n36,1,2,3\n45,4,5,6\n30,7,8,9\n8,0,1,2\n48,3,3,1\n")
    clean(read_scan_landmarks, path, 600)


def write_mesh(folder: Path, kind: str) -> Path:
    """A grid of 144 vertices."""
    trimesh = pytest.importorskip("trimesh")
    x, y = (values.ravel().astype(float) for values in np.mgrid[0:12, 0:12])
    vertices = np.stack((x, y, np.sin(x)), axis=1)
    corner = np.array([i * 12 + j for i in range(11) for j in range(11)])
    faces = np.concatenate(
        (np.stack((corner, corner + 1, corner + 12), 1), np.stack((corner + 1, corner + 13, corner + 12), 1))
    )
    path = folder / f"scan.{kind}"
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    suffix = kind.rpartition(".")[2]
    options = {"encoding": "ascii"} if kind == "ascii.ply" else {}
    written = trimesh.exchange.export.export_mesh(mesh, None, file_type=suffix, **options)
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    return path


def test_yaw_lists(tmp_path: Path) -> None:
    write_aflw2000(tmp_path / "AFLW2000", 2)
    module = AFLW20003D(root=str(tmp_path))
    dataset = module.make_dataset("test", TARGETS)
    assert dataset is not None
    yaw = [float(dataset.read(index).targets["yaw"]) for index in range(2)]
    np.save(tmp_path / "AFLW2000" / "yaw.npy", np.array(yaw))
    clean(read_yaw_list, tmp_path / "AFLW2000" / "yaw.npy", 800)
