"""300W-LP and 300W-3D in their layouts; dense targets against the published projection."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from datamodules.aflw2000 import AFLW20003D
from datamodules.augment import PRNetAugmentation, similarity_about_centre
from datamodules.base import FaceDataModule
from datamodules.components.fitted import PARAMETERS, FittedFaceDataset, convert_pose, flat_labels, photograph_pairs
from datamodules.components.images import read_image
from datamodules.components.matfile import read_mat
from datamodules.components.transform import crop_face
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D
from lightning_faces.batch import FaceSpec
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from tests.fakes.photographs import (
    BASES,
    SIZE,
    fake_face_model,
    fake_shape,
    project,
    write_300w_3d,
    write_300w_lp,
    write_aflw2000,
)


def make(module: FaceDataModule, split: str) -> FittedFaceDataset:
    dataset = module.make_dataset(split, module.available_targets)
    assert isinstance(dataset, FittedFaceDataset)
    dataset.image_size, dataset.margin = module.image_size, module.margin
    return dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_300w_lp(folder / "300W_LP")
    write_300w_3d(folder / "300W-3D")
    write_aflw2000(folder / "AFLW2000", 3)
    fake_face_model().save(folder / "bfm.npz")
    return folder


def test_300w_lp_takes_the_rotated_labels_not_pt2d(root: Path) -> None:
    dataset = make(W300LP(root=str(root), val_fraction=0), "train")
    assert len(dataset) == 4 * 2 * 3
    rotated = [i for i in range(len(dataset)) if dataset.numbers(i)["view"] == 2]
    for index in rotated[:3]:
        raw = dataset.read(index)
        mat = loadmat(root / "300W_LP" / f"{raw.sample_id}.mat")
        expected = project(fake_shape(mat), mat["Pose_Para"], SIZE)[:, :2] - 1
        assert np.abs(raw.targets["landmarks"][:, :2] - expected).max() < 1e-3
        assert np.abs(raw.targets["landmarks"][:, :2] - (mat["pt2d"].T - 1)).max() > 10
        assert raw.targets["landmark_mask"].all(axis=0).tolist() == [True, True, False]
    contour = make(W300LP(root=str(root), val_fraction=0, landmarks="2d"), "train").read(rotated[0])
    assert np.allclose(contour.targets["landmarks"][:5] - dataset.read(rotated[0]).targets["landmarks"][:5], (3, 0, 0))


def test_300w_lp_subsets_flips_and_validation_by_photograph(root: Path) -> None:
    module = W300LP(root=str(root), val_fraction=0.5)
    train, val = make(module, "train"), make(module, "val")
    assert len(train) + len(val) == 24
    photographs = [{dataset.sample_id(i).rpartition("_")[0] for i in range(len(dataset))} for dataset in (train, val)]
    assert not photographs[0] & photographs[1]
    assert len(photographs[0]) * 3 == len(train)
    assert {train.numbers(i)["subject"] for i in range(len(train))}.isdisjoint(
        val.numbers(i)["subject"] for i in range(len(val))
    )
    few = make(W300LP(root=str(root), subsets=["IBUG"], val_fraction=0), "train")
    assert {few.sample_id(i).split("/")[0] for i in range(len(few))} == {"IBUG"}
    both = make(W300LP(root=str(root), subsets=["IBUG"], include_flips=True, val_fraction=0), "train")
    assert len(both) == 8
    assert module.make_dataset("test", frozenset()) is None
    with pytest.raises(ConfigurationError, match="subset 'LFW'"):
        W300LP(subsets=["LFW"])


def test_300w_lp_without_labels_needs_the_face_model(tmp_path: Path, root: Path) -> None:
    folder = write_300w_lp(tmp_path / "300W_LP", photographs=1, copies=2, labels=False)
    with pytest.raises(DataError, match=r"no folder landmarks.*before rotation.*face_model"):
        W300LP(root=str(tmp_path)).make_dataset("train", frozenset())
    raw = make(W300LP(root=str(tmp_path), val_fraction=0, face_model=str(root / "bfm.npz")), "train").read(1)
    mat = loadmat(folder / f"{raw.sample_id}.mat")
    expected = project(fake_shape(mat), mat["Pose_Para"], SIZE) - (1, 1, 0)
    assert raw.targets["landmark_mask"].all()
    assert np.abs(raw.targets["landmarks"] - expected).max() < 0.01


def test_300w_3d_has_its_own_labels_and_ibug_as_test(root: Path) -> None:
    module = W3003D(root=str(root), val_fraction=0.3)
    test = make(module, "test")
    assert {test.sample_id(i).split("/")[0] for i in range(len(test))} == {"IBUG"}
    assert len(make(module, "train")) + len(make(module, "val")) == 9
    raw = test.read(1)
    mat = loadmat(root / "300W-3D" / f"{raw.sample_id}.mat")
    assert np.abs(raw.targets["landmarks"][:, :2] - (mat["pt2d"].T - 1)).max() < 1e-3
    with pytest.raises(ConfigurationError, match="needs the face model"):
        W3003D(landmarks="3d")
    deep = make(W3003D(root=str(root), landmarks="3d", face_model=str(root / "bfm.npz")), "test").read(1)
    assert deep.targets["landmark_mask"].all()


DENSE = frozenset({"vertices", "coefficients", "position_map", "pncc", "offsets", "face_mask", "landmarks", "pose"})


def test_dense_targets_are_those_of_the_published_projection(root: Path, tmp_path: Path) -> None:
    module = AFLW20003D(root=str(root), face_model=str(root / "bfm.npz"), position_map_size=64, cache_dir=str(tmp_path))
    assert module.available_targets >= DENSE
    dataset = module.make_dataset("test", DENSE)
    assert dataset is not None
    raw = dataset.read(1)
    mat = loadmat(root / "AFLW2000" / f"{raw.sample_id}.mat")
    shape = fake_shape(mat)
    expected = project(shape, mat["Pose_Para"], SIZE) - (1, 1, 0)
    assert np.abs(raw.targets["vertices"] - expected).max() < 0.01
    assert np.abs(raw.targets["landmarks"] - expected).max() < 0.01
    assert np.allclose(raw.targets["coefficients"][:199], mat["Shape_Para"][:, 0] / BASES["identity_std"], rtol=1e-5)
    assert np.allclose(raw.targets["coefficients"][199:], mat["Exp_Para"][:, 0] / BASES["expression_std"], rtol=1e-5)
    # A texel of the position map at a vertex's place shows about that vertex.
    model = fake_face_model()
    assert model.uv is not None
    texel = (model.uv[33] * 64 - 0.5).round().long()
    there = raw.targets["position_map"][:, texel[1], texel[0]]
    assert np.abs(there - expected[33]).max() < 6  # a texel is about 4 pixels of the photograph
    # What PNCC and offsets show, placed by the pose, is the pixel they are at.
    rows, columns = np.nonzero(raw.targets["face_mask"][0])
    assert len(rows) > 5_000
    points = (raw.targets["pncc"] + raw.targets["offsets"])[:, rows, columns].T * 1000
    back = project(points.astype(np.float64), mat["Pose_Para"], SIZE)[:, :2] - 1
    assert np.abs(back - np.stack((columns, rows), axis=1)).max() < 0.05
    assert not raw.targets["pncc"][:, raw.targets["face_mask"][0] == 0].any()


def test_dense_targets_are_cached_by_content_and_damage_is_mended(root: Path, tmp_path: Path) -> None:
    def read() -> dict[str, np.ndarray]:
        module = AFLW20003D(root=str(root), face_model=str(root / "bfm.npz"), cache_dir=str(tmp_path / "cache"))
        dataset = module.make_dataset("test", DENSE)
        assert dataset is not None
        return dataset.read(0).targets

    first = read()
    (file,) = (tmp_path / "cache").rglob("*.npz")
    stamp = file.stat().st_mtime_ns
    second = read()
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(file.read_bytes()[:100])
    third = read()
    assert file.stat().st_size > 1000
    for key, value in first.items():
        assert np.array_equal(value, second[key]), key
        assert np.array_equal(value, third[key]), key


def test_another_face_model_is_refused(root: Path, tmp_path: Path) -> None:
    model = fake_face_model()
    model.mean += torch.tensor([0.0, 8.0, 0.0])
    model.save(tmp_path / "other.npz")
    for module in (
        AFLW20003D(root=str(root), face_model=str(tmp_path / "other.npz")),
        W300LP(root=str(root), val_fraction=0, face_model=str(tmp_path / "other.npz")),
    ):
        split = "test" if isinstance(module, AFLW20003D) else "train"
        with pytest.raises(DataError, match=r"pixels away from the labels: give the Basel Face Model"):
            module.make_dataset(split, frozenset())
    with pytest.raises(ConfigurationError, match="199 and 29 parameters"):
        AFLW20003D(root=str(root), face_model="embedded").make_dataset("test", frozenset())


def test_a_sample_without_a_pose_lacks_pose_and_dense_targets_only(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "AFLW2000"
    shutil.copytree(root / "AFLW2000", folder)
    path = folder / "image00004.mat"
    fields = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
    fields["Pose_Para"][0, 6] *= -1  # "One negative scale" (FACTS.md A, Traps)
    savemat(path, fields)
    dataset = make(AFLW20003D(root=str(tmp_path), face_model=str(root / "bfm.npz")), "test")
    assert {"pose", "vertices", "coefficients"} <= dataset.read(0).targets.keys()
    assert dataset.read(1).targets.keys() == {"landmarks", "landmark_mask", "face_size", "yaw"}


def test_fake_model_survives_saving(root: Path) -> None:
    assert MorphableModel.load(str(root / "bfm.npz")).hash == fake_face_model().hash


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0])
def test_maps_of_an_augmented_crop_reproject_to_their_own_pixels(root: Path, degrees: float) -> None:
    module = AFLW20003D(root=str(root), face_model=str(root / "bfm.npz"), position_map_size=64)
    dataset = module.make_dataset("test", DENSE)
    assert dataset is not None

    class Turn(PRNetAugmentation):
        def matrix(self, image_size: int, rng: np.random.Generator) -> np.ndarray:
            return similarity_about_centre(image_size, 0.9, degrees, (4.0, -6.0))

    sample = crop_face(dataset.read(1), 128, 1.3, Turn(), np.random.default_rng(0))
    rows, columns = torch.nonzero(sample["face_mask"][0], as_tuple=True)
    assert len(rows) > 2000
    points = (sample["pncc"] + sample["offsets"])[:, rows, columns].T.double()
    placed = weak_perspective(points, sample["pose"].double())
    difference = placed[:, :2] - torch.stack((columns, rows), dim=1)
    # The nearest of the file's pixels is shown, and the crop is smaller than the file: half a file pixel at most.
    file_pixel = float(torch.linalg.det(sample["crop_to_file"][:, :2].double()).sqrt()) ** -1
    assert file_pixel < 0.6
    assert difference.abs().max() < 0.75 * file_pixel + 0.05
    # Vertices, landmarks and the position map went the same way.
    assert (sample["vertices"] - sample["landmarks"]).abs().max() < 1e-2
    model = fake_face_model()
    assert model.uv is not None
    texel = (model.uv[33] * 64 - 0.5).round().long()
    assert (sample["position_map"][:, texel[1], texel[0]] - sample["landmarks"][33]).abs().max() < 2


def test_without_the_face_model_a_method_on_dense_targets_is_told_what_to_get(root: Path) -> None:
    class Dense:
        requires = frozenset({"landmarks", "position_map", "vertices"})
        spec = FaceSpec()

    def module(**options: str) -> W300LP:
        made = W300LP(root=str(root), **options)  # type: ignore[arg-type]
        made.trainer = SimpleNamespace(lightning_module=Dense(), world_size=1)  # type: ignore[assignment]
        return made

    said = (
        r"Dense trains on position_map, vertices, which W300LP gives only with the Basel Face Model 2009.*import-model"
    )
    with pytest.raises(ConfigurationError, match=said):
        module().setup("fit")
    with_model = module(face_model=str(root / "bfm.npz"))
    with_model.setup("fit")
    assert {"position_map", "vertices"} <= with_model.datasets["train"].targets
    module().setup("validate")  # scoring needs no dense targets


def test_a_real_file_of_300w_lp_projects_the_mean_face_to_its_label() -> None:
    data = Path(os.environ.get("LIGHTNING_FACES_DATA", ""))
    if not (data / "300w_lp").is_dir():
        pytest.skip("LIGHTNING_FACES_DATA with 300w_lp is not set")
    # Without the archive's landmarks folder, pt2d is refused as a label.
    with pytest.raises(DataError, match="no folder landmarks"):
        W300LP(root=str(data), subsets=["IBUG"]).make_dataset("train", frozenset())
    (photograph, label) = photograph_pairs(data / "300w_lp" / "IBUG")[0]
    fields = read_mat(label, {"Pose_Para": (1, 7), "pt2d": (2, 68), **PARAMETERS})
    fitted = convert_pose(fields["Pose_Para"][0], read_image(photograph).shape[0])
    assert fitted.yaw == pytest.approx(-44.0, abs=0.1)  # FACTS.md A, Traps
    lines = (data / "landmarks" / "bfm_mean_68.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line[:1].isdigit()]
    mean = torch.tensor([[float(value) for value in row[1:]] for row in rows], dtype=torch.float64) / 1000
    assert fitted.pose is not None
    pose = torch.from_numpy(fitted.pose).double()
    label_points = fields["pt2d"].T - 1
    distance, mirrored = (
        np.linalg.norm(weak_perspective(mean, pose * pose.new_tensor(signs))[:, :2].numpy() - label_points, axis=1)
        for signs in ([1, 1, 1, 1, 1, 1], [1, 1, -1, 1, 1, 1])
    )
    # Brows, eyes, nose and mouth differ by the shape of this face alone; the labelled contour follows the silhouette.
    assert np.median(distance[17:]) < 8  # 6.2 measured
    assert np.median(mirrored[17:]) > 16
    assert distance[:17].max() > 20


def test_photographs_of_any_ending_and_case_are_found(tmp_path: Path) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 4)
    first, second, third, fourth = sorted(folder.glob("*.jpg"))
    first.rename(first.with_suffix(".JPG"))
    Image.open(second).save(second.with_suffix(".png"))
    second.unlink()
    third.with_suffix(".mat").rename(third.with_suffix(".MAT"))
    Image.open(fourth).save(fourth.with_suffix(".PNG"))  # beside X.jpg, which comes first
    pairs = photograph_pairs(folder)
    assert [(photograph.suffix, label.suffix) for photograph, label in pairs] == [
        (".JPG", ".mat"), (".png", ".mat"), (".jpg", ".MAT"), (".jpg", ".mat")
    ]  # fmt: skip
    module = AFLW20003D(root=str(tmp_path), image_size=32)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    module.configure(dataset, "test")
    assert len(dataset.__getitems__([(i, 0) for i in range(4)])) == 4


def test_labels_that_are_missing_are_masked() -> None:
    points = np.random.default_rng(0).uniform(10, 90, size=(68, 2))
    points[[3, 9]] = -1
    landmarks, mask = flat_labels(points)
    assert np.nonzero(~mask[:, 0])[0].tolist() == [3, 9]
    assert not mask[:, 2].any()
    assert np.array_equal(landmarks[0, :2], points[0] - 1)
