"""``lightning-faces export CHECKPOINT --out model.onnx``: a trained network for programs without this platform."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lightning_faces.errors import ConfigurationError
from lightning_faces.predict.export import Precision, export_onnx, packages
from lightning_faces.predict.weights import load_weights


def main(arguments: Sequence[str]) -> None:
    """Write a checkpoint's network as ONNX.

    Args:
        arguments: Words after the command.

    Raises:
        LightningFacesError: If it cannot be exported; nothing is written then.
    """
    parser = argparse.ArgumentParser("lightning-faces export", allow_abbrev=False, description=_DESCRIPTION)
    parser.add_argument("checkpoint", help="a .ckpt file of a training, or a name of weights of this installation")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="fp32 (default); fp16 for GPUs; int8 for CPUs, calibrated on synthetic faces",
    )
    parser.add_argument("--margin", type=float, help="crop over box, for checkpoints of earlier versions (else 1.3)")
    parser.add_argument("--face-model", help="name or path of the face model, for a method made with one of your own")
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        raise ConfigurationError(f"--out {options.out} is a folder: give the file to write, such as model.onnx.")
    packages()
    chosen = {"face_model": options.face_model} if options.face_model else {}
    loaded = load_weights(options.checkpoint, options.margin, **chosen)
    path = export_onnx(loaded.method, options.out, loaded.crop, options.precision)
    print(f"{path}: {type(loaded.method).__name__}, {options.precision}, {path.stat().st_size / 1e6:.1f} MB")


_DESCRIPTION = (
    "Write a trained network as ONNX, with normalisation and decoding inside and everything else in its metadata "
    "(docs/export.md)."
)
