"""Whether what was read can be a face in millimetres, and the rest of the way to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial import QhullError

from lightning_faces.errors import DataError
from lightning_faces.morphable.derive import Parts, complete
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.surface import Floats

EXTENT = (60.0, 1000.0)
"""What a face or a bust can measure in mm; a factor of ten off is outside."""


def completed(parts: Parts, report: Callable[[str], None], source: Path) -> MorphableModel:
    """The model with what the file lacks derived; errors name the file."""
    try:
        return complete(parts, report)
    except (DataError, np.linalg.LinAlgError, QhullError) as error:
        raise DataError(f"{source} cannot be used: {error}") from error


def check_size(mean: Floats, source: Path, unit: str) -> None:
    """Whether a shape is as large as a face or a bust."""
    extent = float(np.ptp(mean, axis=0).max())
    if np.isfinite(mean).all() and not EXTENT[0] < extent < EXTENT[1]:
        size = np.format_float_positional(extent, 3, fractional=False, trim="-")
        raise DataError(f"{source} is {size} mm across, a face about 200, if its coordinates are {unit}.")
