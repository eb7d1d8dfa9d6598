"""The Basel Face Model 2009 as face3d's generator writes it."""

from __future__ import annotations

from pathlib import Path

from lightning_faces.files.mat import read_mat
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.fields import (
    BYTE,
    MICROMETRES,
    field_modes,
    field_points,
    need,
    one_based,
    one_based_triangles,
)


def read_face3d(path: Path, expressions: Path | None) -> Parts:
    """face3d's ``BFM.mat``: a struct ``model`` (FACTS A)."""
    file = need(path, "BFM.mat")
    wanted = ("shapeMU", "shapePC", "shapeEV", "expMU", "expPC", "expEV", "texMU", "texPC", "texEV", "tri", "kpt_ind")
    values = read_mat(file, [f"model.{key}" for key in wanted])
    mean = field_points(values, "model.shapeMU", file)
    count = len(mean)
    identity_basis, identity_std = field_modes(values, ("model.shapePC", "model.shapeEV"), count, file, MICROMETRES)
    expression_basis, expression_std = field_modes(values, ("model.expPC", "model.expEV"), count, file, MICROMETRES)
    colour_basis, colour_std = field_modes(values, ("model.texPC", "model.texEV"), count, file, BYTE)
    return Parts(
        name="face3d",
        mean=(mean + field_points(values, "model.expMU", file, count)) * MICROMETRES,
        faces=one_based_triangles(values, "model.tri", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=one_based(values, "model.kpt_ind", file),
        native_frame=True,
        colour_mean=field_points(values, "model.texMU", file, count) * BYTE,
        colour_basis=colour_basis,
        colour_std=colour_std,
    )
