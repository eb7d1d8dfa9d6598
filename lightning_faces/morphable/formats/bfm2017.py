"""Basel Face Model 2017 and 2019."""

from __future__ import annotations

from pathlib import Path

from lightning_faces.errors import DataError
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.fields import as_triangles, field, field_modes, field_points
from lightning_faces.morphable.formats.hdf5 import read_hdf5

_CELLS = "shape/representer/cells"


def read_bfm2017(path: Path, expressions: Path | None) -> Parts:
    """Basel Face Model 2017 or 2019 ``.h5`` in mm; ``pcaVariance`` holds variances (FACTS A)."""
    if not path.is_file():
        raise DataError(f"{path} is not a file: give the .h5 file of the Basel Face Model 2017 or 2019.")
    parts = ("shape", "expression", "color")
    keys = [f"{part}/model/{key}" for part in parts for key in ("mean", "pcaBasis", "pcaVariance")]
    values = read_hdf5(path, [*keys, _CELLS])
    mean = field_points(values, "shape/model/mean", path)
    shape, motion, colour = (
        field_modes(values, (f"{part}/model/pcaBasis", f"{part}/model/pcaVariance"), len(mean), path, power=0.5)
        for part in parts
    )
    offset = field_points(values, "expression/model/mean", path, len(mean))
    colour_mean = field_points(values, "color/model/mean", path, len(mean))
    faces = as_triangles(field(values, _CELLS, path), _CELLS, path)
    return Parts(
        name="bfm2017",
        mean=mean + offset,
        faces=faces,
        identity_basis=shape[0],
        identity_std=shape[1],
        expression_basis=motion[0],
        expression_std=motion[1],
        native_frame=True,
        colour_mean=colour_mean,
        colour_basis=colour[0],
        colour_std=colour[1],
    )
