"""Pix2face: planes and loss by hand, perfect planes read back as the faces they show, an overfit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_faces.batch import FaceBatch
from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.geometry_images import GeometryImages
from lightning_faces.methods import Pix2Face
from lightning_faces.methods.pix2face.method import DECAY
from lightning_faces.morphable import MorphableModel
from tests.methods.faces import rendered_faces
from tests.methods.losses import loss_of, losses_of_training


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def small(**options: Any) -> Pix2Face:
    torch.manual_seed(0)
    return Pix2Face(**{"image_size": 64, "width": 4, "depth": 3, "offset_range": 40.0, **options})


def perfect(method: Pix2Face, batch: FaceBatch) -> GeometryImages:
    head = method.head
    return GeometryImages((batch["pncc"] - head.centre) / head.half_side, batch["offsets"] / head.offset_range)


def test_the_network_is_the_published_u_net() -> None:
    """Eight levels of 64 to 512 channels, halved from 256 pixels to one, and as many up again."""
    with torch.device("meta"):
        encoder = Pix2Face().encoder
    assert encoder.shape.channels == (64, 128, 256, 512, 512, 512, 512, 512)
    assert encoder.shape.sides == (128, 64, 32, 16, 8, 4, 2, 1)
    counted = sum(p.numel() for p in encoder.parameters())
    widths = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    assert counted == sum(16 * a * b + b for a, b in itertools.pairwise(widths))


def test_the_rate_falls_as_in_the_paper() -> None:
    method = small()
    assert method.make_optimizer is not None and method.make_lr_scheduler is not None
    optimizer = method.make_optimizer(method.parameters())
    assert optimizer.defaults["betas"] == (0.5, 0.9)
    schedule = method.make_lr_scheduler(optimizer)
    for _ in range(59):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.1e-5, rel=1e-6)
    assert pytest.approx(0.9366, abs=1e-4) == DECAY


def test_the_loss_is_the_mean_difference_of_six_planes_with_the_origin_as_background(model: MorphableModel) -> None:
    method = small()
    batch, _ = rendered_faces(model, 2, 64)
    assert float(sum(term.value.sum() for term in method.head.terms(perfect(method, batch), batch).values())) < 1e-5
    low, half = method.head.centre.numpy(), method.head.half_side.numpy()
    output = method(batch["image"])
    terms = method.head.terms(output, batch)
    inside = batch["face_mask"].numpy() > 0.5
    wanted = (np.where(inside, batch["pncc"].numpy(), 0) - low) / half
    expected = np.abs(output.pncc.detach().numpy() - wanted).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(terms["pncc"].value.detach().numpy(), expected, rtol=1e-5)
    wanted = np.where(inside, batch["offsets"].numpy(), 0) / 40
    expected = np.abs(output.offsets.detach().numpy() - wanted).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(terms["offsets"].value.detach().numpy(), expected, rtol=1e-5)
    assert [term.weight for term in terms.values()] == [0.5, 0.5]


def test_a_sample_without_images_adds_nothing(model: MorphableModel) -> None:
    method = small()
    batch, _ = rendered_faces(model, 3, 64)
    alone = {key: value[:1] for key, value in batch.items() if isinstance(value, Tensor)}
    alone["has"] = {key: value[:1] for key, value in batch["has"].items()}
    for key in ("pncc", "offsets", "face_mask"):
        batch["has"][key][1:] = False
        batch[key][1:] = 0  # type: ignore[literal-required]
    torch.testing.assert_close(loss_of(method, batch), loss_of(method, alone))  # type: ignore[arg-type]


def test_perfect_planes_are_read_as_the_faces_that_they_show(model: MorphableModel) -> None:
    method = small(image_size=128)
    batch, vertices = rendered_faces(model, 6, 128)
    faces = method.head.read(perfect(method, batch), batch)
    assert faces.valid is not None and bool(faces.valid.all())
    assert faces.pose is not None and faces.vertices is not None
    assert float((faces.pose - batch["pose"])[:, 1:4].abs().max().rad2deg()) < 0.2
    distance = (faces.landmarks - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1)
    assert float(distance.max()) < 0.5
    nearer = (faces.vertices - vertices).norm(dim=-1).mean(dim=1)
    assert float(nearer.max()) < 1.0
    assert faces.dense_mask is not None
    inside = faces.dense_mask.expand(-1, 3, -1, -1)
    torch.testing.assert_close(faces.dense["pncc"][inside], batch["pncc"][inside], atol=1e-3, rtol=0)


def test_a_picture_without_a_face_is_not_valid(model: MorphableModel) -> None:
    method = small()
    batch, _ = rendered_faces(model, 2, 64)
    output = perfect(method, batch)
    background = (-method.head.centre / method.head.half_side).expand(3, 64, 64)
    output.pncc[0] = background
    output.offsets[0] = 0
    faces = method.head.read(output, batch)
    assert faces.valid is not None and faces.valid.tolist() == [False, True]
    assert faces.reason is not None and faces.reason[0] and not faces.reason[1]
    assert bool(faces.landmarks.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 60}, "image_size 60, depth 3 and width 4 do not fit"),
        ({"pretrained": True}, "are for timm encoders, but the encoder is 'unet'"),
        ({"offset_range": 0.0}, "offset_range is 0.0; it must be positive"),
        ({"encoder": "unet_of_mine"}, "encoder is 'unet_of_mine'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(**options)


@pytest.mark.parametrize(
    "options",
    [{}, {"upsampling": "transposed"}, {"encoder": "resnet10t", "encoder_args": {"channels": [8, 16, 32, 64]}}],
)
def test_loss_falls_on_a_few_faces(model: MorphableModel, options: dict[str, Any]) -> None:
    method = small(**options)
    batch, _ = rendered_faces(model, 4, 64)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(method, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_overfits_four_faces(model: MorphableModel) -> None:
    """What it learns by heart it reads back to 2 mm a pixel and 2 % of the face size at the landmarks."""
    method = small(width=16, depth=5)
    batch, _ = rendered_faces(model, 4, 64)
    steps = 1500
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        faces = method.eval().predict_faces(batch)
    assert faces.dense_mask is not None
    inside = (faces.dense_mask & (batch["face_mask"] > 0.5))[:, 0]
    error = (faces.dense["pncc"] + faces.dense["offsets"] - batch["pncc"] - batch["offsets"]).norm(dim=1)
    assert float(error[inside].median()) < 2.0
    nme = (faces.landmarks - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]
    assert float(nme.mean()) < 0.02


@pytest.mark.slow
def test_paper_exact_network_learns_in_50_full_size_steps(model: MorphableModel) -> None:
    """256 pixels, 64 to 512 channels, batches of 4, Adam at 0.001 with (0.5, 0.9): the published configuration."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    method = Pix2Face()
    batches = [rendered_faces(model, 4, 256, seed)[0] for seed in (0, 1)]
    losses = losses_of_training(method, batches, 50)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
