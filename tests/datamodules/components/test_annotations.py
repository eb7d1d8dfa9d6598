"""Tables with hostile or damaged cells give a table or one sentence that names the file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.components.annotations import read_annotations, read_mapping
from datamodules.components.scans import landmark_path, read_scan
from datamodules.image_folder import read_boxes
from datamodules.table import Table
from lightning_faces.errors import DataError
from tests.fakes.photographs import write_table

COLUMNS: dict[str, Any] = {
    "subject": [0, 1, 2], "view": [0, 0, 0], "yaw": [1.0, 2.0, 3.0], "split": ["train", "val", "test"],
    "scale": [1.0] * 3, "pitch": [0.0] * 3, "yaw_rad": [0.0] * 3, "roll": [0.0] * 3, "tx": [60.0] * 3, "ty": [60.0] * 3,
    "visible0": [1] * 3, "box_x0": [10] * 3, "box_y0": [10] * 3, "box_x1": [90] * 3, "box_y1": [90] * 3,
    "scan": [""] * 3,
}  # fmt: skip
HOSTILE = (
    "", "nan", "inf", "-inf", "1e400", "1e30", "-1", "0", "1_0", "0x10", "1,5", "x", "../../etc/passwd", "/etc/passwd",
    "~", "=1+1", "\x00", "a" * 5000, "\u202e", "pictures", "pictures/0000.jpg/x", "1" * 400, "True", "None",
    "frame.mp4", "\U0001f600" * 80,
)  # fmt: skip


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    folder = write_table(tmp_path_factory.mktemp("tables") / "mine", 3, "21", **COLUMNS)
    return folder, [line.split(",") for line in (folder / "annotations.csv").read_text().splitlines()]


@pytest.mark.parametrize("column", ["file", "x0", "y3", "z20", *COLUMNS])
def test_any_cell_may_hold_anything(lines: tuple[Path, list[list[str]]], column: str) -> None:
    folder, cells = lines
    place = cells[0].index(column)
    for value in HOSTILE:
        rows = [list(row) for row in cells]
        rows[3][place] = f'"{value}"'
        (folder / "annotations.csv").write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
        try:
            module = Table(str(folder), landmark_scheme="21", image_size=32)
            dataset = module.make_dataset("test", module.available_targets)
            if dataset is None:
                continue
            module.configure(dataset, "test")
            sample = dataset[0]
        except DataError as error:
            assert "mine" in str(error)
        else:
            for key in ("landmarks", "pose", "yaw", "face_size"):
                assert key not in sample or np.isfinite(sample[key].numpy()).all(), (column, value)


def test_a_table_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 68, 3), }".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "annotations.npz", "w") as archive:
        archive.writestr("files.npy", _npy(np.array(["a.jpg"])))
        archive.writestr("landmarks.npy", array + bytes(100))
    with pytest.raises(DataError, match=r"annotations\.npz is not a whole NPZ file .*10000000000"):
        read_annotations(tmp_path, "68")


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        ("files", np.array(1), r"array files has shape \(\)"),
        ("files", np.array([1.0, 2.0]), "array files has values of type float64, not text"),
        ("landmarks", np.array(["a", "b"]), r"array landmarks has shape \(2,\) for 2 faces"),
        ("yaw", np.array(["a", "b"]), "array yaw has values of type <U1, not numbers"),
        ("landmarks", np.zeros((2, 68, 2)), r"array landmarks has shape \(2, 68, 2\)"),
        ("subject", np.array([0.5, 1.0]), "column subject has values that are no whole numbers"),
        ("subject", np.array([1e300, 1.0]), "column subject has values that are no whole numbers"),
        ("visible", np.ones((2, 5), dtype=bool), "says of 5 points whether they are visible, not of 68"),
        ("box", np.full((2, 4), np.inf), "has a box with a number beyond 1e"),
        ("pose", np.zeros((2, 6)), "has a pose whose scale is not positive"),
        ("split", np.array(["train", ""]), "has split ''"),
        ("files", np.array(["a.jpg", "\ud800.jpg"]), "names a file"),
    ],
)
def test_arrays_of_another_kind_are_named(tmp_path: Path, name: str, array: Any, problem: str) -> None:
    arrays = {"files": np.array(["a.jpg", "b.jpg"]), "landmarks": np.full((2, 68, 3), np.nan), name: array}
    np.savez(tmp_path / "annotations.npz", **arrays)
    with pytest.raises(DataError, match=rf"annotations\.npz {problem}|annotations\.npz .*{problem}"):
        read_annotations(tmp_path, "68")


def test_columns_that_come_twice_and_lines_behind_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("file,x0,x0\na.jpg,1,2\n")
    with pytest.raises(DataError, match="has the column 'x0' twice"):
        read_annotations(tmp_path, None)
    (tmp_path / "annotations.csv").write_text("file,yaw\n\n\na.jpg,1\n\nb.jpg,x\n")
    with pytest.raises(DataError, match=r"annotations\.csv line 6 column yaw is 'x', not a number"):
        read_annotations(tmp_path, None)


def test_any_case_of_the_table_and_of_its_pictures(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "mine", 3, "68")
    (folder / "annotations.csv").rename(folder / "Annotations.CSV")
    (folder / "pictures" / "0001.jpg").rename(folder / "pictures" / "0001.JPG")
    module = Table(str(folder), test_fraction=1)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    assert dataset.read(1).image.shape == (120, 120, 3)


@pytest.mark.parametrize(
    "text", ["{}", "[true]", "[[[1]]]", "[" * 100_000, "[1.5]", '["a"]', "null", "\ufeff[]", "[-1]"]
)
def test_maps_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "mapping.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"mapping\.json is not a map of 34 points"):
        read_mapping(tmp_path, "34")
    (tmp_path / "mapping.json").write_text(json.dumps([[]] * 34))
    assert read_mapping(tmp_path, "34") == [[]] * 34


@pytest.mark.parametrize(
    "row", ["a.png,1,2,3", "a.png,x,2,3,4,", "a.png,9,2,3,4,", "a.png,1,2,3,4,1.5", "a.png,1,2,3,inf,"]
)
def test_boxes_that_are_none(tmp_path: Path, row: str) -> None:
    (tmp_path / "boxes.csv").write_text(f"file,x0,y0,x1,y1,frame\n{row}\n")
    with pytest.raises(DataError, match=r"boxes\.csv line 2 "):
        read_boxes(tmp_path / "boxes.csv")


def test_a_scan_that_claims_more_than_it_holds_or_points_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\n"
    properties = "".join(f"property double {axis}\n" for axis in "xyz")
    (tmp_path / "a.ply").write_bytes(f"{header}{properties}end_header\n".encode() + bytes(500))
    with pytest.raises(DataError, match=r"a\.ply cannot be read \(its header claims 96000000000 bytes"):
        read_scan(tmp_path / "a.ply")
    vertices = "".join(f"v {i % 12} {i // 12} {i % 5}\n" for i in range(144))
    (tmp_path / "secret.mtl").write_text("newmtl skin\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "b.obj").write_text(f"mtllib ../secret.mtl\nusemtl skin\n{vertices}f 1 2 200\n")
    with pytest.raises(DataError, match=r"b\.obj "):
        read_scan(inner / "b.obj")
    (inner / "b.obj").write_text(f"mtllib ../secret.mtl\nusemtl skin\n{vertices}f 1 2 13\n")
    landmark_path(inner / "b.obj").write_text("index,x,y,z\n36,0,0,0\n45,0,0,0\n30,1,1,1\n8,2,2,2\n")
    with pytest.raises(DataError, match="two landmarks at one place"):
        read_scan(inner / "b.obj")


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
