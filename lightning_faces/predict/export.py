"""A method's network as ONNX: from crops of photographs to faces in the photographs' pixels.

What must be done before is a crop, which the file's metadata describe; normalisation, decoding and the way back to the
photograph are part of the graph.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lightning_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.methods.base import FaceMethod
from lightning_faces.predict.predictor import IMAGE_SIZE
from lightning_faces.predict.weights import CropRule

Precision = Literal["fp32", "fp16", "int8"]
TOLERANCE = 0.02
"""Pixels of the crop by which ONNX Runtime may differ from torch in float32."""
OUTPUTS: dict[str, tuple[str, str]] = {
    "landmarks": ("points", "x, y, depth of each landmark, pixels of the photograph"),
    "vertices": ("points", "x, y, depth of each vertex of the face model, pixels of the photograph"),
    "position_map": ("maps", "x, y, depth of each texel of the face model's UV map, pixels of the photograph"),
    "camera": ("camera", "(u w, v w, w) = P (X, Y, Z, 1) from millimetres of the object frame to the photograph"),
    "uncertainty": ("sizes", "standard deviation of each landmark's place, pixels of the photograph"),
    "visible": ("same", "probability that each landmark can be seen"),
    "coefficients": ("same", "identity, then expression, of the face model, standard deviations"),
    "pncc": ("same", "for each pixel of the crop its place on the mean face, millimetres of the object frame"),
    "offsets": ("same", "for each pixel of the crop the way from there to this face, millimetres"),
    "dense_mask": ("same", "pixels of the crop whose PNCC and offsets are predicted"),
}
"""Output to how it moves from the crop to the photograph, and what it is."""
CROP = (
    "Pixel centres are integers, the top-left one is (0, 0). box is (x0, y0, x1, y1), the tight box of the 68 "
    "landmarks, in pixels of the upright photograph. side = margin * max(x1 - x0, y1 - y0) where 'box' is tight, "
    "margin * ((x1 - x0) + (y1 - y0)) / 2 where it is square. The crop of S = image_size pixels shows the square of "
    "that side around the centre c of the box: crop = (S / side) * (photograph - c) + (S - 1) / 2. Shrinkage s = "
    "side / S. Of the photograph only the rows and columns that the crop shows and ceil(3 s) + 2 more at each side "
    "are taken; while s > 16 they are halved (cv2.resize, INTER_AREA); where s > 1.5 they are blurred "
    "(cv2.GaussianBlur, sigma 0.4 s, BORDER_REPLICATE); then cv2.warpAffine, INTER_LINEAR, 0 outside, all on uint8. "
    "docs/export.md has it as code."
)
"""What the metadata say of the crop."""


class ExportedMethod(nn.Module):
    """What is written: a method between uint8 crops and pixels of photographs.

    Args:
        method: The method.
        crop: How faces are cut out.
    """

    def __init__(self, method: FaceMethod, crop: CropRule = CropRule()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.method, self.crop = method, crop
        self.image_size = method.spec.image_size or IMAGE_SIZE
        self.eval()

    def forward(self, image: Tensor, box: Tensor) -> dict[str, Tensor]:
        """Faces of crops.

        Args:
            image: Uint8 RGB ``[B, S, S, 3]``.
            box: Float32 ``[B, 4]``, the tight boxes that they were cut out around, pixels of the photograph.

        Returns:
            Rows of :data:`OUTPUTS`.
        """
        outputs = self.method.network_outputs(image.permute(0, 3, 1, 2).to(torch.float32) / 255.0)
        size = box[:, 2:] - box[:, :2]
        side = (size.amax(dim=1) if self.crop.box == "tight" else size.mean(dim=1)) * self.crop.margin
        scale = (side / self.image_size)[:, None, None]
        centre = (box[:, :2] + box[:, 2:]) / 2
        corner = centre[:, None] - scale * (self.image_size - 1) / 2
        moved = {}
        for name, value in outputs.items():
            kind = OUTPUTS.get(name, ("same", ""))[0]
            if kind == "points":
                value = value * scale + nn.functional.pad(corner, (0, 1))
            elif kind == "maps":
                value = value * scale[..., None] + nn.functional.pad(corner[:, 0], (0, 1))[..., None, None]
            elif kind == "sizes":
                value = value * scale[:, 0]
            elif kind == "camera":
                value = torch.cat((value[:, :2] * scale + corner.transpose(1, 2) * value[:, 2:], value[:, 2:]), dim=1)
            moved[name] = value
        return moved


def export_onnx(
    method: FaceMethod,
    path: str | Path,
    crop: CropRule = CropRule(),  # noqa: B008 - frozen
    precision: Precision = "fp32",
) -> Path:
    """Write a method's network as an ONNX file, and see that ONNX Runtime gives what torch does.

    Inputs are ``image``, uint8 RGB ``[batch, S, S, 3]``, and ``box``, float32 ``[batch, 4]``; outputs are rows of
    :data:`OUTPUTS`, ``[batch, ...]``. The metadata say how the crop is made, and what else a reader must know.

    Args:
        method: In evaluation mode.
        path: An .onnx file.
        crop: How faces are cut out, as the method was trained.
        precision: "fp32"; "fp16" for GPUs that compute in it; "int8" for CPUs, with ranges of synthetic faces. In both
            the last layer of each output, and what follows, stay in float32.

    Returns:
        The path.

    Raises:
        ConfigurationError: If the suffix is another, the packages of the extra ``export`` are missing, or the method
            is more than a network.

    Example:
        >>> from lightning_faces.methods import MeanLandmarks
        >>> export_onnx(MeanLandmarks().eval(), "mean.txt")
        Traceback (most recent call last):
        lightning_faces.errors.ConfigurationError: mean.txt cannot be written as ONNX: give a name that ends in .onnx.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ConfigurationError(f"{path} cannot be written as ONNX: give a name that ends in .onnx.")
    onnx, _ = packages()
    exported = ExportedMethod(method, crop).cpu()
    model, names = _traced(exported)
    if precision != "fp32":
        from lightning_faces.predict.precision import in_precision

        model = in_precision(model, precision, exported.image_size, exported.crop.margin)
    onnx.helper.set_model_props(model, metadata(exported, names, precision))
    data: bytes = model.SerializeToString()
    if precision == "fp32":
        worst = difference(exported, data)
        if not worst <= TOLERANCE:
            raise ConfigurationError(
                f"ONNX Runtime gives other faces than torch for this {type(method).__name__} (by {worst:.3g} pixels of "
                "the crop): use another release of onnxscript or onnxruntime."
            )
    return write_atomic(path, data)


def packages() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        ConfigurationError: If they are not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter imports it
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX needs the package {error.name}: install the extra with `pip install 'lightning-faces[export]'`."
        ) from error
    return onnx, onnxruntime


def _traced(exported: ExportedMethod) -> tuple[Any, list[str]]:
    """The graph, an onnx.ModelProto, and the names of its outputs."""
    side = exported.image_size
    inputs = {
        "image": torch.zeros(2, side, side, 3, dtype=torch.uint8),
        "box": torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2),
    }
    with torch.no_grad():
        names = list(exported(**inputs))
    batch = torch.export.Dim("batch", min=1, max=2**16)
    method = type(exported.method).__name__
    try:
        with _quiet():
            program = torch.onnx.export(
                exported, kwargs=inputs, dynamo=True, verbose=False, input_names=list(inputs), output_names=names,
                dynamic_shapes={name: {0: batch} for name in inputs},
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigurationError(
            f"The network of {method} has operations that ONNX lacks ({reason}): give {method}.network_outputs without "
            "them."
        ) from error
    assert program is not None
    for name, value in zip(inputs, program.model.graph.inputs):
        if isinstance(value.shape[0], int):  # type: ignore[index]
            raise ConfigurationError(
                f"The network of {method} takes batches of {value.shape[0]} only, by its {name}: write its operations "  # type: ignore[index]
                "for any batch size (tensor.shape[0], not len(tensor))."
            )
    return program.model_proto, names


def metadata(exported: ExportedMethod, names: list[str], precision: Precision) -> dict[str, str]:
    """What the file says of itself, as ONNX has it: text by name."""
    method, spec = exported.method, exported.method.spec
    found = {
        "producer": f"lightning-faces {lightning_faces.__version__}",
        "licence": "MIT (lightning-faces); of the weights, that of whoever trained them",
        "method": type(method).__name__,
        "precision": precision,
        "image_size": str(exported.image_size),
        "margin": repr(float(exported.crop.margin)),
        "box": exported.crop.box,
        "crop": CROP,
        "landmark_scheme": spec.landmark_scheme or "68",
        "frame": "pixels of the upright photograph: x right, y down, depth larger towards the viewer",
        "inputs": json.dumps(
            {"image": "uint8 RGB [batch, S, S, 3], the crop", "box": "float32 [batch, 4], tight box, photograph"}
        ),
        "outputs": json.dumps({name: OUTPUTS.get(name, ("", "of the method's own"))[1] for name in names}),
    }
    if spec.face_model is not None:
        found |= {"face_model": spec.face_model, "face_model_hash": spec.face_model_hash or ""}
    if "vertices" in names:
        zeros: Any = {"image": torch.zeros(1, 3, exported.image_size, exported.image_size)}
        with torch.no_grad():
            ids = method.predict_faces(zeros).vertex_ids
        found["vertex_ids"] = "all" if ids is None else json.dumps(ids.tolist())
    return found


def run(session: Any, image: NDArray[np.uint8], box: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX Runtime session by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image, "box": box})))


def session_of(data: bytes, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; 0 threads are as many as there are cores."""
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def difference(exported: ExportedMethod, data: bytes) -> float:
    """The largest difference between ONNX Runtime and torch on noise: pixels of the crop, or an output's own unit."""
    side = exported.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    # Around the whole crop, so that its pixels are the photograph's.
    low, high = ((side - 1) / 2 + sign * side / exported.crop.margin / 2 for sign in (-1, 1))
    box = np.full((3, 4), [low, low, high, high], np.float32)
    found = run(session_of(data), pixels, box)
    with torch.no_grad():
        true = {
            name: value.numpy() for name, value in exported(torch.from_numpy(pixels), torch.from_numpy(box)).items()
        }
    # A pixel at the threshold of the mask may fall to either side.
    both = found["dense_mask"] & true["dense_mask"] if "dense_mask" in true else np.array(True)
    gaps = []
    for name, value in true.items():
        if value.dtype != bool:
            gap = np.abs(found[name] - value)
            gaps.append(gap * both if name in ("pncc", "offsets") else gap)
    return max(float(gap.max()) for gap in gaps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own progress and warnings, which nobody can act on."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
