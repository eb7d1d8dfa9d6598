"""Basel Face Model 2009."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_faces.errors import DataError
from lightning_faces.files.mat import read_mat
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.bfm_parts import bfm_expressions, segments
from lightning_faces.morphable.formats.fields import (
    BYTE,
    MICROMETRES,
    field,
    field_modes,
    field_points,
    find,
    need,
    no_modes,
    one_based,
    one_based_triangles,
)
from lightning_faces.morphable.surface import Ints


def read_bfm2009(path: Path, expressions: Path | None) -> Parts:
    """Basel Face Model 2009 (FACTS A, F), trimmed as 3DDFA and face3d do where the trimming is beside it."""
    model_file = need(path, "01_MorphableModel.mat")
    values = read_mat(model_file, ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl"))
    mean = field_points(values, "shapeMU", model_file)
    basis, std = field_modes(values, ("shapePC", "shapeEV"), len(mean), model_file, MICROMETRES)
    colour_mean = field_points(values, "texMU", model_file, len(mean))
    colour_basis, colour_std = field_modes(values, ("texPC", "texEV"), len(mean), model_file, BYTE)
    faces = one_based_triangles(values, "tl", model_file)
    landmarks, regions = np.full(68, -1, np.int64), {}
    info_file = find(model_file.parent, "model_info.mat", "BFM_exp_idx.mat")
    if info_file is not None:
        info = read_mat(info_file, ("trimIndex", "tri", "keypoints", "segbin"))
        kept = one_based(info, "trimIndex", info_file)
        if kept.min(initial=0) < 0 or kept.max(initial=-1) >= len(mean) or len(kept) == 0:
            raise DataError(
                f"{info_file} keeps {len(kept)} vertices up to number {kept.max(initial=-1)}, but the model has "
                f"{len(mean)}: use the one for BFM 2009."
            )
        faces = _renumber(faces, kept, len(mean))
        mean, basis = mean[kept], basis[:, kept]
        colour_mean, colour_basis = colour_mean[kept], colour_basis[:, kept]
        if "tri" in info:
            faces = one_based_triangles(info, "tri", info_file)
        if "keypoints" in info:
            landmarks = one_based(info, "keypoints", info_file)
        if "segbin" in info:
            regions = segments(field(info, "segbin", info_file), len(mean))
    extra = expressions or find(model_file.parent, "Model_Expression.mat", "Model_Exp.mat", "Exp_Pca.bin")
    offset: Any = 0.0
    expression_basis, expression_std = no_modes(len(mean))
    if extra is not None:
        extra = need(extra, "Model_Expression.mat", "Model_Exp.mat", "Exp_Pca.bin")
        offset, expression_basis, expression_std = bfm_expressions(extra, len(mean))
    return Parts(
        name="bfm2009",
        mean=mean * MICROMETRES + offset,
        faces=faces,
        identity_basis=basis,
        identity_std=std,
        expression_basis=expression_basis,
        expression_std=expression_std,
        landmark_vertices=landmarks,
        native_frame=True,
        regions=regions,
        colour_mean=colour_mean * BYTE,
        colour_basis=colour_basis,
        colour_std=colour_std,
    )


def _renumber(faces: Ints, kept: Ints, vertices: int) -> Ints:
    new = np.full(vertices, -1, np.int64)
    new[kept] = np.arange(len(kept))
    renumbered = new[faces[((faces >= 0) & (faces < vertices)).all(1)]]
    return renumbered[(renumbered >= 0).all(1)]
