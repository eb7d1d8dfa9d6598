"""ICT-FaceKit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.morphable.derive import Parts
from lightning_faces.morphable.formats.fields import (
    UNITS,
    find,
    need,
    unit_modes,
)
from lightning_faces.morphable.meshes import read_mesh
from lightning_faces.morphable.surface import Bools, compact_mesh

ICT_SKIN = 11248
"""Vertices of the face, the head and the neck of ICT-FaceKit (README, "Geometry")."""
ICT_KEPT = 24591
"""Up to the eyeballs; behind these come lacrimal fluid, eye occlusion and eyelashes, which are transparent."""
ICT_LANDMARKS = (
    *(1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443),
    *(268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360),
    *(1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732),
    *(5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841),
    *(5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966),
)
"""Multi-PIE 68 points of ICT-FaceKit (README, "Facial Landmarks"), 0-based."""
# ibug_to_sfm.txt of eos: 68-point number, 1-based, to vertex.


def arkit_name(name: str) -> str:
    """ARKit's name of an expression of ICT-FaceKit, as the embedded model has it: ``browDown_L`` is browDownLeft.

    ICT-FaceKit has the 51 actions of the embedded model, browInnerUp and cheekPuff as one for each side.
    """
    return re.sub("_([LR])$", lambda side: {"L": "Left", "R": "Right"}[side[1]], name)


def _listed_expressions(path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["expressions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} has no list of expressions ({error}): download it again.") from error


def read_ict_facekit(path: Path, expressions: Path | None) -> Parts:
    """ICT-FaceKit light: a folder of OBJ in cm; an identity mode is OBJ minus neutral (FACTS F)."""
    folder = path / "FaceXModel" if (path / "FaceXModel").is_dir() else path
    neutral = need(folder, "generic_neutral_mesh.obj")
    points, faces = read_mesh(neutral)
    identities = sorted(folder.glob("identity*.obj"))
    listed = find(folder, "vertex_indices.json")
    wanted = [] if listed is None else _listed_expressions(listed)
    # Names in the list choose among the folder's files; they are no paths.
    present = {file.stem: file for file in folder.glob("*.obj")}
    actions = [present[name] for name in wanted if name in present]
    if not wanted:
        actions = sorted(set(folder.glob("*.obj")) - set(identities) - {neutral})
    if not identities:
        raise DataError(f"{folder} holds no identity*.obj: give the FaceXModel folder of ICT-FaceKit.")
    keep: Bools = np.asarray((faces < ICT_KEPT).all(1))
    used, faces = compact_mesh(keep, faces, len(points))
    scale = UNITS["cm"]

    def offsets(files: Sequence[Path]) -> NDArray[np.float32]:
        moves = np.zeros((len(files), len(used), 3), np.float32)
        for k, file in enumerate(files):
            shape, _ = read_mesh(file, with_faces=False)
            if len(shape) != len(points):
                raise DataError(
                    f"{file} has {len(shape)} vertices but {neutral.name} has {len(points)}: use one release."
                )
            moves[k] = (shape - points)[used] * scale
        return moves

    identity_basis, identity_std = unit_modes(offsets(identities), np.ones(len(identities)))
    vertex = np.full(len(points), -1, np.int64)
    vertex[used] = np.arange(len(used))
    landmarks = np.full(68, -1, np.int64)
    if len(points) > max(ICT_LANDMARKS):
        landmarks = vertex[list(ICT_LANDMARKS)]
    return Parts(
        name="ict-facekit",
        mean=points[used] * scale,
        faces=faces,
        identity_basis=identity_basis,
        identity_std=identity_std,
        expression_basis=offsets(actions),
        expression_std=np.ones(len(actions)),
        expression_kind="blendshapes",
        expression_names=tuple(arkit_name(file.stem) for file in actions),
        landmark_scheme="ibug",
        landmark_vertices=landmarks,
        surface=used < ICT_SKIN,
    )
