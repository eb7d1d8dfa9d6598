"""The command ``lightning-faces datasets``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.components.annotations import read_annotations
from datamodules.table import Table as OwnTable
from lightning_faces.commands.datasets import main
from lightning_faces.errors import DataError, LightningFacesError
from tests.fakes.photographs import write_300w_lp, write_aflw2000, write_table


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_FACES_DATA", raising=False)


def test_list_says_what_is_found_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # short paths, so that no cell is folded
    write_aflw2000(tmp_path / "AFLW2000", 3)
    write_300w_lp(tmp_path / "300W_LP", photographs=1, copies=1, labels=False)
    write_table(tmp_path / "BP4D", 2, "45")
    assert main(["--root", "."]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 test" in text
    assert "SyntheticFaces needs no files" in text
    assert "no folder landmarks" in text
    assert "no column yaw" in text
    for name in ("W300LP", "W3003D", "AFLW20003D", "ThreeDFAW", "BP4D", "AFLWLFPA", "Florence", "Menpo3D"):
        assert name in text
    assert main([]) == 0
    assert "give --root, or set LIGHTNING_FACES_DATA" in " ".join(capsys.readouterr().out.split())


def test_check_reports_every_bad_file_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 5)
    assert main(["check", "AFLW20003D", str(tmp_path)]) == 0
    assert "5 of 5 samples are good" in capsys.readouterr().out
    (folder / "image00004.jpg").write_bytes((folder / "image00004.jpg").read_bytes()[:500])
    (folder / "image00008.mat").write_bytes(b"")
    assert main(["check", "AFLW20003D", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "image00004.jpg is not a whole image" in text
    assert "image00008.mat is not a whole MATLAB file" in text
    assert "3 of 5 samples are good, 2 are bad." in text
    with pytest.raises(DataError, match="absent of AFLW20003D does not exist"):
        main(["check", "AFLW20003D", str(tmp_path / "absent")])


def test_check_of_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("no image")
    assert main(["check", "ImageFolder", str(tmp_path)]) == 1
    assert "1 of 2 samples are good" in capsys.readouterr().out


def test_convert_points_of_text_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, points = tmp_path / "3DFAW", tmp_path / "points"
    (pictures / "sub").mkdir(parents=True)
    (points / "sub").mkdir(parents=True)
    values = np.random.default_rng(0).uniform(1, 100, size=(2, 66, 3)).round(3)
    for name in ("a", "sub/b"):
        Image.new("RGB", (100, 100)).save(pictures / f"{name}.png")
    (points / "a.txt").write_text("\n".join(f"{x} {y} {z}" for x, y, z in values[0]))
    body = "\n".join(f"{x} {y}" for x, y, _ in values[1])
    (points / "sub" / "b.pts").write_text(f"version: 1\nn_points: 66\n{{\n{body}\n}}\n")
    assert main(["convert", "ThreeDFAW", str(pictures), str(points), "--one-based"]) == 0
    table = read_annotations(pictures, "66")
    assert table.file == ["a.png", "sub/b.png"]
    assert np.allclose(table.landmarks[..., :2], values[..., :2] - 1)
    assert np.allclose(table.landmarks[0, :, 2], values[0, :, 2])
    assert np.isnan(table.landmarks[1, :, 2]).all()
    with pytest.raises(LightningFacesError, match=r"annotations\.npz exists"):
        main(["convert", "ThreeDFAW", str(pictures), str(points)])
    (pictures / "annotations.npz").unlink()
    (points / "a.txt").write_text("1 2 3\n")
    with pytest.raises(LightningFacesError, match=r"a\.txt has 1 points, not the 66"):
        main(["convert", "ThreeDFAW", str(pictures), str(points)])
    (points / "a.txt").unlink()
    with pytest.raises(LightningFacesError, match=r"a\.txt does not exist, nor with \.csv or \.pts"):
        main(["convert", "ThreeDFAW", str(pictures), str(points)])
    assert not (pictures / "annotations.npz").exists()


def write_points(tmp_path: Path, count: int = 68, pictures: int = 4, missing: str = "") -> tuple[Path, Path]:
    """Pictures of 100 x 100 pixels with a text file of points for each; the first two points may be missing."""
    images, points = tmp_path / "mine", tmp_path / "points"
    images.mkdir()
    points.mkdir()
    rng = np.random.default_rng(0)
    for number in range(pictures):
        Image.fromarray(rng.integers(0, 255, size=(100, 100, 3), dtype=np.uint8)).save(images / f"{number}.PNG")
        lines = [f"{x:.2f} {y:.2f}" for x, y in rng.uniform(20, 80, size=(count, 2))]
        if missing:
            lines[:2] = [missing] * 2
        (points / f"{number}.TXT").write_text("\n".join(lines))
    return images, points


@pytest.mark.parametrize("missing", ["-1 -1", "0 0", "-1 -1 -1"])
@pytest.mark.parametrize("one_based", [False, True])
def test_missing_points_are_refused_or_masked_by_name(tmp_path: Path, missing: str, one_based: bool) -> None:
    images, points = write_points(tmp_path, missing=missing)
    command = ["convert", "Table", str(images), str(points), *(["--one-based"] if one_based else [])]
    with pytest.raises(DataError, match=r"0\.TXT has 2 landmark\(s\) at .*give their number with --missing"):
        main(command)
    assert not (images / "annotations.npz").exists()
    assert main([*command, "--missing", missing.split()[0]]) == 0
    landmarks = read_annotations(images, "68").landmarks
    assert np.isnan(landmarks[:, :2]).all()
    assert np.isfinite(landmarks[:, 2:, :2]).all()
    module = OwnTable(str(images), image_size=32, test_fraction=1)
    dataset = module.make_dataset("test", module.available_targets)
    assert dataset is not None
    assert float(dataset.read(0).targets["face_size"]) < 61  # of points from 20 to 80, not from -1


def test_own_labels_come_in_by_two_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, points = write_points(tmp_path, pictures=10)
    assert main(["convert", "Table", str(images), str(points)]) == 0
    assert f"use it with --data Table --data.root {images}" in capsys.readouterr().out.replace("\n", " ")
    assert main(["check", "Table", str(images)]) == 0
    assert "10 of 10 samples are good" in capsys.readouterr().out
    module = OwnTable(str(images), image_size=32, batch_size=3, num_workers=0)
    names = {}
    for stage, split in (("fit", "train"), ("fit", "val"), ("test", "test")):
        module.setup(stage)
        batches = list(getattr(module, f"{split}_dataloader")())
        names[split] = {name for batch in batches for name in batch["sample_id"]}
        for batch in batches:
            assert batch["landmark_mask"][..., :2].all()
            assert not batch["landmark_mask"][..., 2].any()  # labels without depth
            assert not batch["landmarks"][..., 2].any()
            assert {key for key, has in batch["has"].items() if has.any()} == {
                "landmarks",
                "landmark_mask",
                "face_size",
            }
    assert [len(names[split]) for split in ("train", "val", "test")] == [6, 1, 1]  # 8 in batches of 3, and 1 each
    assert not names["train"] & names["val"] | names["val"] & names["test"] | names["train"] & names["test"]


def test_own_labels_of_another_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, points = write_points(tmp_path, count=51)
    assert main(["convert", "Table", str(images), str(points)]) == 0
    assert "--data.landmark_scheme 51" in capsys.readouterr().out
    assert main(["check", "Table", str(images)]) == 0
    with pytest.raises(DataError, match=r"has 51 landmarks per face, not the 68.*option landmark_scheme"):
        OwnTable(str(images)).make_dataset("train", frozenset({"landmarks"}))
    (images / "annotations.npz").unlink()
    (points / "3.TXT").write_text("1 2\n3 4\n")
    with pytest.raises(DataError, match=r"3\.TXT has 2 points, not the 51 that fit"):
        main(["convert", "Table", str(images), str(points)])


def test_lines_that_are_no_points_are_named(tmp_path: Path) -> None:
    images, points = write_points(tmp_path)
    text = (points / "1.TXT").read_text()
    for line in ("1 2 3 4", "inf 2", "0 1.5 2.5 3.5 1"):
        (points / "1.TXT").write_text(f"{text}\n{line}\n")
        with pytest.raises(DataError, match=r"1\.TXT line 69 is no point of two or three numbers"):
            main(["convert", "Table", str(images), str(points)])


def test_what_a_conversion_leaves_out_is_said(tmp_path: Path) -> None:
    images, points = write_points(tmp_path)
    (images / "more.heic").write_bytes(b"x")
    (points / "stray.pts").write_text("1 2")
    with pytest.warns(UserWarning) as said:
        main(["convert", "Table", str(images), str(points)])
    text = " ".join(str(warning.message) for warning in said)
    assert "leaves out 1 file(s)" in text
    assert "1 .heic (more.heic)" in text
    assert "1 file(s) of" in text
    assert "stray.pts" in text


def test_damaged_label_files_are_named_and_the_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_aflw2000(tmp_path / "AFLW2000", 4)
    names = sorted(path.name for path in folder.glob("*.mat"))
    content = (folder / names[0]).read_bytes()
    (folder / names[0]).write_bytes(content[:200] + b"\xff" * 64 + content[264:])
    (folder / names[1]).write_bytes(content[: len(content) // 2])
    assert main(["check", "AFLW20003D", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert names[0] in text
    assert names[1] in text
    assert "2 of 4 samples are good" in text
