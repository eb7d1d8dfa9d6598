"""The commands ``import-model`` and ``build-model``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable.formats import FORMATS, UNITS, build_from_meshes, import_model


def main_import(args: list[str]) -> int:
    """``lightning-faces import-model FORMAT PATH --out model.npz``: convert a face model once.

    Args:
        args: Words after the command.

    Returns:
        0.

    Raises:
        LightningFacesError: If the model cannot be read; nothing is written then.
    """
    parser = argparse.ArgumentParser("lightning-faces import-model", allow_abbrev=False, description=_IMPORT)
    parser.add_argument("format", choices=sorted(FORMATS), help="format of the model")
    parser.add_argument("path", type=Path, help="file or folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--expressions", type=Path, help="file of the expressions, where it is not beside the model")
    parser.add_argument("--name", help="name of the model (default: the format)")
    options = parser.parse_args(args)
    _check_out(options.out)
    model = import_model(options.format, options.path, options.expressions, options.name, print)
    model.save(options.out)
    print(f"{options.out}: hash {model.hash}")
    return 0


def main_build(args: list[str]) -> int:
    """``lightning-faces build-model FOLDER --out model.npz``: a face model by PCA from registered meshes.

    Args:
        args: Words after the command.

    Returns:
        0.

    Raises:
        LightningFacesError: If the meshes cannot be used; nothing is written then.
    """
    parser = argparse.ArgumentParser("lightning-faces build-model", allow_abbrev=False, description=_BUILD)
    parser.add_argument("folder", type=Path, help="folder of registered .obj or .ply meshes, one neutral face each")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--modes", type=int, default=80, help="identity modes at most (default 80)")
    parser.add_argument("--expression-modes", type=int, default=30, help="expression modes at most (default 30)")
    parser.add_argument("--unit", choices=sorted(UNITS), default="mm", help="unit of the meshes (default mm)")
    parser.add_argument("--name", help="name of the model (default: the folder's)")
    options = parser.parse_args(args)
    _check_out(options.out)
    model = build_from_meshes(
        options.folder, options.modes, options.expression_modes, options.unit, options.name, print
    )
    model.save(options.out)
    print(f"{options.out}: hash {model.hash}")
    return 0


def _check_out(out: Path) -> None:
    """Refuse, before the long work, a path that nothing can be written to."""
    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder: give the file to write, such as {out / 'model.npz'}.")


_IMPORT = "Convert a face model to this platform's file (millimetres, object frame), and say what had to be derived."
_BUILD = "Make a face model by PCA from registered meshes, and say what had to be derived."
