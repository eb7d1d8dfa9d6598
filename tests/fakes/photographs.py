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
from scipy.spatial import Delaunay

from lightning_faces.geometry.landmarks import SCHEMES
from lightning_faces.morphable import MorphableModel

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


def fake_bases() -> dict[str, NDArray[np.float64]]:
    """A face model of the 68 points with 199 + 29 modes, in the parameters' raw units and micrometres.

    "Shape_Para (199,1) raw coefficients, not sigma-normalised (std of #1 = 5.3e5); Exp_Para (29,1) raw, -8.7...6.7"
    (FACTS.md A, .mat keys).
    """
    rng = np.random.default_rng(99)
    identity_std, expression_std = np.geomspace(5.3e5, 1e4, 199), np.full(29, 2.0)
    return {
        "mean": face_points() * 1000,
        "identity_std": identity_std,
        "identity_basis": rng.normal(0, 150, size=(199, 68, 3)) / identity_std[:, None, None],
        "expression_std": expression_std,
        "expression_basis": rng.normal(0, 400, size=(29, 68, 3)) / expression_std[:, None, None],
    }


BASES = fake_bases()


def fake_shape(fields: dict[str, Any]) -> NDArray[np.float64]:
    """FACTS.md A, Projection: "S = mu_shape + mu_exp + w Shape_Para + w_exp Exp_Para"; micrometres ``[68, 3]``."""
    identity = np.tensordot(fields["Shape_Para"][:, 0], BASES["identity_basis"], axes=1)
    expression = np.tensordot(fields["Exp_Para"][:, 0].astype(np.float64), BASES["expression_basis"], axes=1)
    return BASES["mean"] + identity + expression


def fake_face_model() -> MorphableModel:
    """The face model of the fakes as a user would have imported it: millimetres, standard deviations in raw units."""
    mean = BASES["mean"] / 1000
    triangles = Delaunay(mean[:, :2]).simplices.astype(np.int64)
    a, b, c = (mean[triangles[:, k], :2] for k in range(3))
    clockwise = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0
    triangles[clockwise] = triangles[clockwise][:, ::-1]
    corner = [np.argwhere(triangles == vertex)[0] for vertex in range(68)]
    low, high = mean[:, :2].min(axis=0), mean[:, :2].max(axis=0)
    uv = 0.05 + 0.9 * (mean[:, :2] - low) / (high - low)
    uv[:, 1] = 1 - uv[:, 1]
    return MorphableModel(
        name="fake-bfm",
        mean=mean,
        faces=triangles,
        identity_basis=BASES["identity_basis"] / 1000,
        identity_std=BASES["identity_std"],
        expression_basis=BASES["expression_basis"] / 1000,
        expression_std=BASES["expression_std"],
        uv=uv,
        uv_faces=triangles,
        uv_face_ids=np.arange(len(triangles)),
        landmark_embeddings={"bfm": (np.array([t for t, _ in corner]), np.eye(3)[[k for _, k in corner]])},
    )


def mat_fields(rng: np.random.Generator, pose_para: NDArray[np.float32]) -> dict[str, Any]:
    """The parameter fields that AFLW2000-3D and 300W-LP share, with the usual types (FACTS.md A, .mat keys)."""
    return {
        "Pose_Para": pose_para,
        "Shape_Para": (rng.normal(size=199) * BASES["identity_std"])[:, None],
        "Exp_Para": rng.normal(0, 2, size=(29, 1)),
        "Tex_Para": rng.normal(0, 3500, size=(199, 1)),
        "Color_Para": np.ones((1, 7), dtype=np.float32),
        "Illum_Para": rng.uniform(0, 1, size=(1, 10)),
        "roi": np.array([[1, 1, 450, 450]], dtype=np.int16),
    }


def write_photograph(path: Path, rng: np.random.Generator, size: int = SIZE) -> None:
    """A JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_picture(rng, size)).save(path, quality=95)


def write_aflw2000(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """``imageNNNNN.{jpg,mat}``; the first sample has the drifted types and shapes that occur (FACTS.md A, Traps)."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        pose_para = random_pose_para(rng)
        fields = mat_fields(rng, pose_para)
        fields["pt2d"] = np.full((2, 21), -1.0)
        if index == 0:
            fields["Exp_Para"] = np.zeros((29, 1), dtype=np.uint8)
            fields["pt2d"] = np.full((2, 23), -1.0)
        fields["pt3d_68"] = project(fake_shape(fields), pose_para, SIZE).T.astype(np.float32)
        name = f"image{2 * index + 2:05d}"
        write_photograph(folder / f"{name}.jpg", rng)
        savemat(folder / f"{name}.mat", fields)
    return folder


def write_300w_lp(folder: Path, photographs: int = 2, copies: int = 3, seed: int = 0, labels: bool = True) -> Path:
    """``300W_LP/{AFW,HELEN,IBUG,LFPW}[_Flip]/X.{jpg,mat}`` and ``landmarks/SET/X_pts.mat`` (FACTS.md A, Layout).

    ``pt2d`` "is the unrotated photo's label, copied to every rotated sibling" (FACTS.md A, Traps).
    """
    rng = np.random.default_rng(seed)
    for subset in ("AFW", "HELEN", "IBUG", "LFPW"):
        for number in range(photographs):
            fields = mat_fields(rng, random_pose_para(rng))
            shape = fake_shape(fields)
            original = project(shape, fields["Pose_Para"], SIZE)[:, :2]
            for view in range(copies):
                stem = f"{subset}_image_{number:04d}_{view}"
                pose_para = fields["Pose_Para"].copy()
                pose_para[0, 1] -= 0.2 * view
                points = project(shape, pose_para, SIZE)
                write_photograph(folder / subset / f"{stem}.jpg", rng)
                mat = {**fields, "Pose_Para": pose_para, "pt2d": original.T}
                savemat(folder / subset / f"{stem}.mat", mat)
                if view == 0:
                    (folder / f"{subset}_Flip").mkdir(exist_ok=True)
                    write_photograph(folder / f"{subset}_Flip" / f"{stem}.jpg", rng)
                    savemat(folder / f"{subset}_Flip" / f"{stem}.mat", mat)
                if labels:
                    path = folder / "landmarks" / subset / f"{stem}_pts.mat"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    marched = points[:, :2].copy()
                    marched[:5] += (3.0, 0.0)  # the 2D contour is elsewhere than the model's
                    savemat(path, {"pts_2d": marched, "pts_3d": points[:, :2]})
    return folder


def write_300w_3d(folder: Path, photographs: int = 3, seed: int = 0) -> Path:
    """``300W-3D/SET/X.{jpg,mat}`` (FACTS.md A, Layout); here ``pt2d`` is the photograph's own label."""
    rng = np.random.default_rng(seed)
    for subset in ("AFW", "HELEN", "IBUG", "LFPW"):
        for number in range(photographs):
            fields = mat_fields(rng, random_pose_para(rng))
            fields["pt2d"] = project(fake_shape(fields), fields["Pose_Para"], SIZE)[:, :2].T
            path = folder / subset / f"{subset}_{number}.jpg"
            write_photograph(path, rng)
            savemat(path.with_suffix(".mat"), fields)
    return folder


def write_table(
    folder: Path,
    rows: int,
    scheme: str,
    seed: int = 0,
    depth: bool = True,
    **columns: list[str] | list[int] | list[float],
) -> Path:
    """The platform's own import layout (``datamodules/table.py``), as CSV; the 68 points give those of the scheme."""
    rng = np.random.default_rng(seed)
    groups = SCHEMES[scheme].groups or tuple((i,) for i in range(int(scheme)))
    header = ["file", *columns]
    axes = "xyz" if depth else "xy"
    header += [f"{axis}{i}" for i in range(len(groups)) for axis in axes]
    lines = [",".join(header)]
    for row in range(rows):
        name = f"pictures/{row:04d}.jpg"
        write_photograph(folder / name, rng, 120)
        points = project(face_points() * 1000, random_pose_para(rng, 120), 120) - (1, 1, 0)
        points[:, 2] -= points[:, 2].mean()  # "z zero-mean" (FACTS.md B, 3DFAW)
        values = [points[list(group)].mean(axis=0) for group in groups]
        cells = [name, *(str(column[row]) for column in columns.values())]
        cells += [f"{value:.4f}" for point in values for value in point[: len(axes)]]
        lines.append(",".join(cells))
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
