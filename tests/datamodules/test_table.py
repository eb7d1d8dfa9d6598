"""The import layout and the data sets that come in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import florence
from datamodules.aflwlfpa import AFLWLFPA
from datamodules.base import FaceDataModule
from datamodules.bp4d import BP4D
from datamodules.components.annotations import read_annotations
from datamodules.components.sampling import EvaluationSampler
from datamodules.components.tables import TableFaceDataset
from datamodules.florence import Florence
from datamodules.menpo import Menpo3D
from datamodules.threedfaw import ThreeDFAW
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import weak_perspective
from tests.datamodules.test_image_folder import write_video
from tests.fakes.photographs import fake_face_model, write_table


def make(module: FaceDataModule, split: str = "test") -> TableFaceDataset:
    dataset = module.make_dataset(split, module.available_targets)
    assert isinstance(dataset, TableFaceDataset)
    dataset.image_size, dataset.margin = module.image_size, module.margin
    return dataset


def test_csv_and_npz_hold_the_same(tmp_path: Path) -> None:
    write_table(tmp_path / "a", 4, "66", subject=[0, 0, 1, 1], view=[0, 1, 0, 1], yaw=[1.5, 2.5, -3, 4])
    table = read_annotations(tmp_path / "a", "66")
    (tmp_path / "b").mkdir()
    stored = read_annotations(
        type(table)(**{**table.__dict__, "path": tmp_path / "b" / "annotations.npz"}).save().parent, "66"
    )
    assert stored.file == table.file
    assert np.array_equal(stored.landmarks, table.landmarks)
    assert stored.yaw is not None
    assert stored.yaw.tolist() == [1.5, 2.5, -3, 4]
    assert stored.numbers["subject"].tolist() == [0, 0, 1, 1]


def test_3dfaw_draws_its_test_set_and_maps_to_68(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "3DFAW", 30, "66", subject=[i // 2 for i in range(30)])
    module = ThreeDFAW(root=str(tmp_path), test_size=8, val_fraction=0.3)
    train, val, test = (make(module, split) for split in ("train", "val", "test"))
    rows = [set(dataset.rows.tolist()) for dataset in (train, val, test)]
    assert len(rows[2]) == 8
    assert sum(map(len, rows)) == len(set.union(*rows)) == 30
    assert module.landmark_scheme == module.spec.landmark_scheme == "66"
    assert make(ThreeDFAW(root=str(tmp_path), test_size=8, seed=1)).rows.tolist() != test.rows.tolist()
    native = test.read(0)
    wide = make(ThreeDFAW(root=str(tmp_path), test_size=8, landmark_scheme="68")).read(0)
    assert native.targets["landmarks"].shape == (66, 3)
    assert wide.targets["landmarks"].shape == (68, 3)
    assert np.nonzero(~wide.targets["landmark_mask"].all(axis=1))[0].tolist() == [60, 64]
    kept = [i for i in range(68) if i not in (60, 64)]
    assert np.array_equal(wide.targets["landmarks"][kept], native.targets["landmarks"])
    assert abs(native.targets["landmarks"][:, 2].mean()) < 0.5
    with pytest.raises(DataError, match="no 5000 can be drawn"):
        make(ThreeDFAW(root=str(tmp_path)))
    lines = (folder / "annotations.csv").read_text().splitlines()
    marked = [lines[0] + ",split"] + [line + (",test" if i < 5 else ",train") for i, line in enumerate(lines[1:])]
    (folder / "annotations.csv").write_text("\n".join(marked))
    assert make(ThreeDFAW(root=str(tmp_path))).rows.tolist() == [0, 1, 2, 3, 4]


def test_3dfaw_paper_sizes() -> None:
    class Table:
        file = [""] * 18_694
        path = Path("annotations.csv")

    assert len(ThreeDFAW(root="x").test_rows(Table())) == 5000  # type: ignore[arg-type]
    assert 18_694 - 5000 == 13_694  # Zhao 2016, section 6


def test_unpublished_maps_are_asked_for(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "AFLW-LFPA", 3, "34", depth=False)
    with pytest.raises(DataError, match=r"mapping\.json does not exist.*34-point.*JSON list with 34 entries"):
        make(AFLWLFPA(root=str(tmp_path)))
    (folder / "mapping.json").write_text(json.dumps([*range(32), [60, 64], []]))
    dataset = make(AFLWLFPA(root=str(tmp_path)))
    targets = dataset.read(1).targets
    assert targets["landmarks"].shape == (68, 3)
    known = targets["landmark_mask"]
    assert known[:32, :2].all()
    assert not known[32:].any()
    assert not known[..., 2].any()  # 2D labels
    # The face's size is that of the table's box, here of the given points, through any crop.
    sample = dataset[1]
    scale = float(torch.linalg.det(sample["crop_to_file"][:, :2]).sqrt())
    assert float(sample["face_size"]) * scale == pytest.approx(float(targets["face_size"]), rel=1e-4)
    assert not sample["landmarks"][32:].any()
    (folder / "mapping.json").write_text(json.dumps([*range(33), 99]))
    with pytest.raises(DataError, match=r"mapping\.json is not a map.*index 99"):
        make(AFLWLFPA(root=str(tmp_path)))


def test_visibility_and_boxes_come_from_the_table(tmp_path: Path) -> None:
    visible = {f"visible{i}": [i % 2, 1] for i in range(34)}
    box = {"box_x0": [10, 12], "box_y0": [20, 22], "box_x1": [90, 92], "box_y1": [80, 82]}
    folder = write_table(tmp_path / "AFLW-LFPA", 2, "34", depth=False, **box, **visible)
    (folder / "mapping.json").write_text(json.dumps(list(range(34))))
    raw = make(AFLWLFPA(root=str(tmp_path))).read(0)
    assert raw.box.tolist() == [10, 20, 90, 80]
    assert raw.targets["face_size"] == pytest.approx(np.sqrt(80 * 60))
    assert raw.targets["visible"].tolist() == [i < 34 and i % 2 == 1 for i in range(68)]


def test_bp4d_protocol_needs_yaw_and_enough_faces(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "BP4D-S", 3, "45")
    (folder / "mapping.json").write_text(json.dumps(list(range(45))))
    with pytest.raises(DataError, match="no column yaw"):
        make(BP4D(root=str(tmp_path)))
    assert len(make(BP4D(root=str(tmp_path), protocol="all"))) == 3
    write_table(folder, 3, "45", yaw=[1, 2, 3])
    with pytest.raises(DataError, match="There are 3 samples with a yaw of 0 to 10 degrees, not 100"):
        make(BP4D(root=str(tmp_path)))


def test_menpo_keeps_sequences_in_order_and_whole(tmp_path: Path) -> None:
    sequence, frame = [1, 0, 1, 0, 2, 1], [2, 1, 0, 0, 0, 1]
    folder = write_table(tmp_path / "Menpo3D", 6, "68", sequence=sequence, frame=frame)
    dataset = make(Menpo3D(root=str(tmp_path)))
    numbers = [dataset.read(i).numbers for i in range(6)]
    assert [(n["sequence"], n["frame"]) for n in numbers] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    shards = [[i for i, _ in EvaluationSampler(dataset, 2, rank)] for rank in range(2)]
    assert sorted(map(len, shards)) == [3, 3]
    assert [2, 3, 4] in shards
    # Frames of a video instead of pictures.
    write_video(folder / "clip.mp4", 4)
    lines = (folder / "annotations.csv").read_text().splitlines()
    changed = [lines[0]] + [",".join(["clip.mp4", *line.split(",")[1:]]) for line in lines[1:4]]
    (folder / "annotations.csv").write_text("\n".join(changed))
    dataset = make(Menpo3D(root=str(tmp_path)))
    assert [dataset.sample_id(i) for i in range(3)] == ["clip.mp4#000001", "clip.mp4#000000", "clip.mp4#000002"]
    assert abs(float(dataset.read(2).image.mean()) - 20) < 5


def test_florence_places_registered_scans_by_the_pose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pose = {"scale": [0.5, 0.5], "pitch": [0.1, 0], "yaw_rad": [0.7, 0], "roll": [0, 0], "tx": [60, 60], "ty": [55, 55]}
    folder = write_table(tmp_path / "Florence", 2, "68", scan=["s.obj", ""], subject=[7, 8], view=[3, 4], **pose)
    (folder / "s.obj").write_text("v 0 0 0")
    model = fake_face_model()
    model.save(tmp_path / "model.npz")
    registered = (model.mean.numpy() + 1, np.ones(68, dtype=bool))
    monkeypatch.setattr(florence, "registered_scan", lambda *_: registered)
    module = Florence(root=str(tmp_path), face_model=str(tmp_path / "model.npz"))
    assert module.spec.num_vertices == 68
    raw = make(module).read(0)
    expected = weak_perspective(
        torch.from_numpy(registered[0]).double(), torch.tensor([0.5, 0.1, 0.7, 0, 60, 55], dtype=torch.float64)
    )
    assert np.abs(raw.targets["vertices"] - expected.numpy()).max() < 1e-3
    assert raw.numbers == {"subject": 7, "view": 3}
    assert "vertices" not in make(module).read(1).targets
    assert "vertices" not in make(Florence(root=str(tmp_path))).read(0).targets
    # A table with a box for each picture and no landmarks: those of the registered model.
    table = read_annotations(folder, "68")
    boxes = np.array([[20.0, 20, 100, 90]] * 2)
    (folder / "annotations.csv").unlink()
    replace(table, path=folder / "annotations.npz", landmarks=np.zeros((2, 0, 3)), box=boxes).save()
    raw = make(module).read(0)
    landmarks = model.landmarks(torch.from_numpy(expected.numpy())[None], "bfm")[0].numpy()
    assert np.abs(raw.targets["landmarks"] - landmarks).max() < 1e-3
    assert raw.targets["landmark_mask"].all()
    size = np.sqrt(np.prod(np.ptp(landmarks[:, :2], axis=0)))
    assert raw.targets["face_size"] == pytest.approx(size, rel=1e-4)
    assert raw.box.tolist() == [20, 20, 100, 90]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x0,y0\n1,2\n", "no column file"),
        ("file,x0,y0\na.jpg,1\n", "line 2 has 2 cells for 3"),
        ("file,x0,y0\na.jpg,1,2\nb.jpg,1,abc\n", "line 3 column y0 is 'abc'"),
        ("file,x0,y0\na.jpg,1,2\n", "has 1 landmarks per face, not the 66"),
        ("file,split\na.jpg,training\n", "split 'training'"),
        ("file,frame\na.jpg,1.5\n", "column frame has values that are no whole"),
        ("file\n", "has no row|landmarks per face"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "annotations.csv").write_text(text)
    with pytest.raises(DataError, match=rf"annotations\.csv.*({message})"):
        read_annotations(tmp_path, "66")


def test_missing_double_and_damaged_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither annotations\.csv nor"):
        read_annotations(tmp_path, "66")
    (tmp_path / "annotations.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"annotations\.npz is not a whole NPZ file"):
        read_annotations(tmp_path, "66")
    (tmp_path / "annotations.csv").write_text("file\n")
    with pytest.raises(DataError, match="has both"):
        read_annotations(tmp_path, "66")


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "3DFAW", 2, "66")
    text = (folder / "annotations.csv").read_text()
    (folder / "annotations.csv").write_text(text.replace("pictures/0001.jpg", "../secret.jpg"))
    dataset = make(ThreeDFAW(root=str(tmp_path), test_size=1, val_fraction=0), "train")
    other = make(ThreeDFAW(root=str(tmp_path), test_size=1, val_fraction=0), "test")
    with pytest.raises(DataError, match="which is outside"):
        [part.read(0) for part in (dataset, other)]


def test_bp4d_points_go_into_the_scheme_of_3dfaw(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "BP4D-S", 2, "45")
    mapping = [i for i in range(17, 68) if i not in (60, 61, 63, 64, 65, 67)]
    (folder / "mapping.json").write_text(json.dumps(mapping))
    module = BP4D(root=str(tmp_path), protocol="all", landmark_scheme="66")
    assert module.spec.landmark_scheme == "66"
    raw = make(module).read(0)
    points, mask = raw.targets["landmarks"], raw.targets["landmark_mask"]
    kept = [i for i in range(68) if i not in (60, 64)]
    assert np.nonzero(mask.all(axis=1))[0].tolist() == [kept.index(i) for i in mapping]
    np.testing.assert_allclose(points[mask.all(axis=1)], read_annotations(folder, "45").landmarks[0], atol=1e-5)
    with pytest.raises(ConfigurationError, match="landmark_scheme is '45': use '66' or '68'"):
        BP4D(landmark_scheme="45")  # type: ignore[arg-type]
