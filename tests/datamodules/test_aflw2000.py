"""AFLW2000-3D: conventions against the published projection, on fakes and on real files."""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from datamodules.aflw2000 import AFLW20003D, AFLW20003DDataset
from datamodules.components.fitted import convert_pose
from lightning_faces.errors import DataError
from lightning_faces.geometry import euler_to_matrix, similarity_transform, transform_points, weak_perspective
from tests.fakes.photographs import SIZE, fake_shape, write_aflw2000


def make(root: Path, **options: object) -> AFLW20003DDataset:
    module = AFLW20003D(root=str(root), num_workers=0, **options)  # type: ignore[arg-type]
    dataset = module.make_dataset("test", module.available_targets)
    assert isinstance(dataset, AFLW20003DDataset)
    dataset.image_size, dataset.margin = module.image_size, module.margin
    return dataset


def test_pose_projects_the_model_to_the_landmarks(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 4)
    dataset = make(tmp_path)
    assert len(dataset) == 4
    for index in range(4):
        raw = dataset.read(index)
        pose = torch.from_numpy(raw.targets["pose"]).double()
        shape = fake_shape(loadmat(folder / f"{raw.sample_id}.mat")) / 1000
        projected = weak_perspective(torch.from_numpy(shape), pose)
        difference = projected - torch.from_numpy(raw.targets["landmarks"]).double()
        assert difference[:, :2].abs().max() < 1e-3
        assert difference[:, 2].std() < 1e-3  # depth has no origin: the file's includes tz
        assert raw.targets["yaw"] == pytest.approx(math.degrees(raw.targets["pose"][2]), abs=1e-4)


def test_crop_returns_to_the_file(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "aflw2000_3d", 2)
    dataset = make(tmp_path, image_size=128, margin=1.4)
    sample = dataset[1]
    assert sample["sample_id"] == "image00004"
    stored = torch.from_numpy(loadmat(folder / "image00004.mat")["pt3d_68"].T).double()
    back = transform_points(sample["crop_to_file"].double(), sample["landmarks"].double())
    assert (back[:, :2] + 1 - stored[:, :2]).abs().max() < 1e-3  # 1-based in the file
    assert (back[:, 2] - stored[:, 2]).abs().max() < 1e-3
    width, height = sample["box"][2:] - sample["box"][:2]
    assert max(width, height) == pytest.approx(128 / 1.4, abs=1e-3)
    assert sample["face_size"] == pytest.approx(math.sqrt(width * height), rel=1e-5)
    square = make(tmp_path, image_size=128, margin=1.6, box="square")[1]["box"]
    assert square[2] - square[0] == pytest.approx(128 / 1.6, abs=1e-3)


def test_bad_files_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 6)
    (folder / "image00002.jpg").write_text("not an image")
    fields = {key: value for key, value in loadmat(folder / "image00004.mat").items() if key[0] != "_"}
    del fields["pt3d_68"]
    savemat(folder / "image00004.mat", fields)
    (folder / "image00006.mat").unlink()
    dataset = make(tmp_path)
    for index, message in enumerate([r"image00002\.jpg", r"image00004\.mat has no field pt3d_68", r"image00006\.mat"]):
        with pytest.raises(DataError, match=message):
            dataset[index]
    outside = tmp_path / "elsewhere.jpg"
    (folder / "image00008.jpg").rename(outside)
    (folder / "image00008.jpg").symlink_to(outside)
    with pytest.raises(DataError, match="is a link out of"):
        dataset[3]
    skipping = make(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=r"skips a sample: .*image00002\.jpg"):
        samples = skipping.__getitems__([0, 4, 5])
    assert [sample["sample_id"] for sample in samples] == ["image00010", "image00012"]
    assert skipping.skipped == 1
    with pytest.warns(UserWarning, match="skips"), pytest.raises(DataError, match="All 2 samples"):
        skipping.__getitems__([0, 1])
    assert skipping.skipped == 2
    assert make(tmp_path / "AFLW2000").fingerprint() == dataset.fingerprint()


def test_an_error_in_a_loader_process_is_the_same_sentence(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 2)
    (folder / "image00002.jpg").write_text("not an image")
    messages = []
    for workers in (0, 1):
        module = AFLW20003D(root=str(tmp_path), num_workers=workers)
        module.setup("test")
        with pytest.raises(DataError, match=r"image00002\.jpg is not a whole image") as caught:
            list(module.test_dataloader())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    skipping = AFLW20003D(root=str(tmp_path), num_workers=1, on_error="skip")
    skipping.setup("test")
    (batch,) = list(skipping.test_dataloader())
    assert batch["sample_id"] == ["image00004"]
    with pytest.warns(UserWarning, match="1 of 2 test samples of AFLW20003D were skipped"):
        skipping.teardown("test")  # counted across processes


def test_a_missing_folder_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_FACES_DATA", raising=False)
    with pytest.raises(DataError, match=r"LIGHTNING_FACES_DATA is not set.*3DDFA"):
        AFLW20003D().make_dataset("test", frozenset())
    with pytest.raises(DataError, match=r"absent of AFLW20003D does not exist.*3DDFA"):
        AFLW20003D(root=str(tmp_path / "absent")).make_dataset("test", frozenset())
    with pytest.raises(DataError, match="no photographs"):
        AFLW20003D(root=str(tmp_path)).make_dataset("test", frozenset())
    monkeypatch.setenv("LIGHTNING_FACES_DATA", str(write_aflw2000(tmp_path / "AFLW2000-3D", 1).parent))
    assert len(make_default()) == 1


def make_default() -> AFLW20003DDataset:
    dataset = AFLW20003D().make_dataset("test", frozenset())
    assert isinstance(dataset, AFLW20003DDataset)
    return dataset


def test_outliers_and_yaw_lists(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 3)
    path = folder / "image00004.mat"
    fields = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
    fields["Pose_Para"][0, 2] = math.radians(-972)  # "angles reach +-972 degrees" (FACTS.md A, Traps)
    savemat(path, fields)
    assert len(make(tmp_path)) == 3
    assert [p.stem for p, _ in make(tmp_path, max_angle=99.0).pairs] == ["image00002", "image00006"]
    yaw = np.array([float(make(tmp_path)[i]["yaw"]) + 5 * (-1) ** i for i in range(3)])
    np.save(tmp_path / "new.npy", yaw)
    listed = make(tmp_path, yaw_list=str(tmp_path / "new.npy"))
    assert [float(listed[i]["yaw"]) for i in range(3)] == pytest.approx(yaw.tolist(), abs=1e-4)
    np.save(tmp_path / "new.npy", yaw[:2])
    with pytest.raises(DataError, match="2 values for 3 photographs"):
        make(tmp_path, yaw_list=str(tmp_path / "new.npy"))
    np.save(tmp_path / "new.npy", 90 - np.abs(yaw))
    with pytest.raises(DataError, match="does not belong"):
        make(tmp_path, yaw_list=str(tmp_path / "new.npy"))


def test_a_negative_scale_is_no_pose() -> None:
    assert convert_pose(np.array([0.1, 0.2, 0.3, 10, 20, 0, -1e-3]), SIZE).pose is None


def test_image_size_is_taken_from_the_file(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 1)
    path = folder / "image00002.jpg"
    Image.open(path).convert("L").crop((0, 0, 450, 400)).save(path)
    raw = make(tmp_path).read(0)
    assert raw.image.shape == (400, 450, 3)
    assert raw.targets["pose"][5] == pytest.approx(
        400 - loadmat(folder / "image00002.mat")["Pose_Para"][0, 4], abs=1e-3
    )


@pytest.fixture(scope="module")
def real() -> Path:
    data = os.environ.get("LIGHTNING_FACES_DATA")
    if not data or not (Path(data) / "aflw2000_3d").is_dir():
        pytest.skip("LIGHTNING_FACES_DATA with aflw2000_3d is not set")
    return Path(data)


def sfm_mean(data: Path) -> tuple[torch.Tensor, list[int]]:
    """Points of the Surrey model's mean that match iBUG's, and which those are (FACTS.md F: cereal layout)."""
    content = (data / "sfm" / "sfm_shape_3448.bin").read_bytes()
    rows, _ = struct.unpack_from("<ii", content, 4)
    mean = np.frombuffer(content, "<f4", rows, 12).reshape(-1, 3).astype(np.float64)
    lines = (data / "sfm" / "ibug_to_sfm.txt").read_text().split("[landmark_mappings]")[1].split("\n[")[0]
    pairs = [(int(a) - 1, int(b)) for a, b in re.findall(r"^\s*(\d+)\s*=\s*(\d+)", lines, flags=re.MULTILINE)]
    return torch.from_numpy(mean[[vertex for _, vertex in pairs]]), [ibug for ibug, _ in pairs]


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(torch.trace(a.T @ b)) - 1) / 2))))


def test_pose_of_real_files_is_that_of_another_face_model_fitted_to_their_points(real: Path) -> None:
    source, indices = sfm_mean(real)
    assert len(indices) == 50
    dataset = make(real)
    errors, transposed = [], []
    for index in range(len(dataset)):
        targets = dataset.read(index).targets
        points = torch.from_numpy(targets["landmarks"]).double()[indices] * torch.tensor([1.0, -1.0, 1.0])
        _, fitted, _ = similarity_transform(source, points)
        rotation = euler_to_matrix(torch.from_numpy(targets["pose"][1:4]).double())
        errors.append(angle_between(rotation, fitted))
        transposed.append(angle_between(rotation.T, fitted))
    assert np.median(errors) < 5  # 3.7 measured
    assert np.median(transposed) > 50  # 59 measured: the test can tell


def test_the_mean_face_lands_on_real_landmarks(real: Path) -> None:
    lines = (real / "landmarks" / "bfm_mean_68.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line[:1].isdigit()]
    mean = torch.tensor([[float(value) for value in row[1:]] for row in rows], dtype=torch.float64) / 1000
    dataset = make(real)
    offsets = []
    for index in range(len(dataset)):
        targets = dataset.read(index).targets
        placed = weak_perspective(mean, torch.from_numpy(targets["pose"]).double())
        offsets.append((placed - torch.from_numpy(targets["landmarks"]).double())[:, :2].mean(dim=0).numpy())
    # A y that is not flipped, or an origin at the wrong corner, is off by tens of pixels; 0.1 and 0.5 were measured.
    assert np.abs(np.median(offsets, axis=0)).max() < 1
