"""The page of a folder of predictions: what is in it, what cannot get in, and what a browser shows."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_faces.batch import FacePrediction
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.face_mesh import FaceMesh
from lightning_faces.morphable.glb import write_glb
from lightning_faces.predict.page import write_page

EVIL = "<script>alert(1)</script>&\"'\u202e.jpg"


def face(**changes: Any) -> dict[str, Any]:
    pose = {"scale": 1.0, "pitch": -3.2, "yaw": 12.34, "roll": 0.0, "tx": 0.0, "ty": 0.0}
    actions = {"jawOpen": 0.62, "mouthSmileLeft": 0.3, "cheekPuff": 0.01}
    return {"valid": True, "reason": "", "confidence": 0.93, "pose": pose, "actions": actions, **changes}


def predictions(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One photograph with two faces, of which one has a mesh."""
    place = predictions(
        tmp_path / "faces",
        [
            {"image": "a.jpg", "faces": [face()] * 9, "files": {}},
            {
                "image": "a.jpg",
                "faces": [face(), face(valid=False, reason="the network is <unsure>", uncertainty=[2.0, 4.0])],
                "files": {"landmarks": "a.jpg.landmarks.png", "glb": ["a.jpg.1.glb", None]},
            },
            {"image": EVIL, "skipped": f"{EVIL} shows no face"},
            {"image": "film.mp4", "frame": 0, "faces": [face()]},
        ],
    )
    Image.fromarray(np.full((600, 1200, 3), (200, 30, 90), np.uint8)).save(place / "a.jpg.landmarks.png")
    model = MorphableModel.load("embedded")
    coefficients = torch.zeros(1, model.num_coefficients)
    mesh = FaceMesh.of_prediction(FacePrediction(torch.zeros(1, 68, 3), coefficients=coefficients), 0, model)
    assert model.albedo_mean is not None
    write_glb(place / "a.jpg.1.glb", mesh, texture=model.albedo_mean)
    return place


def test_the_page_has_pictures_meshes_and_facts(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 20, 3), 128, np.uint8)).save(tmp_path / "a.jpg")
    page = write_page(folder, photographs=tmp_path).read_text(encoding="utf-8")
    assert "1 photographs with 2 faces; 1 skipped; 1 frames of videos are not shown" in page
    embedded = re.search(r'<script type="text/plain" id="glb-1-1">([^<]*)</script>', page)
    assert embedded and base64.b64decode(embedded[1]) == (folder / "a.jpg.1.glb").read_bytes()
    assert page.count("<canvas ") == 1 and page.count('<section class="face">') == 2
    assert re.findall(r'alt="(\w+) of a.jpg" width="(\d+)" height="(\d+)"', page) == [
        ("Photograph", "20", "10"),
        ("Landmarks", "900", "450"),
    ]
    for fact in ("<dd>93 %", "<dd>-3.2°", "<dd>+12.3°", "<dd>3.0 pixels", "<dd>jawOpen 0.62, mouthSmileLeft 0.30</dd>"):
        assert fact in page
    assert "Not believed: the network is &lt;unsure&gt;" in page


def test_nothing_of_the_predictions_becomes_markup_or_an_address(folder: Path) -> None:
    page = write_page(folder).read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;\\u202e.jpg") == 2
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:)""", outside) and "url(" not in outside
    assert "default-src 'none'" in page and "Permission is hereby granted" in page, "three.js's licence comes with it"


def test_files_elsewhere_are_not_shown(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "text.glb").write_text("no mesh")
    for number, name in enumerate(("../secret.png", str(secret), "link.png", "missing.png", "a\0b", 3, ["x"])):
        line = {"image": f"{number}.jpg", "faces": [face()], "files": {"landmarks": name, "glb": ["text.glb"]}}
        predictions(folder, [line])
        page = write_page(folder).read_text(encoding="utf-8")
        assert "<img" not in page and "<canvas" not in page


def test_odd_values_are_left_out_and_broken_lines_named(tmp_path: Path) -> None:
    odd = face(pose={"yaw": "x", "pitch": None, "roll": float("1e999")}, confidence=True, actions=[1], uncertainty="no")
    place = predictions(tmp_path / "faces", [{"image": "a.jpg", "faces": [odd, 3, None], "files": []}])
    page = write_page(place).read_text(encoding="utf-8")
    assert page.count("<section") == 1 and "<dd>" not in page
    many = predictions(tmp_path / "many", [{"image": f"{i}.jpg", "faces": []} for i in range(7)])
    assert "the first 3 are shown, 4 are not" in write_page(many, most=3).read_text(encoding="utf-8")
    for text in ("{", "[1]", '{"image": 1}', "[" * 100_000):
        (place / "predictions.jsonl").write_text(text)
        with pytest.raises(DataError, match=r"predictions\.jsonl line 1 is no prediction"):
            write_page(place)
    with pytest.raises(ConfigurationError, match=r"has no predictions\.jsonl"):
        write_page(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ends in \.html"):
        write_page(many, tmp_path / "page.txt")
    with pytest.raises(ConfigurationError, match=r"no folder .* of photographs"):
        write_page(many, photographs=tmp_path / "nowhere")


PROBE = """
<script>
const canvas = document.querySelector("canvas[data-glb]");
const timer = setInterval(() => {
  if (!canvas.dataset.shown) return;
  clearInterval(timer);
  const first = canvas.toDataURL();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  const turned = canvas.toDataURL();
  canvas.dispatchEvent(new MouseEvent("dblclick"));
  const back = canvas.toDataURL();
  const shown = `${first.length > 4000} ${turned !== first} ${back === first}`;
  document.body.dataset.found = `${canvas.dataset.shown} ${shown}`;
}, 100);
</script>
"""


@pytest.mark.slow
def test_a_browser_without_a_network_shows_the_face_and_turns_it(folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium")
    page = write_page(folder)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True).stdout
    assert 'data-found="8496 true true true"' in shown, re.findall(r"data-failed=\S+", shown)
