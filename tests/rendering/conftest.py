"""A sphere as a face model, so that everything has a closed form; and the embedded model, loaded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch3d.utils import ico_sphere

from lightning_faces.morphable import MorphableModel

RADIUS = 80.0


def make_sphere_model(level: int = 5) -> MorphableModel:
    """A sphere of 80 mm whose identities stretch it along x and y and whose expression pushes its front out."""
    sphere = ico_sphere(level)
    unit = sphere.verts_packed()
    mean = unit * RADIUS
    stretch = torch.stack([mean * torch.tensor([1.0, 0, 0]), mean * torch.tensor([0, 1.0, 0])])
    push = torch.zeros_like(mean)
    push[:, 2] = 10.0 * unit[:, 2].clamp_min(0.0) ** 2
    triangles = np.random.default_rng(0).integers(0, len(sphere.faces_packed()), 68)
    return MorphableModel(
        name="sphere",
        mean=mean,
        faces=sphere.faces_packed(),
        identity_basis=stretch,
        identity_std=[0.1, 0.1],
        expression_basis=push[None],
        expression_std=[1.0],
        landmark_embeddings={"bfm": (triangles, np.full((68, 3), 1 / 3))},
    )


@pytest.fixture(scope="session")
def sphere_model() -> MorphableModel:
    return make_sphere_model()


@pytest.fixture(scope="session")
def embedded() -> MorphableModel:
    return MorphableModel.load("embedded")
