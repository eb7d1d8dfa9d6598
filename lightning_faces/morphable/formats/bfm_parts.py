"""What the formats of the Basel Face Model 2009 share: its segments, and expressions in files of their own."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files.mat import read_mat
from lightning_faces.morphable.formats.fields import MICROMETRES, content, field_modes, field_points
from lightning_faces.morphable.surface import Bools, Floats

BFM_SEGMENTS = ("nose", "eye", "mouth", "rest")
"""Columns of ``segbin`` (FACTS A: nose 2245, eye 7182, mouth 2460, rest 41 328 vertices)."""


def segments(segbin: NDArray[Any], vertices: int) -> dict[str, Bools]:
    """Regions of the model's own four segments."""
    table = segbin if segbin.shape[0] == vertices else segbin.T
    if table.shape != (vertices, 4):
        return {}
    return {name: table[:, k].astype(bool) for k, name in enumerate(BFM_SEGMENTS) if name != "rest"}


def bfm_expressions(path: Path, vertices: int) -> tuple[Floats, NDArray[np.float32], Floats]:
    """Mean offset ``[V, 3]``, modes and standard deviations in mm of ``Exp_Pca.bin`` or ``Model_Exp(ression).mat``."""
    if path.suffix == ".bin":
        stored = content(path)
        count = struct.unpack("<i", stored[:4])[0] if len(stored) >= 4 else -1
        if count < 1 or len(stored) != 4 + 4 * 3 * vertices * (count + 1):
            raise DataError(
                f"{path} is not an Exp_Pca.bin for {vertices} vertices (int32 number of modes, then float32 mean and "
                "modes): the model must be trimmed to the vertices of the expressions."
            )
        values = np.frombuffer(stored, "<f4", offset=4)
        mean = values[: 3 * vertices].astype(np.float64).reshape(-1, 3)
        basis = values[3 * vertices :].reshape(count, vertices, 3)
        std_file = path.with_name("std_exp.txt")
        if not std_file.is_file():
            raise DataError(f"{std_file} is missing: Exp_Pca.bin needs it for the standard deviations of its modes.")
        try:
            std = np.loadtxt(std_file).ravel()
        except (ValueError, OSError) as error:
            raise DataError(f"{std_file} is not a list of standard deviations ({error}): download it again.") from error
    else:
        fields = read_mat(path, ("mu_exp", "w_exp", "sigma_exp"))
        mean = field_points(fields, "mu_exp", path)
        basis, std = field_modes(fields, ("w_exp", "sigma_exp"), len(mean), path)
    if len(mean) != vertices or basis.shape[1] != vertices or len(std) != len(basis):
        raise DataError(f"{path} does not fit a model of {vertices} vertices: use the expressions made for it.")
    return mean * MICROMETRES, basis, std * MICROMETRES
