"""``lightning-faces build-model FOLDER --out model.npz``: a face model by PCA from registered meshes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_faces.commands.import_model import check_out, write_model
from lightning_faces.morphable.formats import UNITS, build_from_meshes


def main(arguments: Sequence[str]) -> None:
    """Make a face model from meshes.

    Args:
        arguments: Words after the command.

    Raises:
        LightningFacesError: If the meshes cannot be used; nothing is written then.
    """
    parser = argparse.ArgumentParser("lightning-faces build-model", allow_abbrev=False, description=_DESCRIPTION)
    parser.add_argument("folder", type=Path, help="folder of registered .obj or .ply meshes, one neutral face each")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--modes", type=int, default=80, help="identity modes at most (default 80)")
    parser.add_argument("--expression-modes", type=int, default=30, help="expression modes at most (default 30)")
    parser.add_argument("--unit", choices=sorted(UNITS), default="mm", help="unit of the meshes (default mm)")
    parser.add_argument("--name", help="name of the model (default: the folder's)")
    options = parser.parse_args(arguments)
    check_out(options.out)
    model = build_from_meshes(
        options.folder, options.modes, options.expression_modes, options.unit, options.name, print
    )
    write_model(model, options.out)


_DESCRIPTION = "Make a face model by PCA from registered meshes, and say what had to be derived."
