"""``lightning-faces preview``: a contact sheet of synthetic faces."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.rendering.preview import PreviewOptions, preview, read_config


def main(arguments: Sequence[str]) -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(
        prog="lightning-faces preview", description="Draw synthetic faces, plain and with landmarks (hidden ones red)."
    )
    parser.add_argument(
        "--config",
        action="append",
        help="YAML as fit takes it, whose data is SyntheticFaces, or of synthesis options; again for one on top of it",
    )
    parser.add_argument("--count", type=int, default=16, help="number of faces")
    parser.add_argument(
        "--size", type=int, help="side of a picture in pixels, instead of the configuration's; else 136"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first face")
    parser.add_argument(
        "--face-model", help="name or path of a face model, instead of the configuration's; else embedded"
    )
    parser.add_argument("--maps", action="store_true", help="show the target maps too, one face per row")
    parser.add_argument("--out", default="sheet.png", help="picture to write, a .png")
    given = parser.parse_args(arguments)
    if given.count < 1:
        raise ConfigurationError(f"--count is {given.count}; it must be at least 1.")
    if given.seed < 0:
        raise ConfigurationError(f"--seed is {given.seed}; it must be at least 0.")
    out = Path(given.out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigurationError(f"--out is {given.out}; it must be the name of a file that ends in .png.")
    config = read_config(given.config) if given.config else PreviewOptions(image_size=136, canvas=1.0)
    size = config.size if given.size is None else given.size
    model = given.face_model or config.face_model
    sheet = preview(config.synthesis, given.count, size, model, given.maps, given.seed)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    write_atomic(out, buffer.getvalue())
    print(f"{given.out}: {given.count} faces of {size} pixels")
