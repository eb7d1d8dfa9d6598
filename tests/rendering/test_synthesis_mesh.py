"""What is hung on a head goes where another model's features are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceSynthesizer
from lightning_faces.rendering.synthesis.mesh import TEETH, TORSO

LIPS = [50, 52, 56, 58]


def with_mean(model: MorphableModel, mean: Tensor, keep: Tensor | None = None) -> MorphableModel:
    faces = model.faces if keep is None else model.faces[keep[model.faces].all(1)]
    return MorphableModel(
        name="other", mean=mean, faces=faces, identity_basis=model.identity_basis[:1],
        identity_std=model.identity_std[:1], expression_basis=model.expression_basis[:1],
        expression_std=model.expression_std[:1], landmark_embeddings=model.landmark_embeddings,
        region_masks=model.region_masks,
    )  # fmt: skip


def part_of_mean(model: MorphableModel, part: int) -> Tensor:
    """Vertices of a part as drawn around the mean face, object frame, not turned."""
    synthesizer = FaceSynthesizer(model, 32)
    mesh = synthesizer.scene_mesh
    scene = synthesizer.sample([0])
    view = replace(scene.view, rotation=torch.eye(3)[None], torso_rotation=torch.eye(3)[None])
    person = replace(scene.person, mouth=replace(scene.person.mouth, raised=torch.zeros(1, 2)))
    none = torch.zeros(1, 1), torch.zeros(1, model.num_expression)
    drawn = mesh(model.vertices(torch.zeros(1, model.num_identity), none[1]), *none, person, view)[0]
    vertices: Tensor = drawn[mesh.faces[mesh.parts == part].unique()]
    return vertices


def test_teeth_follow_the_mouth_of_the_mean(embedded: MorphableModel) -> None:
    move = torch.tensor([0.0, 6.0, -17.0])
    mouth = embedded.mean + embedded.region_masks["mouth"][:, None] * move
    assert embedded.landmarks(mouth[None])[0, LIPS].sub(embedded.landmarks(embedded.mean[None])[0, LIPS]).allclose(move)
    ours = part_of_mean(with_mean(embedded, embedded.mean), TEETH)
    moved = part_of_mean(with_mean(embedded, mouth), TEETH)
    assert (moved - ours - move).abs().max() < 0.11  # to a tenth of a millimetre
    # Behind the lips, and between the outlines of both.
    lips = embedded.landmarks(embedded.mean[None])[0, 48:60]
    assert ours[:, 2].max() < lips[:, 2].max() - 8.0
    assert lips[:, 1].min() < ours[:, 1].mean() < lips[:, 1].max()


@pytest.mark.parametrize(("lowest", "top"), [(-1000.0, -72.0), (-85.0, 0.0)])
def test_a_face_without_a_neck_stands_on_one(embedded: MorphableModel, lowest: float, top: float) -> None:
    mean = embedded.mean.clone()
    mean[:, 1] = mean[:, 1].clamp_min(lowest)
    torso = part_of_mean(with_mean(embedded, mean), TORSO)
    slant = 0.45 * 47.0 if top < 0.0 else 0.0
    # The embedded model's canonical frame lies 8.6 mm above its object frame.
    assert torso[:, 1].max() == pytest.approx(top + slant - 8.6, abs=1.5)
