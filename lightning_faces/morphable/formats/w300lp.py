"""The Basel Face Model 2009 with FaceWarehouse's expressions, as 300W-LP's code makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_faces.files.mat import read_mat
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.bfm_parts import bfm_expressions, segments
from lightning_faces.morphable.formats.fields import (
    BYTE,
    MICROMETRES,
    field,
    field_modes,
    field_points,
    need,
    one_based,
    one_based_triangles,
)


def read_300wlp(path: Path, expressions: Path | None) -> Parts:
    """``Model_Shape.mat`` and ``Model_Exp.mat`` that 300W-LP's code makes (ModelGenerate.m; FACTS A)."""
    file = need(path, "Model_Shape.mat")
    values = read_mat(file, ("mu_shape", "w", "sigma", "mu_tex", "w_tex", "sigma_tex", "tri", "keypoints", "segbin"))
    mean = field_points(values, "mu_shape", file)
    extra = need(expressions or file.parent, "Model_Exp.mat", "Model_Expression.mat")
    offset, expression_basis, expression_std = bfm_expressions(extra, len(mean))
    identity_basis, identity_std = field_modes(values, ("w", "sigma"), len(mean), file, MICROMETRES)
    colours: dict[str, Any] = {}
    if "mu_tex" in values and "w_tex" in values and "sigma_tex" in values:
        colours["colour_mean"] = field_points(values, "mu_tex", file, len(mean)) * BYTE
        modes = field_modes(values, ("w_tex", "sigma_tex"), len(mean), file, BYTE)
        colours["colour_basis"], colours["colour_std"] = modes
    return Parts(
        name="300w-lp",
        mean=mean * MICROMETRES + offset,
        faces=one_based_triangles(values, "tri", file),
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=one_based(values, "keypoints", file),
        native_frame=True,
        regions=segments(field(values, "segbin", file), len(mean)) if "segbin" in values else {},
        **colours,
    )
