"""A face model by PCA from registered meshes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.checks import check_size, completed
from lightning_faces.morphable.formats.fields import (
    UNITS,
    no_modes,
)
from lightning_faces.morphable.meshes import read_mesh
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.surface import Floats, Ints, principal_components, rigid_align

SAME_SHAPE = 1e-5
"""Meshes that differ by less of their size (2 micrometres of a face) differ by the digits of their files."""
ROUNDING = 1e-6
"""Modes with a smaller share of the first one's standard deviation are rounding."""


def build_from_meshes(
    folder: str | Path,
    modes: int = 80,
    expression_modes: int = 30,
    unit: str = "mm",
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MorphableModel:
    r"""A model by PCA from registered meshes, the way the papers' models were made (Blanz and Vetter 1999).

    The meshes of the folder (.obj or .ply) share vertex numbering and triangles, one neutral face each, y up and facing
    +z; they are aligned rigidly. Expressions, where there are any, lie in the sub-folder ``expressions`` as
    ``SUBJECT__NAME.obj``: their offsets from ``SUBJECT.obj`` give the expression modes.

    Args:
        folder: Folder of the meshes.
        modes: Number of identity modes at most; never more than meshes minus one.
        expression_modes: Number of expression modes at most.
        unit: "mm", "cm" or "m".
        name: Name of the model; the folder's by default.
        report: Is told in one line each what was read and what was derived.

    Returns:
        The model in millimetres, object frame.

    Raises:
        ConfigurationError: If the unit is not known or a number is not positive.
        DataError: If there are too few meshes or they do not belong together.

    Example:
        >>> import tempfile
        >>> folder, face = Path(tempfile.mkdtemp()), MorphableModel.load("embedded")
        >>> triangles = "".join(f"f {a} {b} {c}\n" for a, b, c in (face.faces + 1).tolist())
        >>> for k in range(4):
        ...     points = (face.mean + 9.0 * k * face.identity_basis[k]).tolist()
        ...     text = "".join(f"v {x} {y} {z}\n" for x, y, z in points) + triangles
        ...     _ = (folder / f"person{k}.obj").write_text(text)
        >>> build_from_meshes(folder, name="mine").num_identity
        3
    """
    source = Path(folder)
    if unit not in UNITS:
        raise ConfigurationError(f"There is no unit {unit!r}: use one of {', '.join(UNITS)}.")
    if modes < 1 or expression_modes < 1:
        raise ConfigurationError(f"The number of modes is {min(modes, expression_modes)}: use at least 1.")
    files = sorted(p for p in source.glob("*") if p.suffix.lower() in (".obj", ".ply")) if source.is_dir() else []
    if len(files) < 3:
        raise DataError(f"{source} holds {len(files)} .obj or .ply meshes: PCA needs at least 3 registered ones.")
    first, faces = read_mesh(files[0])
    if len(faces) == 0:
        raise DataError(f"{files[0]} has no faces: export the meshes with their triangles.")
    shapes = np.stack([_registered(file, first, faces, files[0]) for file in files]) * UNITS[unit]
    aligned = rigid_align(shapes, np.ones(len(first), bool))
    mean = aligned.mean(0)
    flat = (aligned - mean).reshape(len(files), -1)
    if np.sqrt((flat**2).sum() / len(files)) <= SAME_SHAPE * np.linalg.norm(mean):
        raise DataError(f"The {len(files)} meshes in {source} have all the same shape: give faces of different people.")
    check_size(mean, source, f"in {unit}: give their unit with --unit")
    basis, std = _large_components(flat, min(modes, len(files) - 1))
    count = len(std)
    report(
        f"{len(files)} meshes: {count} identity modes hold "
        f"{(std**2).sum() * (len(files) - 1) / (flat**2).sum():.1%} of the variance."
    )
    expression_basis, expression_std = no_modes(len(mean))
    moved = sorted(p for p in (source / "expressions").glob("*") if p.suffix.lower() in (".obj", ".ply"))
    if moved:
        offsets = []
        stems = {file.stem: k for k, file in enumerate(files)}
        for file in moved:
            match = re.fullmatch(r"(.+)__(.+)", file.stem)
            if match is None or match[1] not in stems:
                raise DataError(f"{file} is not named SUBJECT__EXPRESSION after one of the meshes in {source}.")
            k = stems[match[1]]
            offset = _registered(file, first, faces, files[0]) * UNITS[unit] - shapes[k]
            offsets.append(offset @ _rotation_onto(shapes[k], aligned[k]))
        stacked = np.stack(offsets).reshape(len(offsets), -1)
        # Around the neutral face, not around the mean expression: no coefficients is no expression.
        if np.sqrt((stacked**2).sum() / len(offsets)) <= SAME_SHAPE * np.linalg.norm(mean):
            raise DataError(f"The {len(offsets)} expressions in {source / 'expressions'} are neutral: remove them.")
        directions, spread = _large_components(stacked, min(expression_modes, len(offsets)))
        expression_basis = directions.reshape(len(directions), -1, 3).astype(np.float32)
        expression_std = spread * np.sqrt(max(len(offsets) - 1, 1) / len(offsets))
    parts = Parts(
        name=name or source.name,
        mean=mean,
        faces=faces,
        identity_basis=basis.reshape(count, -1, 3).astype(np.float32),
        identity_std=std,
        expression_basis=expression_basis,
        expression_std=expression_std,
    )
    return completed(parts, report, source)


def _registered(file: Path, first: Floats, first_faces: Ints, first_file: Path) -> Floats:
    points, faces = read_mesh(file)
    if len(points) != len(first):
        raise DataError(
            f"{file} has {len(points)} vertices but {first_file} has {len(first)}: the meshes must be registered."
        )
    if not np.array_equal(faces, first_faces):
        raise DataError(
            f"The triangles of {file} are not those of {first_file}: the meshes must be registered, with their "
            "triangles in one order."
        )
    return points


def _large_components(samples: Floats, count: int) -> tuple[Floats, Floats]:
    """Principal components without those that are only rounding."""
    directions, std = principal_components(samples, count)
    large = std >= ROUNDING * std[0]
    return directions[large], std[large]


def _rotation_onto(shape: Floats, aligned: Floats) -> Floats:
    """The rotation Q of a rigid alignment, ``aligned = shape Q + t``."""
    u, _, vt = np.linalg.svd((shape - shape.mean(0)).T @ (aligned - aligned.mean(0)))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation: Floats = (u * sign) @ vt
    return rotation
