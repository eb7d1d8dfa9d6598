"""``lightning-faces import-model FORMAT PATH --out model.npz``: convert a face model once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.formats import FORMATS, import_model


def main(arguments: Sequence[str]) -> None:
    """Convert a face model to this platform's file.

    Args:
        arguments: Words after the command.

    Raises:
        LightningFacesError: If the model cannot be read; nothing is written then.
    """
    parser = argparse.ArgumentParser("lightning-faces import-model", allow_abbrev=False, description=_DESCRIPTION)
    parser.add_argument("format", choices=sorted(FORMATS), help="format of the model")
    parser.add_argument("path", type=Path, help="file or folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--expressions", type=Path, help="file of the expressions, where it is not beside the model")
    parser.add_argument("--name", help="name of the model (default: the format)")
    options = parser.parse_args(arguments)
    check_out(options.out)
    write_model(import_model(options.format, options.path, options.expressions, options.name, print), options.out)


def check_out(out: Path) -> None:
    """Refuse, before the long work, a path that nothing can be written to."""
    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder: give the file to write, such as {out / 'model.npz'}.")


def write_model(model: MorphableModel, out: Path) -> None:
    """Write the file and say its hash."""
    model.save(out)
    print(f"{out}: hash {model.hash}")


_DESCRIPTION = (
    "Convert a face model to this platform's file (millimetres, object frame), and say what had to be derived."
)
