"""ONNX graphs with 16 or 8 bits where the time goes, and 32 where coordinates are made."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules import SyntheticFaces
from datamodules.components.transform import crop_face
from lightning_faces.targets import CHEAP_TARGETS

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations in which a network's time goes."""
CALIBRATION_FACES = 64
"""Synthetic faces that the ranges of 8-bit values are those of."""


def in_precision(model: Any, precision: Literal["fp16", "int8"], image_size: int, margin: float) -> Any:
    """The graph in another precision; each output's last layer, and all after it, stay in float32.

    Args:
        model: An onnx.ModelProto in float32 with the inputs ``image`` and ``box``.
        precision: "fp16", or "int8" (convolutions and fully connected layers, ranges from synthetic faces).
        image_size: Side of the crop.
        margin: Side of the crop over that of the box.

    Returns:
        Another onnx.ModelProto with the same inputs and outputs.
    """
    kept = last_layers(model)
    if precision == "fp16":
        # Part of ONNX Runtime, although its folder is named after transformers.
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with _quiet():
            return convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Faces(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = list(calibration_faces(image_size, margin))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model, path, Faces(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=list(HEAVY),
            nodes_to_exclude=kept, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(path)


def last_layers(model: Any) -> list[str]:
    """Names of the nodes after an output's last heavy operation, with that one, as autocast leaves them in float32."""
    nodes = list(model.graph.node)
    wanted = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node.name)
            if node.op_type not in HEAVY:
                wanted.update(node.input)
    return kept


def calibration_faces(image_size: int, margin: float) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of the graph for synthetic faces, a few at a time."""
    faces = SyntheticFaces(1, CALIBRATION_FACES, 1, image_size=image_size, margin=margin, num_workers=0)
    source = faces.make_dataset("val", CHEAP_TARGETS)
    assert source is not None
    for start in range(0, CALIBRATION_FACES, 8):
        raws = source.read_many(range(start, start + 8))
        samples = [crop_face(raw, image_size, margin, None, np.random.default_rng(0)) for raw in raws]
        images = np.stack([sample["image"].numpy() for sample in samples])
        yield {
            "image": np.round(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8),
            "box": np.stack([sample["box"].numpy() for sample in samples]),
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' own advice, which nobody can act on."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
