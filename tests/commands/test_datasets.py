"""The command ``lightning-faces datasets``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.components.annotations import read_annotations
from lightning_faces.commands.datasets import main
from tests.fakes.photographs import write_300w_lp, write_aflw2000, write_table


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_FACES_DATA", raising=False)


def test_list_says_what_is_found_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_aflw2000(tmp_path / "AFLW2000", 3)
    write_300w_lp(tmp_path / "300W_LP", photographs=1, copies=1, labels=False)
    write_table(tmp_path / "BP4D", 2, "45")
    assert main(["--root", str(tmp_path)]) == 0
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
    assert main(["check", "AFLW20003D", str(tmp_path / "absent")]) == 2
    assert "absent of AFLW20003D does not exist" in capsys.readouterr().err


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
    assert main(["convert", "ThreeDFAW", str(pictures), str(points)]) == 2
    assert "annotations.npz exists" in capsys.readouterr().err
    (pictures / "annotations.npz").unlink()
    (points / "a.txt").write_text("1 2 3\n")
    assert main(["convert", "ThreeDFAW", str(pictures), str(points)]) == 2
    assert "a.txt has 1 points, not the 66" in capsys.readouterr().err
    (points / "a.txt").unlink()
    assert main(["convert", "ThreeDFAW", str(pictures), str(points)]) == 2
    assert "a.txt does not exist, nor with .csv or .pts" in capsys.readouterr().err
    assert not (pictures / "annotations.npz").exists()
