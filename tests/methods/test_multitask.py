"""The multi-task network: its contract, its losses against NumPy, fusion, balancing, transfer, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import LastCheckpoint
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera, weak_perspective
from lightning_faces.heads import Features, FeatureShape
from lightning_faces.heads.coefficients import CoefficientHead, PosedCoefficients
from lightning_faces.heads.landmark_marks import MarkedLandmarks, UncertaintyHead, VisibilityHead
from lightning_faces.methods import MultiTask
from lightning_faces.methods.base import FaceMethod, term_means, weighted_sum
from lightning_faces.methods.multitask.fusion import fuse
from lightning_faces.morphable import MorphableModel
from tests.callbacks.training import trainer
from tests.fakes.noise_faces import NoiseFaces
from tests.methods.faces import rendered_faces
from tests.methods.losses import loss_of, mean_of
from tests.methods.test_contract import SGD, WithDenseFaces

ALL: dict[str, dict[str, Any]] = {
    "landmarks": {"squared": False}, "depth": {"view_angles": [0, 0, 0]}, "coefficients": {}, "visibility": {},
    "uncertainty": {}, "position_map": {"width": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def small(heads: dict[str, dict[str, Any]] | None = None, **options: Any) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(
        **{"image_size": 32, "encoder": "test_resnet", "heads": ALL if heads is None else heads, **options}
    )


def faces(model: MorphableModel, count: int = 3, size: int = 32) -> FaceBatch:
    """Rendered faces whose landmarks are all visible but the first five."""
    batch, _ = rendered_faces(model, count, size)
    batch["visible"] = torch.arange(68).expand(count, 68) >= 5
    batch["position_map"] = torch.rand(count, 3, size, size) * size
    for key in ("visible", "position_map"):
        batch["has"][key] = torch.ones(count, dtype=torch.bool)
    return batch


class TestMultiTask(WithDenseFaces):
    tolerance = 1e-4
    half_tolerance = 0.1

    def make(self, image_size: int = 32) -> FaceMethod:
        # Maps are left to the tests of their own methods: they take long to draw.
        heads = {name: options for name, options in ALL.items() if name != "position_map"}
        return small(heads, image_size=image_size, optimizer=SGD)


def posed(head: CoefficientHead, batch: FaceBatch) -> PosedCoefficients:
    """The output that is right."""
    from lightning_faces.geometry.rotation import euler_to_matrix

    return PosedCoefficients(batch["coefficients"], batch["pose"], euler_to_matrix(batch["pose"][:, 1:4]))


def test_true_coefficients_and_pose_have_no_loss_and_are_read_as_the_true_face(model: MorphableModel) -> None:
    batch, vertices = rendered_faces(model, 3, 64)
    head = CoefficientHead(FeatureShape(64, pooled=4), model)
    terms = head.terms(posed(head, batch), batch)
    limits = {"geometry": 0.011, "actions": 1e-6, "pose": 1e-3, "reprojection": 1e-3}
    assert {name: float(mean_of(term)) < limits[name] for name, term in terms.items()} == dict.fromkeys(limits, True)
    read = head.read(posed(head, batch), batch)
    assert read.vertices is not None and read.coefficients is not None and read.pose is not None
    torch.testing.assert_close(read.vertices, vertices, rtol=0, atol=1e-3)
    torch.testing.assert_close(read.landmarks, batch["landmarks"], rtol=0, atol=1e-3)
    torch.testing.assert_close(head.landmarks(posed(head, batch)), read.landmarks[..., :2], rtol=0, atol=1e-3)


def test_the_losses_of_coefficients_and_pose_against_numpy(model: MorphableModel) -> None:
    batch, _ = rendered_faces(model, 3, 64)
    head = CoefficientHead(FeatureShape(64, pooled=4), model)
    torch.manual_seed(1)
    with torch.no_grad():
        head.layer.weight.normal_(std=0.3)
    output = head(Features(torch.randn(3, 4)))
    terms = {name: term.value / term.count for name, term in head.terms(output, batch).items()}
    free = output.coefficients.detach().double().numpy()
    identity = model.num_identity
    assert free[:, identity:].min() < 0 and free[:, identity:].max() > 1
    found = np.concatenate((free[:, :identity], free[:, identity:].clip(0, 1)), axis=1)
    true = batch["coefficients"].double().numpy()
    basis = torch.cat(
        (model.identity_basis * model.identity_std[:, None, None],
         model.expression_basis * model.expression_std[:, None, None])
    ).double().numpy()  # fmt: skip
    shift = np.einsum("bk,kvd->bvd", found - true, basis)
    expected = np.sqrt((shift**2).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(terms["geometry"].detach().numpy(), expected, rtol=1e-3)
    expected = np.abs(free - true)[:, identity:].mean(axis=1)
    np.testing.assert_allclose(terms["actions"].detach().numpy(), expected, rtol=1e-4)
    found_rotation = output.rotation.detach().double().numpy()
    from lightning_faces.geometry.rotation import euler_to_matrix

    true_rotation = euler_to_matrix(batch["pose"][:, 1:4].double()).numpy()
    trace = np.einsum("bij,bij->b", found_rotation, true_rotation)
    expected = 2 * np.sin(np.arccos((trace - 1) / 2) / 2)
    np.testing.assert_allclose(terms["pose"].detach().numpy(), expected, rtol=1e-3)
    with torch.no_grad():
        projected = head.read(output, batch).landmarks.double().numpy()
    expected = np.linalg.norm((projected - batch["landmarks"].numpy())[..., :2], axis=2).mean(axis=1)
    np.testing.assert_allclose(terms["reprojection"].detach().numpy(), expected, rtol=1e-3)
    # Half the image's side is the unit of the last one's weight.
    assert [term.weight for term in head.terms(output, batch).values()] == [0.1, 10.0, 0.2, 2 / 64]


def test_facial_actions_stay_in_range_and_find_back(model: MorphableModel) -> None:
    head = CoefficientHead(FeatureShape(64, pooled=4), model)
    batch, _ = rendered_faces(model, 2, 64)
    with torch.no_grad():
        head.layer.bias[: model.num_coefficients].copy_(torch.linspace(-4, 4, model.num_coefficients))
    features = Features(torch.zeros(2, 4))
    read = head.read(head(features), batch).coefficients
    assert read is not None
    actions = read[:, model.num_identity :]
    assert float(actions.detach().min()) >= 0 and float(actions.detach().max()) == 1
    assert float(read[:, : model.num_identity].detach().min()) == -4
    # Beyond 1 the loss still has a gradient that leads back.
    mean_of(head.terms(head(features), batch)["actions"]).backward()
    assert head.layer.bias.grad is not None
    assert bool((head.layer.bias.grad[model.num_coefficients - 5 : model.num_coefficients] > 0).all())


def test_a_pose_without_coefficients_does_not_count(model: MorphableModel) -> None:
    """It may place another face model; its landmarks do count, and one without a place does not."""
    batch, _ = rendered_faces(model, 2, 64)
    head = CoefficientHead(FeatureShape(64, pooled=4), model)
    batch["has"]["coefficients"][1] = False
    batch["landmark_mask"][1, 10:, 1] = False
    terms = head.terms(head(Features(torch.ones(2, 4))), batch)
    counts = {name: term.count.tolist() for name, term in terms.items()}
    assert counts == {"geometry": [1, 0], "actions": [1, 0], "pose": [1, 0], "reprojection": [68, 10]}


def test_marks_are_likelihoods(model: MorphableModel) -> None:
    batch = faces(model, 2, 64)
    target = batch["landmarks"].double().numpy()[..., :2]
    rng = np.random.default_rng(0)
    points, deviation = target[:, None] + rng.normal(size=(2, 2, 68, 2)), rng.uniform(0.5, 3, size=(2, 2, 68))
    head = UncertaintyHead(FeatureShape(64, pooled=4), sources=2)
    term = head.terms(MarkedLandmarks(torch.tensor(points), torch.tensor(deviation)), batch)["uncertainty"]
    squared = ((points - target[:, None]) ** 2).sum(axis=-1)
    expected = (np.log(deviation**2) + squared / (2 * deviation**2)).mean(axis=(1, 2))
    np.testing.assert_allclose((term.value / term.count).numpy(), expected, rtol=1e-5)
    # The density of a normal distribution in the plane is exp(-log s^2 - d^2 / 2 s^2) / 2 pi.
    density = torch.distributions.Normal(torch.tensor(points), torch.tensor(deviation)[..., None])
    likelihood = density.log_prob(torch.tensor(target[:, None])).sum(dim=-1).mean()
    assert -float(likelihood) - math.log(2 * math.pi) == pytest.approx(float(expected.mean()), rel=1e-6)
    logits = rng.normal(size=(2, 68))
    seen = VisibilityHead(FeatureShape(64, pooled=4))
    marked = MarkedLandmarks(torch.tensor(points), torch.tensor(logits))
    term = seen.terms(marked, batch)["visibility"]
    probability = 1 / (1 + np.exp(-logits))
    visible = batch["visible"].numpy()
    expected = -np.log(np.where(visible, probability, 1 - probability)).mean(axis=1)
    np.testing.assert_allclose((term.value / term.count).numpy(), expected, rtol=1e-6)
    shown = seen.read(marked, batch).visible
    assert shown is not None
    np.testing.assert_allclose(shown.numpy(), probability, rtol=1e-6)


def test_fusion_is_the_mean_by_inverse_variances_and_brings_the_mesh_along(model: MorphableModel) -> None:
    pose = torch.tensor([[0.3, 0.1, 0.4, 0.1, 30.0, 33.0]])
    camera = Camera.from_pose(pose)
    vertices = weak_perspective(model.mean[None], pose)
    mesh = FacePrediction(model.landmarks(vertices), vertices=vertices, camera=camera)
    # The same landmarks, turned by 90 degrees, twice as large and moved.
    turned = torch.stack((-2 * mesh.landmarks[..., 1] + 70, 2 * mesh.landmarks[..., 0] + 5), dim=-1)
    flat = FacePrediction(torch.cat((turned, torch.zeros(1, 68, 1)), dim=-1))
    sure = MarkedLandmarks(
        torch.stack((turned, mesh.landmarks[..., :2]), dim=1),
        torch.stack((torch.full((1, 68), 1e-4), torch.full((1, 68), 10.0)), dim=1),
    )
    fused = fuse({"landmarks": flat, "coefficients": mesh}, sure, None)
    torch.testing.assert_close(fused.landmarks[..., :2], turned, rtol=0, atol=1e-3)
    assert fused.vertices is not None and fused.camera is not None and fused.uncertainty is not None
    torch.testing.assert_close(model.landmarks(fused.vertices)[..., :2], turned, rtol=0, atol=1e-2)
    torch.testing.assert_close(fused.camera.project(model.mean[None]), fused.vertices, rtol=0, atol=1e-2)
    torch.testing.assert_close(fused.landmarks[..., 2], 2 * mesh.landmarks[..., 2], rtol=1e-3, atol=1e-3)
    # Two that are as sure: the middle, and no surer than one.
    sure = MarkedLandmarks(sure.points, torch.full((1, 2, 68), 3.0))
    fused = fuse({"landmarks": flat, "coefficients": mesh}, sure, None)
    torch.testing.assert_close(fused.landmarks[..., :2], (turned + mesh.landmarks[..., :2]) / 2, rtol=0, atol=1e-3)
    assert fused.uncertainty is not None
    torch.testing.assert_close(fused.uncertainty, torch.full((1, 68), 3.0))
    # Without standard deviations, the landmark head's places.
    fused = fuse({"landmarks": flat, "coefficients": mesh}, None, None)
    torch.testing.assert_close(fused.landmarks[..., :2], turned, rtol=0, atol=1e-3)


def test_predictions_are_named_after_their_heads() -> None:
    method = small({**ALL, "geometry_images": {}}).eval()
    named = ("landmarks", "depth", "coefficients", "position_map", "geometry_images", "fusion")
    assert method.prediction_names == named
    batch: Any = {"image": torch.rand(2, 3, 32, 32)}
    with torch.no_grad():
        found = method.predict_named(batch)
        fused = method.predict_faces(batch)
    assert tuple(found) == named
    assert found["landmarks"].visible is not None and found["coefficients"].uncertainty is not None
    assert not torch.equal(found["coefficients"].uncertainty, found["landmarks"].uncertainty)
    assert set(fused.dense) == {"position_map", "pncc", "offsets"}
    for key, value in fused.dense.items():
        torch.testing.assert_close(value, found["fusion"].dense[key])
    assert fused.dense_mask is not None and fused.vertices is not None and fused.coefficients is not None
    assert method.spec.position_map_size == 32 and method.spec.face_model == "embedded"
    plain = small({"landmarks": {}, "visibility": {}})
    assert plain.spec.face_model is None and plain.prediction_names == ("landmarks", "fusion")
    assert plain.requires == {"landmarks", "visible"}


def test_each_head_alone_trains_as_in_company(model: MorphableModel) -> None:
    """Its terms are those of the very head: with the same weights, alone or among others."""
    batch = faces(model)
    method = small()
    together = method.eval().terms(batch)
    for name in ("landmarks", "coefficients", "position_map"):
        alone = small({name: ALL[name]})
        # Another backbone where maps are not asked for, of the same layers.
        alone.backbone.load_state_dict(method.backbone.state_dict())
        alone.heads[name].load_state_dict(method.heads[name].state_dict())
        for key, term in alone.eval().terms(batch).items():
            torch.testing.assert_close(mean_of(term), mean_of(together[key]), rtol=1e-5, atol=1e-6)
            assert term.weight == together[key].weight


def test_weights_count(model: MorphableModel) -> None:
    batch = faces(model)
    heads = {name: ALL[name] for name in ("landmarks", "coefficients")}
    plain, weighted = (small(heads, weights=weights).eval().terms(batch) for weights in ({}, {"coefficients": 3.0}))
    factors = {key: float(weighted[key].weight) / float(plain[key].weight) for key in plain}
    changed = {key for key, factor in factors.items() if factor == pytest.approx(3.0)}
    assert changed == {"geometry", "actions", "pose", "reprojection"}
    assert {factors[key] for key in factors if key not in changed} == {1.0}


def test_uncertainty_balancing_is_kendalls(model: MorphableModel) -> None:
    """The best s is the logarithm of the head's loss, whatever its unit; a head without targets keeps its s."""
    batch = faces(model)
    method = small({"landmarks": {}, "coefficients": {}, "visibility": {}}, balancing="uncertainty").eval()
    batch["has"]["visible"][:] = False
    losses = {}
    for name in ("landmarks", "coefficients"):
        own = {key: term for key, term in method.terms(batch).items() if method._head_of_term.get(key) == name}
        losses[name] = 2 * float(weighted_sum(own, term_means(own)).detach())  # at s = 0 a half of the loss counts
    optimizer = torch.optim.SGD(method.log_variances.parameters(), lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
    for name, loss in losses.items():
        assert float(method.log_variances[name]) == pytest.approx(math.log(loss), abs=1e-3)
    assert float(method.log_variances["visibility"]) == 0
    expected = sum(0.5 + 0.5 * math.log(loss) for loss in losses.values())
    assert float(loss_of(method, batch).detach()) == pytest.approx(expected, abs=1e-3)


def test_gradients_are_logged_at_an_interval_and_change_nothing(model: MorphableModel) -> None:
    logged: list[set[str]] = []

    class Watched(MultiTask):
        def log_dict(self, values: Any, *args: Any, **options: Any) -> None:
            if any(key.startswith("gradient/") for key in values):
                logged.append(set(values))
                cosine = float(values["gradient/cosine_landmarks_visibility"])
                assert -1 <= cosine <= 1
            super().log_dict(values, *args, **options)

    heads: dict[str, dict[str, Any]] = {"landmarks": {}, "visibility": {}}
    weights = []
    for interval in (0, 2):
        torch.manual_seed(0)
        method = Watched(32, "test_resnet", heads=heads, gradient_interval=interval, optimizer=SGD)
        trainer(Path(), [], max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0).fit(method, NoiseFaces())
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert len(logged) == 2  # of 4 steps
    pair = "landmarks_visibility"
    assert logged[0] == {"gradient/norm_landmarks", "gradient/norm_visibility", f"gradient/cosine_{pair}"}
    assert torch.equal(weights[0], weights[1])


def saved(folder: Path, method: MultiTask) -> Path:
    """A checkpoint of a short training."""
    run = trainer(folder, [LastCheckpoint()], max_epochs=1, num_sanity_val_steps=0)
    run.fit(method, NoiseFaces())
    return folder / "checkpoints" / "last.ckpt"


def test_transfer_takes_what_is_there_and_trains_what_is_not_frozen(tmp_path: Path) -> None:
    before = small({"landmarks": {}}, optimizer=SGD)
    path = saved(tmp_path, before)
    method = small(
        {"landmarks": {}, "visibility": {}}, start_from=str(path), freeze=["backbone", "landmarks"], optimizer=SGD
    )
    for part in ("backbone", "heads.landmarks"):
        for key, value in before.get_submodule(part).state_dict().items():
            assert torch.equal(method.get_submodule(part).state_dict()[key], value), key
    frozen, free = copy.deepcopy(method.backbone.state_dict()), method.heads["visibility"].state_dict()["layer.weight"]
    free = free.clone()
    run = trainer(tmp_path, [], max_epochs=1, num_sanity_val_steps=0)
    run.fit(method, NoiseFaces())
    for key, value in method.backbone.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    assert not torch.equal(method.heads["visibility"].state_dict()["layer.weight"], free)
    with pytest.raises(ConfigurationError, match=r"start_from.*last.ckpt does not fit"):
        small({"landmarks": {"hidden": 8}}, start_from=str(path))
    with pytest.raises(ConfigurationError, match=r"start_from is .*nothing.ckpt, which cannot be used"):
        small(start_from=str(tmp_path / "nothing.ckpt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"ears": {}}}, "heads names 'ears': use landmarks, depth"),
        ({"heads": {}}, "heads is empty: name at least one"),
        ({"heads": {"landmarks": {"size": 3}}}, "heads.landmarks has no option 'size': use hidden, squared"),
        ({"heads": {"landmarks": 3}}, "heads.landmarks is 3: give the head's options by name"),
        ({"heads": {"depth": {}}}, "'depth' works on the landmarks of another head: add landmarks to heads"),
        ({"heads": {"uncertainty": {}}}, "add landmarks or coefficients or position_map to heads"),
        ({"heads": {"position_map": {"map_size": 33}}}, "map_size is 33; at image_size 32 it can be"),
        ({"heads": {"coefficients": {"weights": [1, 2]}}}, "CoefficientHead option weights is .* give four numbers"),
        ({"encoder": "no_such"}, "MultiTask option encoder is 'no_such'"),
        ({"heads": {"position_map": {}}, "encoder": "inception_v3", "image_size": 32}, "'inception_v3' cannot be used"),
        ({"weights": {"ears": 1.0}}, "weights names 'ears'"),
        ({"weights": {"landmarks": -1.0}}, "weights.landmarks is -1.0: give a number of at least 0"),
        ({"freeze": ["ears"]}, "freeze names 'ears': use backbone or one of the heads"),
        ({"freeze": ["backbone", *ALL]}, "freeze leaves nothing to train"),
        ({"gradient_interval": -1}, "gradient_interval is -1"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(**options)


def test_a_head_without_a_target_is_refused_before_the_first_step(tmp_path: Path) -> None:
    method = small({"landmarks": {}, "position_map": {"width": 1}}, optimizer=SGD)
    with pytest.raises(ConfigurationError, match="trains on position_map, which NoiseFaces does not give"):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1).fit(method, NoiseFaces())


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_and_copies_compile_their_own(model: MorphableModel) -> None:
    batch = faces(model)
    plain, method = small().eval(), small(compiled=True).eval()
    with torch.no_grad():
        expected = plain.predict_faces(batch).landmarks
        torch.testing.assert_close(method.predict_faces(batch).landmarks, expected, rtol=1e-4, atol=1e-3)
        other = copy.deepcopy(method)
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(other.predict_faces(batch).landmarks, expected, atol=1e-2)


@pytest.mark.slow
def test_overfits_four_faces(model: MorphableModel) -> None:
    """All heads learn four faces by heart."""
    batch, _ = rendered_faces(model, 4, 64)
    batch["visible"] = torch.rand(4, 68) > 0.3
    batch["has"]["visible"] = torch.ones(4, dtype=torch.bool)
    heads: dict[str, dict[str, Any]] = {"landmarks": {"squared": False}, "coefficients": {}, "visibility": {}}
    method = small({**heads, "uncertainty": {}}, image_size=64, encoder="resnet10t")
    steps = 400
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = method.eval().predict_named(batch)
    for name in method.prediction_names:
        error = (found[name].landmarks - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]
        assert float(error.mean()) < 0.02, name
    read = found["fusion"]
    assert read.visible is not None and read.coefficients is not None
    assert float(((read.visible > 0.5) != batch["visible"]).double().mean()) < 0.01
    actions = (read.coefficients - batch["coefficients"])[:, model.num_identity :].abs().mean()
    assert float(actions) < 0.03
