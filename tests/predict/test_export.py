"""Networks as ONNX: from a photograph to landmarks by the documentation's code, and by the platform itself."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.components.files import square_box
from datamodules.components.transform import RawFace, crop_face
from lightning_faces.batch import FacePrediction, collate_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import MeanLandmarks, Pix2Face, PRNet, Zhao2016
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable.fit import fit_dense

if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
    pytest.skip("the extra `export` is not installed", allow_module_level=True)

import onnx

from lightning_faces.predict.export import export_onnx

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
BOXES = np.array([[60.3, 40.1, 151.7, 150.2], [10.0, 20.5, 30.2, 37.0], [200.0, 100.0, 1600.0, 1300.0]])
"""A usual face, a tiny one, and one whose crop is more than 16 times smaller and reaches over the photograph's edge."""


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (1500, 1000), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("photograph") / "photo.png"
    cv2.imwrite(str(path), picture)
    return path


def read_rgb(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def documented() -> dict[str, Any]:
    """The code of the documentation."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "def crop(" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def by_platform(method: FaceMethod, pixels: NDArray[np.uint8], boxes: NDArray[np.float64], margin: float) -> Any:
    """Faces as every evaluation has them, in pixels of the photograph."""
    size = method.spec.image_size
    assert size is not None
    rng = np.random.default_rng(0)
    samples = [crop_face(RawFace(pixels, str(i), box), size, margin, None, rng) for i, box in enumerate(boxes)]
    batch = collate_faces([{"index": i, **sample} for i, sample in enumerate(samples)], {})
    with torch.no_grad():
        return method.predict_step(batch, 0)


def settled(method: FaceMethod) -> FaceMethod:
    """Untrained, with statistics of batch norms that are not the first ones."""
    generator = torch.Generator().manual_seed(1)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(1 + 0.2 * torch.rand(module.running_var.shape, generator=generator))
    return method.eval()


def test_zhao_gives_the_same_landmarks_of_a_photograph_as_the_platform(photograph: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = settled(Zhao2016(image_size=32, channels=(4, 4, 8, 8), hidden=16))
    path = export_onnx(method, tmp_path / "zhao.onnx", margin=1.4)
    pixels, code = read_rgb(photograph), documented()
    for boxes in (BOXES[:1], BOXES):
        found = code["faces"](str(path), pixels, boxes)["landmarks"]
        true = by_platform(method, pixels, boxes, 1.4).landmarks.numpy()
        assert found.shape == true.shape == (len(boxes), 68, 3)
        assert np.abs(found - true).max() < 0.05
    assert np.abs(true[0] - true[1]).max() > 10 and np.ptp(true[2, :, 0]) > 20, "the faces are where their boxes are"
    about = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert (about["method"], about["image_size"], about["margin"], about["box"]) == ("Zhao2016", "32", "1.4", "tight")
    assert (
        about["landmark_scheme"] == "68"
        and "MIT" in about["licence"]
        and list(json.loads(about["outputs"])) == ["landmarks"]
    )


def test_prnet_gives_the_same_surface_from_a_square_box(photograph: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = settled(PRNet(image_size=32, width=1))
    path = export_onnx(method, tmp_path / "prnet.onnx", margin=1.6, box="square")
    pixels, code = read_rgb(photograph), documented()
    boxes = BOXES[:2]
    found = code["faces"](str(path), pixels, boxes)
    true: FacePrediction = by_platform(method, pixels, np.stack([square_box(box) for box in boxes]), 1.6)
    assert true.vertices is not None and true.vertex_ids is not None
    for name, value in (
        ("landmarks", true.landmarks),
        ("vertices", true.vertices),
        ("position_map", true.dense["position_map"]),
    ):
        assert found[name].shape == tuple(value.shape)
        assert np.abs(found[name] - value.numpy()).max() < 0.05
    about = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(about["vertex_ids"]) == true.vertex_ids.tolist() and about["face_model"] == "embedded"


@pytest.mark.slow
def test_pix2face_gives_images_that_the_same_faces_are_fitted_to(photograph: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = settled(Pix2Face(image_size=32, width=4, depth=3))
    path = export_onnx(method, tmp_path / "pix2face.onnx")
    found = documented()["faces"](str(path), read_rgb(photograph), BOXES)
    true = by_platform(method, read_rgb(photograph), BOXES, 1.3)
    assert true.dense_mask is not None and true.dense_mask.any()
    assert (found["dense_mask"] != true.dense_mask.numpy()).mean() < 1e-3
    both = found["dense_mask"] & true.dense_mask.numpy()
    for name in ("pncc", "offsets"):
        assert np.abs((found[name] - true.dense[name].numpy()) * both).max() < 0.01
    assert fit_dense(*(torch.from_numpy(found[name]) for name in ("pncc", "offsets", "dense_mask")), method.face_model)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"give a name that ends in \.onnx"):
        export_onnx(MeanLandmarks(), tmp_path / "a.txt")

    class Drawing(MeanLandmarks):
        def network_outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            raise ConfigurationError("Drawing is no network.")

    with pytest.raises(ConfigurationError, match="no network"):
        export_onnx(Drawing(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
