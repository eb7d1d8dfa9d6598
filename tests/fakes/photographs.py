"""Tiny data sets in the layouts of the real ones, written at test time.

FACTS.md is the project's collection of facts about published files; sections and phrases are cited where they are used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

SIZE = 450  # "AFLW2000: imageNNNNN.{jpg,mat}, all 450x450 RGB" (FACTS.md A, Layout)


def face_points() -> NDArray[np.float64]:
    """68 points of a schematic face in millimetres (x image right, y up, z to the viewer), symmetric."""
    points = []
    for angle in np.linspace(-100, 100, 17):  # jaw
        turn = math.radians(angle)
        points.append(
            (70 * math.sin(turn), 5 - 75 * math.cos(turn) if abs(angle) < 90 else 20, -40 + 40 * math.cos(turn))
        )
    for side in (-1, 1):  # brows, from the image left
        xs = (55, 45, 35, 25, 15) if side < 0 else (15, 25, 35, 45, 55)
        points += [(side * x, 48 - 0.006 * (x - 33) ** 2, 25 - x / 8) for x in xs]
    points += [(0, y, z) for y, z in ((32, 32), (22, 38), (12, 45), (2, 52))]  # bridge
    points += [(x, -7, 40 - abs(x) / 2) for x in (-14, -7, 0, 7, 14)]  # base of the nose
    points += [(x, y, 20) for x, y in ((-45, 32), (-38, 36), (-28, 36), (-20, 31), (-28, 28), (-38, 28))]
    points += [(x, y, 20) for x, y in ((20, 31), (28, 36), (38, 36), (45, 32), (38, 28), (28, 28))]
    points += [
        (x, y, 34 - abs(x) / 4) for x, y in zip((-25, -16, -7, 0, 7, 16, 25), (-30, -25, -23, -24, -23, -25, -30))
    ]
    points += [(x, y, 34 - abs(x) / 4) for x, y in zip((16, 7, 0, -7, -16), (-37, -40, -41, -40, -37))]
    points += [(x, y, 34 - abs(x) / 4) for x, y in zip((-20, -8, 0, 8, 20), (-30, -29, -29, -29, -30))]
    points += [(x, y, 34 - abs(x) / 4) for x, y in zip((8, 0, -8), (-32, -33, -32))]
    return np.array(points, dtype=np.float64)


def rotation(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """FACTS.md A: "R = Rx Ry Rz, Rx=[1 0 0;0 c s;0 -s c], Ry=[c 0 -s;0 1 0;s 0 c], Rz=[c s 0;-s c 0;0 0 1]"."""
    c, s = math.cos(pitch), math.sin(pitch)
    rx = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    c, s = math.cos(yaw), math.sin(yaw)
    ry = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    c, s = math.cos(roll), math.sin(roll)
    rz = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return rx @ ry @ rz


def random_pose_para(rng: np.random.Generator, size: int = SIZE) -> NDArray[np.float32]:
    """FACTS.md A, .mat keys: "Pose_Para (1,7) f32: pitch,yaw,roll (rad), tx,ty,tz (px), scale f = 1e-3 px/um"."""
    angles = rng.uniform((-0.3, -1.2, -0.3), (0.3, 1.2, 0.3))
    centre = size / 2 + rng.uniform(-10, 10, size=2)
    return np.array([[*angles, *centre, rng.uniform(-120, -80), 1.4e-3 * size / SIZE]], dtype=np.float32)


def project(points_um: NDArray[np.float64], pose_para: NDArray[Any], height: int) -> NDArray[np.float64]:
    """FACTS.md A, Projection: "V = f R S + t ... x=Vx, y=H+1-Vy, 1-based MATLAB pixels; pt3d z = Vz"; ``[N, 3]``."""
    pose = np.asarray(pose_para, dtype=np.float64)[0]
    moved = pose[6] * points_um @ rotation(*pose[:3]).T + pose[3:6]
    return np.stack((moved[:, 0], height + 1 - moved[:, 1], moved[:, 2]), axis=1)


def smooth_picture(rng: np.random.Generator, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture of large smooth blobs, so that JPEG keeps it."""
    small = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def mat_fields(rng: np.random.Generator, pose_para: NDArray[np.float32]) -> dict[str, Any]:
    """The parameter fields that AFLW2000-3D and 300W-LP share, with the usual types (FACTS.md A, .mat keys)."""
    return {
        "Pose_Para": pose_para,
        "Shape_Para": rng.normal(0, 5.3e5, size=(199, 1)) * np.linspace(1, 0.02, 199)[:, None],
        "Exp_Para": rng.uniform(-3, 3, size=(29, 1)),
        "Tex_Para": rng.normal(0, 3500, size=(199, 1)),
        "Color_Para": np.ones((1, 7), dtype=np.float32),
        "Illum_Para": rng.uniform(0, 1, size=(1, 10)),
        "roi": np.array([[1, 1, 450, 450]], dtype=np.int16),
    }


def write_aflw2000(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """``imageNNNNN.{jpg,mat}``; the first sample has the drifted types and shapes that occur (FACTS.md A, Traps)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pose_para = random_pose_para(rng)
        fields = mat_fields(rng, pose_para)
        fields["pt3d_68"] = project(face_points() * 1000, pose_para, SIZE).T.astype(np.float32)
        fields["pt2d"] = np.full((2, 21), -1.0)
        if index == 0:
            fields["Exp_Para"] = np.zeros((29, 1), dtype=np.uint8)
            fields["pt2d"] = np.full((2, 23), -1.0)
        name = f"image{2 * index + 2:05d}"
        Image.fromarray(smooth_picture(rng)).save(folder / f"{name}.jpg", quality=95)
        savemat(folder / f"{name}.mat", fields)
    return folder
