"""Landmark fits against labels that were made with another face model: AFLW2000-3D, and imported models."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.components.fitted import convert_pose
from datamodules.components.matfile import read_mat
from lightning_faces.geometry import face_size
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_dense, fit_landmarks
from lightning_faces.morphable.formats import import_model
from lightning_faces.rendering.maps import FaceMaps

from .faces import degrees_between, random_faces, rms

ROOT = Path(os.environ.get("LIGHTNING_FACES_DATA", "missing"))
MODELS = {"sfm": "sfm/sfm_shape_3448.bin", "ict-facekit": "ict_facekit"}

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="LIGHTNING_FACES_DATA is not set")


@cache
def load(name: str) -> MorphableModel:
    if name == "embedded":
        return MorphableModel.load("embedded")
    return import_model(name, ROOT / MODELS[name], None, None, lambda line: None)


@pytest.fixture(scope="module")
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """68 points, image frame, 0-based, and poses of the Basel Face Model that they are projections of."""
    points, poses = [], []
    for path in sorted((ROOT / "aflw2000_3d").glob("*.mat")):
        fields = read_mat(path, {"pt3d_68": (3, 68), "Pose_Para": (1, 7)})
        pose = convert_pose(fields["Pose_Para"][0], 450).pose
        if pose is not None:
            points.append(fields["pt3d_68"].T - (1, 1, 0))
            poses.append(pose)
    assert len(points) > 150
    return torch.from_numpy(np.array(points)).float(), torch.from_numpy(np.array(poses))


@pytest.mark.parametrize(("name", "width", "residual", "degrees"), [
    ("embedded", 3, 1.5, 2.0), ("embedded", 2, 1.2, 2.0), ("sfm", 3, 2.0, 2.0), ("ict-facekit", 3, 2.3, 2.0),
])  # fmt: skip
def test_aflw2000(
    labels: tuple[torch.Tensor, torch.Tensor], name: str, width: int, residual: float, degrees: float
) -> None:
    points, pose = labels
    fit = fit_landmarks(points[..., :width], "68", load(name))
    assert fit.valid.all()
    assert (fit.residual / face_size(points)).mean() * 100 < residual
    angle = degrees_between(fit.camera.pose, pose)
    assert angle.mean() < degrees
    assert angle[pose[:, 2].abs() > 1.05].mean() < degrees + 0.5, "profiles"
    assert fit.coefficients.abs().max() < 5.0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dense_maps_of_imported_models(name: str) -> None:
    model = load(name)
    faces = random_faces(model, 3, yaw=0.2, scale=0.9)
    maps = FaceMaps(model, 200)
    fit = fit_dense(*maps.pncc(maps.face_region(faces.camera.project(faces.shapes)), faces.shapes), model)
    assert degrees_between(fit.camera.pose, faces.camera.pose).max() < 0.1
    assert rms(fit.shapes, faces.shapes).max() < 0.2
    assert (fit.landmarks - faces.landmarks)[..., :2].norm(dim=2).mean() < 0.3
