"""Numbers that stand for missing points are refused, or masked where they are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules.components.annotations import read_annotations
from datamodules.components.sentinels import mask_missing, refuse_sentinels
from datamodules.table import Table
from lightning_faces.errors import DataError
from tests.fakes.photographs import write_table

PATH = Path("points.txt")


def faces(count: int = 3) -> np.ndarray:
    points = np.random.default_rng(0).uniform(60, 160, size=(count, 68, 3))
    points[..., 2] = np.nan
    return points


@pytest.mark.parametrize("value", [0.0, -1.0, -2.0, -9999.0, 9999.0, 65535.0])
def test_repeated_sentinels_are_refused(value: float) -> None:
    points = faces()
    points[0, 3, :2] = points[2, 9, :2] = value
    with pytest.raises(DataError, match=rf"points\.txt has 2 landmark\(s\) at \({value:g}, {value:g}\), .* do that"):
        refuse_sentinels(PATH, points, "do that")
    refuse_sentinels(PATH, mask_missing(points, value), "do that")


def test_one_alone_is_refused_where_it_is_far_from_the_face() -> None:
    points = faces(1)
    points[0, 0, :2] = -1
    with pytest.raises(DataError, match=r"has 1 landmark\(s\) at \(-1, -1\)"):
        refuse_sentinels(PATH, points, "do that")
    near = faces(1) - 60  # a face at the picture's corner, from (0, 0) on
    near[0, 0, :2] = 0
    refuse_sentinels(PATH, near, "do that")


def test_any_place_that_three_points_of_a_face_share_outside_the_others() -> None:
    points = faces()
    points[1, 4:7, :2] = (5.5, 300.25)
    with pytest.raises(DataError, match=r"has 3 landmarks of one face at \(5\.5, 300\.25\)"):
        refuse_sentinels(PATH, points, "do that")
    points[1, 4:7, :2] = (100.0, 120.0)  # three coarse labels within the face
    refuse_sentinels(PATH, points, "do that")


def test_points_on_the_picture_s_edge_and_closed_lips_are_no_sentinels() -> None:
    points = faces()
    points[:, 0, 0] = 0  # x is clipped, y is not
    points[:, 61:64, :2] = points[:, [67, 66, 65], :2]
    points[0, 5, :2] = 100  # x = y within the picture
    points[1, 5, :2] = 100
    refuse_sentinels(PATH, points, "do that")


def test_a_table_with_sentinels_is_refused_or_told_which(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "mine", 6, "68", depth=False)
    whole = read_annotations(folder, "68")
    lines = [line.split(",") for line in (folder / "annotations.csv").read_text().splitlines()]
    for row in (1, 4):
        lines[row][1:5] = ["-1", "-1", "-1", "-1"]
    (folder / "annotations.csv").write_text("\n".join(",".join(line) for line in lines))
    with pytest.raises(
        DataError, match=r"annotations\.csv has 4 landmark\(s\) at \(-1, -1\).*leave the cells .* empty"
    ):
        read_annotations(folder, "68")
    module = Table(str(folder), missing=-1, test_fraction=1)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    raw = dataset.read(0)
    assert raw.targets["landmark_mask"][:, 0].tolist() == [False, False, *[True] * 66]
    known = whole.landmarks[0, 2:, :2]
    assert float(raw.targets["face_size"]) == pytest.approx(float(np.sqrt(np.ptp(known, axis=0).prod())), rel=1e-5)
