"""Labels in text files, one per picture, brought into the import layout."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.components.annotations import Annotations
from datamodules.components.files import any_case, walk_files, warn_left_out
from datamodules.components.images import IMAGE_SUFFIXES
from datamodules.components.sentinels import mask_missing, refuse_sentinels
from lightning_faces.errors import ConfigurationError, DataError

POINT_SUFFIXES = (".txt", ".csv", ".pts")


def convert_points(
    counts: dict[int, str], images: Path, points: Path, one_based: bool = False, missing: float | None = None
) -> tuple[Path, str]:
    """Write ``annotations.npz`` into a folder of pictures from one text file of points per picture.

    A file has one point per line, two or three numbers (x, y and, if known, z in pixels, larger towards the viewer);
    lines with words or one number (the head of a .pts file) are left out.

    Args:
        counts: Number of points to the landmark scheme of so many; the first file says which it is.
        images: Folder of the pictures.
        points: Folder with a file of points for each, at the same place below it.
        one_based: Whether the top-left pixel is (1, 1).
        missing: Points whose x and y are both this number are not annotated.

    Returns:
        The table and the landmark scheme.

    Raises:
        DataError: If a folder is empty or a file is missing, cannot be read, has another number of points, or has
            points that look like missing ones.
        ConfigurationError: If there is a table already.
    """
    if not images.is_dir():
        raise DataError(f"The folder of pictures {images} does not exist: give the folder that holds them.")
    target = images / "annotations.npz"
    names: list[str] = []
    files: list[Path] = []
    rows: list[NDArray[np.float64]] = []
    for image in walk_files(images, IMAGE_SUFFIXES):
        place = points / image.relative_to(images).with_suffix("")
        candidates = [any_case(place.with_name(f"{place.name}{suffix}")) for suffix in POINT_SUFFIXES]
        file = next((candidate for candidate in candidates if candidate.exists()), None)
        if file is None:
            raise DataError(f"{candidates[0]} does not exist, nor with .csv or .pts: each picture needs its points.")
        values = read_points(file)
        if len(values) not in counts:
            wanted = ", ".join(map(str, counts))
            raise DataError(f"{file} has {len(values)} points, not the {wanted} that fit: map them first.")
        counts = {len(values): counts[len(values)]}
        names.append(image.relative_to(images).as_posix())
        files.append(file)
        rows.append(mask_missing(values, missing))
    if not names:
        raise DataError(f"There is no picture in {images}: give the folder that holds them.")
    if target.exists():
        raise ConfigurationError(f"{target} exists: remove it to write it again.")
    for file, values in zip(files, rows):
        refuse_sentinels(file, values[None], "give their number with --missing.")
    refuse_sentinels(points, np.stack(rows), "give their number with --missing.")
    warn_left_out(images, IMAGE_SUFFIXES, "The table")
    used = set(files)
    others = [path for path in walk_files(points, frozenset(POINT_SUFFIXES)) if path not in used]
    if others:
        warnings.warn(
            f"{len(others)} file(s) of {points} belong to no picture of {images}, such as {others[0].name}.",
            stacklevel=2,
        )
    landmarks = np.stack(rows)
    landmarks[..., :2] -= float(one_based)
    (scheme,) = counts.values()
    return Annotations(target, names, landmarks).save(), scheme


def read_points(path: Path) -> NDArray[np.float64]:
    """Points of a text file ``[L, 3]``, NaN for a depth that it lacks and for points that it calls nan.

    Raises:
        DataError: If the file cannot be read, or a line has four numbers or more, or an infinite one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a text file of points.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            numbers = [float(cell) for cell in re.split(r"[\s,;]+", line.strip()) if cell]
        except ValueError:
            continue
        if len(numbers) > 3 or np.isinf(numbers).any():
            raise DataError(f"{path} line {number} is no point of two or three numbers: {line.strip()[:60]!r}.")
        if len(numbers) > 1:
            rows.append([*numbers, np.nan][:3])
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
