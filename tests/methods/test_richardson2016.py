"""Richardson 2016: the Gram matrix against vertices, figure 4, what a pass sees, and passes that converge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_faces.batch import FaceBatch, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.frames import image_to_unit
from lightning_faces.heads.geometry_loss import GeometryLoss
from lightning_faces.methods import MeanLandmarks, Richardson2016
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.richardson2016.network import Correction, PaperNetwork
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_landmarks
from lightning_faces.rendering.geometry_view import geometry_view
from tests.callbacks.training import trainer
from tests.methods.faces import rendered_faces
from tests.methods.losses import losses_of_training


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def small(**options: Any) -> Richardson2016:
    torch.manual_seed(0)
    return Richardson2016(**{"image_size": 64, "width": 8, **options})


def test_the_gram_matrix_says_what_the_vertices_would(model: MorphableModel) -> None:
    loss = GeometryLoss(model, model.num_identity, model.num_expression)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 64, model.num_coefficients, generator=generator).unbind()
    split = (model.num_identity, model.num_expression)

    def by_vertices() -> torch.Tensor:
        distance = model.vertices(*first.split(split, dim=1)) - model.vertices(*second.split(split, dim=1))
        return distance.square().sum(dim=-1).mean(dim=1)

    torch.testing.assert_close(loss(first, second), by_vertices(), rtol=1e-4, atol=0)
    part = GeometryLoss(model, 10, 5)
    kept = torch.cat((torch.arange(10), model.num_identity + torch.arange(5)))
    reduced = torch.zeros_like(first)
    reduced[:, kept] = first[:, kept]
    torch.testing.assert_close(
        part(first[:, kept], torch.zeros(64, 15)), loss(reduced, torch.zeros_like(first)), rtol=1e-4, atol=0
    )


def test_the_network_is_figure_4() -> None:
    """Sizes of the figure for 200 pixels and 284 coefficients; and 568 numbers into the linear layer."""
    sizes = []
    network = PaperNetwork(284).eval()
    for layer in network:
        layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(1, 2, 200, 200)).shape == (1, 284)
    maps = [size for size in dict.fromkeys(sizes) if len(size) == 3]
    assert maps == [
        (32, 100, 100),
        (64, 50, 50),
        (128, 25, 25),
        (256, 13, 13),
        (284, 13, 13),
        (284, 1, 1),
    ]
    assert Correction(284, 284).layer.weight.shape == (284, 568)


def test_a_pass_sees_the_masked_image_and_the_shading_of_the_last_one(model: MorphableModel) -> None:
    method = small().eval()
    batch, _ = rendered_faces(model, 2, 64)
    seen: list[torch.Tensor] = []
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = method.correct(batch["image"], batch["pose"])
    assert len(seen) == len(found) == 3
    mask, shading = geometry_view(model, torch.zeros(2, model.num_coefficients), batch["pose"], 64)
    torch.testing.assert_close(seen[0][:, 1:], shading)
    grey = batch["image"][:, 0] * 0.299 + batch["image"][:, 1] * 0.587 + batch["image"][:, 2] * 0.114
    torch.testing.assert_close(seen[0][:, :1], grey[:, None] * mask)
    _, shading = geometry_view(model, found[0], batch["pose"], 64)
    torch.testing.assert_close(seen[1][:, 1:], shading)
    method = small(masked=False).eval()
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.correct(batch["image"], batch["pose"])
    torch.testing.assert_close(seen[3][:, :1], grey[:, None])


def test_training_draws_between_a_random_geometry_and_the_true_one(model: MorphableModel) -> None:
    method = small()
    batch, _ = rendered_faces(model, 64, 64)
    seen: list[torch.Tensor] = []
    method.correction.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    method.terms(batch)
    identity = batch["coefficients"][:, : model.num_identity]
    present = seen[0][:, : model.num_identity]
    share = (present * identity).sum(dim=1) / identity.square().sum(dim=1)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.1)
    assert 0.5 < float(share.std() * 12**0.5) < 1.5  # uniform over [0, 1]


def test_each_pass_comes_nearer_after_a_short_training(model: MorphableModel) -> None:
    method = small(width=16, num_identity=5, num_expression=1)
    batch, _ = rendered_faces(model, 8, 64)
    losses = losses_of_training(method, [batch], 160)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    with torch.no_grad():
        for _ in range(30):  # the running statistics of the batch norms catch up
            method.terms(batch)
        named = method.eval().predict_named(batch)
    assert tuple(named) == ("pass_1", "pass_2", "pass_3")
    target = method._own_modes(batch["coefficients"])
    error = [float(method.geometry(torch.zeros_like(target), target).mean())]
    for faces in named.values():
        assert faces.coefficients is not None
        error.append(float(method.geometry(method._own_modes(faces.coefficients), target).mean()))
    assert error[0] > 2 * error[1]
    assert error[3] < 0.5 * error[0]


def test_a_video_needs_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With passes that go half of the way: one from the frame before is nearer than three from the mean face."""
    method = small().eval()

    def half_way(image: torch.Tensor, pose: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return (previous + image.mean(dim=(1, 2, 3))[:, None]) / 2

    monkeypatch.setattr(method, "forward", half_way)
    true = 0.5 + 0.01 * torch.arange(12.0)  # a coefficient that a slow video shows as its brightness
    frames, pose = true[:, None, None, None].expand(-1, 3, 64, 64), torch.zeros(12, 6)
    found = method.correct_sequence(frames, pose)[:, 0]
    expected = [0.5 * (1 - 0.5**3)]
    for value in true[1:].tolist():
        expected.append((expected[-1] + value) / 2)
    torch.testing.assert_close(found, torch.tensor(expected))
    alone = method.correct(frames, pose)
    assert bool(((found - true).abs() < (alone[2][:, 0] - true).abs())[2:].all())
    torch.testing.assert_close(method.correct_sequence(frames, pose, passes=3)[0], alone[2][0])


def test_a_frame_without_a_pose_keeps_the_face_of_the_one_before(model: MorphableModel) -> None:
    method = small().eval()
    batch, _ = rendered_faces(model, 4, 64)
    known = torch.tensor([False, True, False, True])
    with torch.no_grad():
        found = method.correct_sequence(batch["image"], batch["pose"], known, passes=2)
        first = method.correct(batch["image"][1:2], batch["pose"][1:2])[-1]
        last = method.correct(batch["image"][3:], batch["pose"][3:], start=first, passes=2)[-1]
    assert not found[0].any()
    torch.testing.assert_close(found[1:], torch.cat((first, first, last)))


def test_a_video_starts_from_the_frame_before(model: MorphableModel) -> None:
    method = small().eval()
    batch, _ = rendered_faces(model, 2, 64)
    with torch.no_grad():
        passes = method.correct(batch["image"], batch["pose"])
        again = method.correct(batch["image"], batch["pose"], start=passes[0])
    torch.testing.assert_close(again[0], passes[1])


def test_fewer_modes_leave_the_others_at_zero(model: MorphableModel) -> None:
    method = small(num_identity=10, num_expression=5).eval()
    batch, _ = rendered_faces(model, 2, 64)
    faces = method.predict_faces(batch)
    assert faces.coefficients is not None
    used = faces.coefficients.abs().sum(dim=0) > 0
    assert used.nonzero()[:, 0].tolist() == [*range(10), *range(model.num_identity, model.num_identity + 5)]
    with pytest.raises(ConfigurationError, match="num_identity is 500, and the face model has 72"):
        small(num_identity=500)


def test_faces_without_a_pose_are_not_valid(model: MorphableModel) -> None:
    method = small().eval()
    batch, _ = rendered_faces(model, 2, 64)
    batch["has"]["pose"][0] = False
    faces = method.predict_faces(batch)
    assert faces.valid is not None and faces.valid.tolist() == [False, True]
    assert faces.reason == ["the data have no pose of it", ""]
    torch.manual_seed(0)
    terms = method.train().terms(batch)
    assert terms["geometry"].count.tolist() == [0.0, 1.0]
    without: FaceBatch = {key: value for key, value in batch.items() if key != "pose"}  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="needs a pose, which these data do not have: set option pose_source"):
        method.predict_faces(without)


def saved(method: FaceMethod, path: Path) -> str:
    saver = trainer(path.parent, [])
    saver.strategy.connect(method)
    saver.save_checkpoint(path)
    return str(path)


def test_the_pose_is_that_of_the_landmarks_of_another_method(model: MorphableModel, tmp_path: Path) -> None:
    batch, vertices = rendered_faces(model, 1, 64)
    source = MeanLandmarks()
    source.mean.data = image_to_unit(model.landmarks(vertices)[0], 64)
    method = small(pose_source=saved(source, tmp_path / "mean.ckpt")).eval()
    without: FaceBatch = {key: value for key, value in batch.items() if key != "pose"}  # type: ignore[assignment]
    with torch.no_grad():
        faces = method.predict_faces(without)
        fit = fit_landmarks(model.landmarks(vertices)[..., :2], "68", model)
        expected = method.correct(batch["image"], fit.camera.pose)[-1]
    assert faces.coefficients is not None and faces.camera is not None
    torch.testing.assert_close(faces.coefficients, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(faces.camera.pose, fit.camera.pose, rtol=1e-4, atol=1e-4)
    assert method.protocol == {"pose": "landmarks of MeanLandmarks"}
    # Landmarks at one spot are no pose; far outside the picture they are one that shows nothing.
    method.pose_source[0].mean.data.zero_()  # type: ignore[union-attr]
    faces = method.predict_faces(without)
    assert faces.valid is not None and not faces.valid.any() and faces.reason == ["its image points lie on a line"]
    method.pose_source[0].mean.data = image_to_unit(model.landmarks(vertices)[0] + 200.0, 64)
    faces = method.predict_faces(without)
    assert faces.valid is not None and not faces.valid.any() and faces.reason == ["the face lies outside the image"]


def test_pose_sources_that_do_not_fit_are_refused(
    model: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.ckpt, a MeanLandmarks of 66 .*: use one of 68 landmarks"):
        small(pose_source=saved(MeanLandmarks("66"), tmp_path / "a.ckpt"))
    other = saved(Richardson2016(32, width=4), tmp_path / "b.ckpt")
    with pytest.raises(ConfigurationError, match=r"in images of 32 pixels: use one .* in images of 64 pixels"):
        small(pose_source=other)
    with pytest.raises(ConfigurationError, match="a Richardson2016, which needs a pose itself"):
        Richardson2016(32, width=4, pose_source=other)
    source = saved(MeanLandmarks(), tmp_path / "c.ckpt")
    monkeypatch.setattr(MeanLandmarks, "spec", FaceSpec(landmark_scheme="68", face_model="bfm", face_model_hash="0"))
    with pytest.raises(ConfigurationError, match="a MeanLandmarks of the face model 'bfm', whose landmarks are other"):
        small(pose_source=source)


@pytest.mark.slow
def test_paper_exact_network_learns_in_50_full_size_steps(model: MorphableModel) -> None:
    """200 pixels, figure 4 at its width, all modes, Adam at a fixed rate."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    batch, _ = rendered_faces(model, 16, 200)
    losses = losses_of_training(Richardson2016(), [batch], 50)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
