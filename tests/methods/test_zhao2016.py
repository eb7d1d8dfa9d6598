"""Zhao 2016: losses against their equations, the depth network's range, an overfit, and what each stage trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.cli import main as cli_main
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.records import read_record
from lightning_faces.heads.depth import DepthHead, depth_loss, standardize
from lightning_faces.heads.landmarks import error_difference_loss, local_loss, pairwise_loss
from lightning_faces.methods import Zhao2016
from lightning_faces.methods.base import term_means, weighted_sum
from tests.methods.losses import loss_of, mean_of

SHAPES: dict[str, tuple[int, ...]] = {
    "landmarks": (68, 3),
    "landmark_mask": (68, 3),
    "face_size": (),
    "yaw": (),
}


def face_batch(count: int, image_size: int = 32, seed: int = 0) -> FaceBatch:
    """Noise images with noise landmarks: enough to overfit."""
    rng = np.random.default_rng(seed)
    samples: list[dict[str, Any]] = []
    for index in range(count):
        landmarks = rng.uniform(0.2 * image_size, 0.8 * image_size, size=(68, 3))
        landmarks[:, 2] -= landmarks[:, 2].mean()
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        samples.append(
            {
                "image": rng.random((3, image_size, image_size)),
                "index": index,
                "sample_id": str(index),
                "box": np.concatenate((low, high)),
                "crop_to_file": np.array([[1.0, 0, 0], [0, 1, 0]]),
                "landmarks": landmarks,
                "landmark_mask": np.ones((68, 3), dtype=bool),
                "face_size": np.sqrt(np.prod(high - low)),
                "yaw": np.zeros(()),
            }
        )
    return collate_faces(samples, SHAPES)


def points(seed: int, dim: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 7, dim)))


ALL = torch.ones(3, 7, dtype=torch.bool)


def loop_over_pairs(f: Tensor, o: Tensor, term: Any) -> float:
    """Equations 3 and 4 as printed, one pair at a time."""
    total = 0.0
    for face, true in zip(f.numpy(), o.numpy()):
        count = len(face)
        total += (
            2
            / (count * (count + 1))
            * sum(term(face[j], face[k], true[j], true[k]) for j in range(count) for k in range(j + 1, count))
        )
    return total / len(f)


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
def test_pairwise_loss_is_equation_4(norm: float) -> None:
    expected = loop_over_pairs(
        points(0),
        points(1),
        lambda fj, fk, oj, ok: (np.linalg.norm(fj - fk, norm) - np.linalg.norm(oj - ok, norm)) ** 2,
    )
    assert float(mean_of(pairwise_loss(points(0), points(1), ALL, norm))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_error_difference_loss_is_equation_3(exponent: float) -> None:
    expected = loop_over_pairs(
        points(0),
        points(1),
        lambda fj, fk, oj, ok: np.linalg.norm((fj - oj) - (fk - ok)) ** exponent,
    )
    assert float(mean_of(error_difference_loss(points(0), points(1), ALL, exponent))) == pytest.approx(
        expected, rel=1e-9
    )


def test_a_common_shift_costs_the_local_term_only() -> None:
    target = points(1)
    shifted = target + torch.tensor([0.3, -0.4])
    assert float(mean_of(local_loss(shifted, target, ALL))) == pytest.approx(0.25)
    assert float(mean_of(pairwise_loss(shifted, target, ALL))) == pytest.approx(0, abs=1e-20)
    assert float(mean_of(error_difference_loss(shifted, target, ALL))) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("loss", [local_loss, pairwise_loss, error_difference_loss])
def test_unmarked_landmarks_change_nothing(loss: Any) -> None:
    mask = ALL.clone()
    mask[:, 5:] = False
    spoiled = points(0)
    spoiled[:, 5:] = 1e3
    small = torch.ones(3, 5, dtype=torch.bool)
    expected = mean_of(loss(points(0)[:, :5], points(1)[:, :5], small))
    torch.testing.assert_close(mean_of(loss(spoiled, points(1), mask)), expected)
    assert float(mean_of(loss(points(0), points(1), torch.zeros_like(ALL)))) == 0.0


@pytest.mark.parametrize("loss", [pairwise_loss, lambda f, o, m: error_difference_loss(f, o, m, 1.0)])
def test_gradients_are_finite_where_points_coincide(loss: Any) -> None:
    f = torch.zeros(3, 7, 2, dtype=torch.float64, requires_grad=True)
    mean_of(loss(f, torch.zeros(3, 7, 2, dtype=torch.float64), ALL)).backward()
    assert f.grad is not None
    assert bool(f.grad.isfinite().all())


def test_standardization_is_equation_9() -> None:
    value = points(2, 3)
    standard, mean, scale = standardize(value)
    array = value.numpy()
    spread = (array[..., 0].std(axis=1) + array[..., 1].std(axis=1)) / 2
    expected = (array - array.mean(axis=1, keepdims=True)) / spread[:, None, None]
    np.testing.assert_allclose(standard.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(standard * scale + mean, value)


def test_depth_loss_is_the_unsquared_distance() -> None:
    depth, target = torch.zeros(2, 4), torch.tensor([[3.0, 4.0, 0.0, 0.0], [1e6, 0.0, 0.0, 0.0]])
    assert float(mean_of(depth_loss(depth, target, torch.tensor([True, False])))) == pytest.approx(5.0)


def test_printed_depth_network_cannot_leave_the_range_of_tanh() -> None:
    torch.manual_seed(0)
    value = torch.randn(64, 68, 2) * 30
    for output, reaches in (("tanh", False), ("linear", True)):
        network = DepthHead(68, output=output)  # type: ignore[arg-type]
        with torch.no_grad():
            network.layers[10].weight.mul_(20)  # type: ignore[operator, union-attr]
        assert bool((network.standard_depth(value).abs() > 1).any()) is reaches
        assert [m.out_features for m in network.layers if isinstance(m, torch.nn.Linear)] == [136] * 5 + [68]


def test_two_dimensional_samples_train_the_landmark_network_only() -> None:
    torch.manual_seed(0)
    batch = face_batch(4)
    batch["landmark_mask"][..., 2] = False
    batch["landmarks"][..., 2] = 0
    method = Zhao2016(image_size=32, channels=(4, 4, 4, 4), hidden=16)
    terms = method.terms(batch)
    means = term_means(terms)
    weighted_sum(terms, means).backward()
    assert float(means["depth"].detach()) == 0.0
    assert all(not bool(p.grad.any()) for p in method.depth_head.parameters() if p.grad is not None)
    assert all(bool(p.grad.any()) for p in method.landmark_head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("stage", "landmarks_move", "depth_moves"),
    [("joint", True, True), ("landmarks", True, False), ("depth", False, True), ("end_to_end", True, True)],
)
def test_stages_train_their_part(stage: Any, landmarks_move: bool, depth_moves: bool) -> None:
    torch.manual_seed(0)
    method = Zhao2016(image_size=32, channels=(4, 4, 4, 4), hidden=16, stage=stage)
    loss_of(method, face_batch(4)).backward()
    trained = [
        any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        for part in (method.landmark_head, method.depth_head)
    ]
    assert trained == [landmarks_move, depth_moves]


def test_new_views_turn_the_landmarks_rigidly() -> None:
    torch.manual_seed(0)
    method = Zhao2016(image_size=32, channels=(4, 4, 4, 4), hidden=16, view_angles=(0.0, 90.0, 0.0))
    face = torch.randn(5, 68, 3, dtype=torch.float64)
    views = method.depth_head.new_views(face)
    torch.testing.assert_close(torch.cdist(views, views), torch.cdist(face, face), atol=1e-6, rtol=0)
    torch.testing.assert_close(views[..., 1], (face - face.mean(dim=1, keepdim=True))[..., 1])  # yaw keeps heights
    assert float((views[..., 0] - face[..., 0]).abs().max()) > 0.5


def test_overfits_sixteen_faces() -> None:
    torch.manual_seed(0)
    batch = face_batch(16)
    method = Zhao2016(image_size=32, channels=(8, 16, 16, 16), hidden=128, dropout=0.0, view_angles=(0.0, 0.0, 0.0))
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    steps = 600
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
        schedule.step()
    method.eval()
    with torch.no_grad():
        prediction = method.predict_faces(batch).landmarks
    nme = ((prediction - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]).mean()
    depth = (prediction - batch["landmarks"])[..., 2].abs().mean() / 32
    assert float(nme) < 0.005
    assert float(depth) < 0.02


def test_prediction_is_in_image_pixels_with_zero_mean_depth() -> None:
    torch.manual_seed(0)
    method = Zhao2016(image_size=40, channels=(4, 4, 4, 4), hidden=16, landmark_scheme="66").eval()
    batch = face_batch(1, image_size=40)
    points_3d = method.predict_faces(batch).landmarks
    assert points_3d.shape == (1, 66, 3)
    unit = method.landmark_head(method.backbone.extract(batch["image"]))
    torch.testing.assert_close(points_3d[..., :2], unit * 20 + 19.5)


def test_an_exponent_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"error_exponent is 0.5"):
        Zhao2016(error_exponent=0.5)
    assert Zhao2016(image_size=32, error_exponent=1.0).landmark_head.error_exponent == 1.0


def test_a_timm_model_stands_in_for_the_2d_network() -> None:
    torch.manual_seed(0)
    arguments = {"channels": [8, 16, 32, 64], "stem_width": 8}
    method = Zhao2016(image_size=32, encoder="resnet10t", encoder_args=arguments, squared=False, pairwise="none")
    batch = face_batch(4)
    assert method(batch["image"]).shape == (4, 68, 3)
    method.train()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        terms = method.terms(batch)
        means = term_means(terms)
        weighted_sum(terms, means).backward()
        optimizer.step()
        losses.append(float(means["local"].detach()))
    assert losses[-1] < 0.2 * losses[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch["image"]).dtype == torch.float32


def test_the_local_loss_is_a_mean_distance_without_squares() -> None:
    target = torch.zeros(1, 2, 2)
    predicted = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(mean_of(local_loss(predicted, target, mask))) == 13.0
    assert float(mean_of(local_loss(predicted, target, mask, squared=False))) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet_of_mine"}, "encoder is 'resnet_of_mine': use 'paper' or a timm model's name"),
        ({"encoder": "resnet10t", "encoder_args": {"chanels": [1]}}, "does not take {'chanels'"),
        ({"encoder_args": {"channels": [8]}}, "the encoder is the paper's: name a timm model"),
    ],
)
def test_a_wrong_encoder_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Zhao2016(image_size=32, **options)


def test_the_depth_stage_adds_depth_to_true_points_in_crops_of_any_size() -> None:
    torch.manual_seed(0)
    method = Zhao2016(image_size=64, channels=(4, 4, 4, 4), hidden=16, stage="depth").eval()
    assert method.spec.image_size is None
    assert method.monitor == "val/gte"
    assert Zhao2016(image_size=32).monitor == "val/nme"
    batch = face_batch(3, image_size=8)
    predicted = method.predict_faces(batch).landmarks
    torch.testing.assert_close(predicted[..., :2], batch["landmarks"][..., :2])
    standard, _, scale = standardize(batch["landmarks"][..., :2])
    torch.testing.assert_close(predicted[..., 2], method.depth_head.standard_depth(standard) * scale[..., 0])
    del batch["landmarks"]
    with pytest.raises(ConfigurationError, match="adds depth to true 2D landmarks, and these data have none"):
        method.predict_faces(batch)


def test_a_sample_without_landmarks_leaves_the_loss_finite() -> None:
    torch.manual_seed(0)
    batch = face_batch(3)
    for key in ("landmarks", "landmark_mask"):
        batch[key][2] = 0  # type: ignore[literal-required]
    batch["has"]["landmarks"][2] = False
    method = Zhao2016(image_size=32, channels=(4, 4, 4, 4), hidden=16, dropout=0.0)
    terms = method.terms(batch)
    means = term_means(terms)
    weighted_sum(terms, means).backward()
    assert float(means["depth"].detach()) > 0
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


SMALL = ["--model", "Zhao2016", "--model.image_size=32", "--model.hidden=8", "--model.channels=[2,2,2,2]"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_epochs=1"]


def test_stages_hand_their_weights_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = [*SMALL, *QUIET, "--data", "NoiseFaces", "--experiment=stages"]
    states = {}
    for name, stage, size in (("one", "landmarks", 32), ("two", "depth", 8), ("three", "end_to_end", 32)):
        start = [f"--model.start_from=runs/stages/{list(states)[-1]}/checkpoints/last.ckpt"] if states else []
        options = [f"--name={name}", f"--model.stage={stage}", f"--data.image_size={size}", *start]
        cli_main(["fit", *common, *options])
        saved = torch.load(f"runs/stages/{name}/checkpoints/last.ckpt", weights_only=True)
        assert "start_from" not in saved["hyper_parameters"]
        states[name] = saved["state_dict"]
    for key, value in states["one"].items():
        kept = torch.equal(states["two"][key], value)
        assert kept is key.startswith(("backbone", "landmark_head")), key
    moved = [key for key, value in states["two"].items() if not torch.equal(states["three"][key], value)]
    assert {key.split(".")[0] for key in moved} == {"backbone", "landmark_head", "depth_head"}
    cli_main(
        ["test", "--data", "NoiseFaces", "--data.image_size=8", "--ckpt_path=runs/stages/two/checkpoints/best.ckpt"]
    )
    record = read_record(next(Path("runs/stages/two/records").glob("*.json")))
    assert record.protocol["input"] == "true 2D landmarks"
    assert record.metrics["nme"].value == pytest.approx(0, abs=1e-7)
    assert record.metrics["gte"].value > 0.01
    best = torch.load("runs/stages/two/checkpoints/best.ckpt", weights_only=True)
    followed = [s["monitor"] for key, s in best["callbacks"].items() if key.startswith("BestCheckpoint")]
    assert followed == ["val/gte"]


@pytest.mark.parametrize("content", [None, b"no checkpoint", "other"])
def test_a_wrong_start_is_refused_in_one_sentence(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save({"state_dict": Zhao2016(image_size=32, hidden=8).state_dict()}, path)
    with pytest.raises(
        ConfigurationError, match=r"start_from is .*a\.ckpt, which is no checkpoint of these networks: "
    ):
        Zhao2016(image_size=32, hidden=16, start_from=str(path))
