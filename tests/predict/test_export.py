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
from lightning_faces.batch import FacePrediction, FaceSpec, collate_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera, crop_matrix, invert_affine
from lightning_faces.methods import MeanLandmarks, Pix2Face, PRNet, Zhao2016
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable.fit import fit_dense

if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
    pytest.skip("the extra `export` is not installed", allow_module_level=True)

import onnx

from lightning_faces.predict.export import ExportedMethod, export_onnx
from lightning_faces.predict.precision import last_layers
from lightning_faces.predict.weights import CropRule

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
    path = export_onnx(method, tmp_path / "zhao.onnx", CropRule(1.4))
    pixels, code = read_rgb(photograph), documented()
    for number, box in enumerate(BOXES):
        own = crop_face(RawFace(pixels, str(number), box), 32, 1.4, None, np.random.default_rng(0))["image"]
        theirs = code["crop"](pixels, box, 32, 1.4, False)
        np.testing.assert_array_equal(theirs.transpose(2, 0, 1), (own * 255).round())
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


@pytest.mark.slow
def test_prnet_gives_the_same_surface_from_a_square_box(photograph: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = settled(PRNet(image_size=32, width=1))
    path = export_onnx(method, tmp_path / "prnet.onnx", CropRule(1.6, "square"))
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


class AllOutputs(MeanLandmarks):
    """Gives everything that a face can have, drawn from a seed."""

    faces = FacePrediction(
        landmarks=32 * torch.rand(3, 68, 3, generator=torch.Generator().manual_seed(0)),
        vertices=32 * torch.rand(3, 9, 3, generator=torch.Generator().manual_seed(1)),
        coefficients=torch.rand(3, 5, generator=torch.Generator().manual_seed(2)),
        camera=Camera.from_pose(torch.tensor([[0.3, 0.1, 0.2, 0.3, 15.0, 17.0]]).repeat(3, 1)),
        visible=torch.rand(3, 68, generator=torch.Generator().manual_seed(3)),
        uncertainty=torch.rand(3, 68, generator=torch.Generator().manual_seed(4)),
        dense={"position_map": 32 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(5))},
    )

    @property
    def spec(self) -> FaceSpec:
        return FaceSpec(image_size=32)

    def predict_faces(self, batch: Any) -> FacePrediction:
        return self.faces


@pytest.mark.parametrize("box", ["tight", "square"])
def test_every_output_comes_back_to_the_photograph(box: Any) -> None:
    boxes = torch.tensor(BOXES)
    wide = torch.from_numpy(np.stack([square_box(row) for row in BOXES])) if box == "square" else boxes
    true = AllOutputs.faces.to_file(invert_affine(crop_matrix(wide, 32, 1.4)).float())
    found = ExportedMethod(AllOutputs(), CropRule(1.4, box))(
        torch.zeros(3, 32, 32, 3, dtype=torch.uint8), boxes.float()
    )
    assert true.camera is not None and true.vertices is not None and true.uncertainty is not None
    pairs: dict[str, Any] = {"camera": true.camera.matrix, "position_map": true.dense["position_map"]}
    pairs |= {name: getattr(true, name) for name in ("landmarks", "vertices", "coefficients", "visible", "uncertainty")}
    assert set(found) == set(pairs)
    for name, value in pairs.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=1e-5)


def test_the_last_layer_of_each_output_stays_in_float32() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["image", "w1"], ["a"], "conv"),
        make("Relu", ["a"], ["b"], "relu"),
        make("Gemm", ["b", "w2"], ["c"], "last"),
        make("Add", ["c", "box"], ["landmarks"], "add"),
        make("Gemm", ["b", "w3"], ["d"], "other"),
        make("Tanh", ["d"], ["e"], "tanh"),
        make("MatMul", ["e", "w4"], ["depth"], "second"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("image", "box", "landmarks", "depth")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", values[:2], values[2:]))
    assert sorted(last_layers(model)) == ["add", "last", "second"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most", "share"), [("fp16", 0.05, 0.65), ("int8", 1.0, 0.5)])
def test_fewer_bits_give_almost_the_same_landmarks(
    photograph: Path, tmp_path: Path, precision: Any, most: float, share: float
) -> None:
    torch.manual_seed(0)
    method = settled(Zhao2016(image_size=32, channels=(8, 8, 16, 16), hidden=64))
    whole = export_onnx(method, tmp_path / "fp32.onnx")
    path = export_onnx(method, tmp_path / f"{precision}.onnx", precision=precision)
    assert path.stat().st_size < share * whole.stat().st_size
    found, true = (documented()["faces"](str(file), read_rgb(photograph), BOXES)["landmarks"] for file in (path, whole))
    pixel = 1.3 * np.ptp(BOXES.reshape(-1, 2, 2), axis=1).max(axis=1)[:, None, None] / 32
    assert 0 < (np.abs(found - true) / pixel).max() < most
    assert {item.key: item.value for item in onnx.load(path).metadata_props}["precision"] == precision


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"give a name that ends in \.onnx"):
        export_onnx(MeanLandmarks(), tmp_path / "a.txt")

    class Drawing(MeanLandmarks):
        def network_outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            raise ConfigurationError("Drawing is no network.")

    with pytest.raises(ConfigurationError, match="no network"):
        export_onnx(Drawing(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
