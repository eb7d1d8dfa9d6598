"""The command ``predict``: what is written, what is named and counted, and what a rerun does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_faces.__main__ import main
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.meshes import read_mesh
from lightning_faces.predict.outputs import OUTPUTS
from lightning_faces.predict.values import pose_matrix
from tests.predict.blobs import photograph, save_checkpoint

BOX = (50, 30, 99, 89)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("mean.ckpt")
    Path("photos/sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        Image.fromarray(photograph(BOX)).save(Path("photos") / name)
    boxes = {name: [list(BOX)] for name in ("a.png", "b.png", "sub/c.png")}
    Path("boxes.json").write_text(json.dumps({**boxes, "b.png": [list(BOX), [40, 20, 90, 80]]}))


def run(*arguments: str) -> int:
    """Exit code of the command."""
    try:
        main(["predict", *arguments, "--checkpoint", "mean.ckpt"])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def lines(out: str = "faces") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "predictions.jsonl").read_text().splitlines()]


def test_everything_of_a_face_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos/a.png", "--boxes", "one.json") == 2
    Path("one.json").write_text(json.dumps({"a.png": [list(BOX)]}))
    assert run("photos/a.png", "--boxes", "one.json") == 0
    assert "1 predicted, 1 faces: faces/predictions.jsonl" in capsys.readouterr().out
    (line,) = lines()
    assert {path.name for path in Path("faces").iterdir()} - {"predictions.jsonl"} == {
        f"a.png{'.1' if row.face else ''}{row.suffix}" for row in OUTPUTS.values()
    } | {"a.png.1.mtl", "a.png.1.png"}
    (face,) = line["faces"]
    assert json.loads(Path("faces/a.png.1.json").read_text()) == face
    points = torch.tensor(face["landmarks"])
    # The mean face fills the longer side of its box, in the middle.
    assert box_of_points(points)[[1, 3]].tolist() == pytest.approx([30, 89], abs=1e-3)
    # iBUG's files begin at (1, 1).
    pts = Path("faces/a.png.1.pts").read_text().split("{\n")[1].splitlines()[:68]
    assert [[float(x) for x in row.split()] for row in pts] == [
        pytest.approx([x + 1, y + 1], abs=1e-3) for x, y, _ in face["landmarks"]
    ]
    # The fit of the mean face's own landmarks: its pose is frontal, and its matrix puts the model's landmarks there.
    model = MorphableModel.load("embedded")
    assert face["pose"]["yaw"] == pytest.approx(0, abs=1)
    assert face["fitted"] == ["camera", "coefficients", "vertices", "visible"]
    assert set(model.expression_names) == set(face["actions"])
    assert len(face["coefficients"]) == model.num_coefficients
    matrix = torch.tensor(face["matrix"])
    vertices, faces = read_mesh(Path("faces/a.png.1.obj"))
    assert (vertices.shape, faces.shape) == ((4280, 3), (8496, 3))
    placed = torch.as_tensor(vertices).float() @ matrix[:3, :3].T + matrix[:3, 3]
    assert (model.landmarks(placed[None])[0] - points)[:, :2].norm(dim=1).max() < 1.5
    in_image, _ = read_mesh(Path("faces/a.png.1.ply"))
    assert in_image[:, :2] == pytest.approx(placed[:, :2].numpy() * (1, -1), abs=0.05)
    content = Path("faces/a.png.1.glb").read_bytes()
    described = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    assert described["meshes"][0]["extras"]["targetNames"] == list(model.expression_names)
    # The part of the face that the bright rectangle shows has its colour.
    skin = np.asarray(Image.open("faces/a.png.1.png").convert("RGB"))
    assert skin.std() > 1
    # Pictures have the photograph's size, and change it where the face is.
    for kind in ("landmarks", "mesh", "depth", "pncc"):
        drawn = np.asarray(Image.open(f"faces/a.png.{kind}.png")).astype(int)
        changed = (np.abs(drawn - photograph(BOX)).max(axis=2) > 10).nonzero()
        assert drawn.shape == (120, 160, 3)
        assert (changed[0].min() > 0, changed[0].max() < 119) == (True, True)
        assert changed[1].mean() == pytest.approx(74.5, abs=2)


def test_what_cannot_be_used_is_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    Image.fromarray(photograph(BOX)).save("photos/none.png")
    boxes = json.loads(Path("boxes.json").read_text())
    boxes |= {"broken.jpg": [list(BOX)], "far.png": [[900, 900, 950, 950]], "none.png": []}
    Path("boxes.json").write_text(json.dumps(boxes))
    Image.fromarray(photograph(BOX)).save("photos/far.png")
    assert run("photos", "--boxes", "boxes.json", "--write", "json") == 1
    said = capsys.readouterr()
    assert "3 predicted, 4 faces, 3 skipped (2 not readable, 1 without a face): faces/predictions.jsonl" in said.out
    for reason in ("broken.jpg is not a whole image", "photos/far.png", "outside its picture", "none.png has no box"):
        assert reason in said.err
    found = {line["image"]: line for line in lines()}
    assert len(found["b.png"]["faces"]) == 2
    assert "broken.jpg is not a whole image" in found["broken.jpg"]["skipped"]
    assert Path("faces/sub/c.png.1.json").is_file()
    # Mended, they are predicted, and nothing else is.
    Image.fromarray(photograph(BOX)).save("photos/broken.jpg")
    before = Path("faces/a.png.1.json").stat().st_mtime_ns
    assert run("photos", "--boxes", "boxes.json", "--write", "json") == 1
    assert "4 predicted (3 by an earlier run), 1 faces, 2 skipped" in capsys.readouterr().out
    assert Path("faces/a.png.1.json").stat().st_mtime_ns == before
    assert sorted(line["image"] for line in lines()) == sorted(found)  # one line each


def test_a_rerun_goes_on_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("photos", "--boxes", "boxes.json", "--write", "pts")
    assert run(*command, "--batch", "1") == 0
    journal = Path("faces/predictions.jsonl")
    whole = journal.read_bytes()
    # As a crash leaves it: the last line is cut off.
    journal.write_bytes(whole[:-20])
    assert run(*command) == 0
    assert "3 predicted (2 by an earlier run)" in capsys.readouterr().out
    assert journal.read_bytes() == whole
    # A photograph that has changed is predicted anew; with other settings, all are.
    os.utime("photos/a.png", ns=(1, 1))
    assert run(*command) == 0
    assert "(2 by an earlier run)" in capsys.readouterr().out
    assert run(*command, "--margin", "1.5") == 0
    assert "3 predicted, 4 faces" in capsys.readouterr().out
    assert len(lines()) == 3
    # What somebody else wrote is left alone.
    journal.write_text("my notes\n")
    assert run(*command) == 2
    assert "line 1 is no prediction: choose another --out" in capsys.readouterr().err
    assert journal.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.jpg"], "There is no photograph or video absent.jpg"),
        (["photos/*.tiff"], "There is no photograph or video photos/*.tiff"),
        (["photos/a.png", "photos/sub/../a.png", "--out", "photos"], "There is no photograph or video photos/a.png"),
        (["photos", "--out", "mean.ckpt/faces"], "--out is mean.ckpt/faces, which cannot be written"),
        (["photos", "--write", "stl"], "--write names 'stl': choose from json, pts"),
        (["photos", "--boxes", "boxes.txt"], "There is no file boxes.txt"),
        (["photos/sub", "--boxes", "boxes.json"], "has a box for 'a.png', which is none of the photographs"),
        (["photos", "--batch", "0"], "--batch is 0"),
        (["photos", "--device", "tpu9"], "There is no device 'tpu9'"),
    ],
)  # fmt: skip
def test_wrong_arguments_stop_before_any_work(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert says in capsys.readouterr().err
    assert not Path("faces").exists()


def test_patterns_and_folders_give_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos/**/*.png", "--boxes", "boxes.json", "--write", "pts") == 0
    assert run("photos", "--boxes", "boxes.json", "--write", "pts") == 0
    assert "(3 by an earlier run)" in capsys.readouterr().out
    Image.fromarray(photograph(BOX)).save("a.png")
    assert run("photos", "a.png") == 2
    assert "would both be called a.png" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("faces/b.png.1.pts").mkdir(parents=True)
    assert run("photos", "--boxes", "boxes.json", "--write", "pts") == 1
    said = capsys.readouterr()
    assert "photos/b.png was predicted, but" in said.err
    assert "2 predicted, 2 faces, 1 skipped (1 not written)" in said.out


def test_matrix_of_a_pose_is_the_projection() -> None:
    from lightning_faces.geometry import weak_perspective

    pose = torch.tensor([1.7, 0.2, -0.5, 0.3, 40.0, 50.0], dtype=torch.float64)
    points = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = pose_matrix(pose)
    placed = points @ matrix[:3, :3].T + matrix[:3, 3]
    assert placed.numpy() == pytest.approx(weak_perspective(points[None], pose[None])[0].numpy())
