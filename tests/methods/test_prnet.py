"""PRNet: layers against NumPy, the parameter count, equation 1, faces read from maps, and an overfit."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor

from callbacks.evaluation_record import EvaluationRecord
from datamodules.synthetic import SyntheticFaces
from lightning_faces.batch import FaceBatch, FacePrediction, collate_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.records import read_record
from lightning_faces.geometry.camera import face_size, weak_perspective
from lightning_faces.heads import position_map
from lightning_faces.heads.position_map import SameConvTranspose2d, depth_from_minimum, position_map_loss
from lightning_faces.methods import PRNet, prnet
from lightning_faces.methods.prnet.network import ResidualBlock, SameConv2d
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import UVGrid
from tests.methods.losses import loss_of


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


@pytest.fixture(scope="module")
def grid(model: MorphableModel) -> UVGrid:
    return UVGrid(model, 64)


def posed_faces(model: MorphableModel, count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vertices ``[B, V, 3]`` of random faces at all yaws, image frame, and their poses."""
    random = torch.Generator().manual_seed(seed)
    identity = torch.randn(count, model.num_identity, generator=random)
    expression = 0.3 * torch.rand(count, model.num_expression, generator=random)
    angles = (2 * torch.rand(count, 3, generator=random) - 1) * torch.tensor((0.4, 1.3, 0.4))
    scale, centre = torch.full((count, 1), 0.36 * side / 96), torch.full((count, 2), side / 2)
    pose = torch.cat((scale, angles, centre), dim=1)
    return weak_perspective(model.vertices(identity, expression), pose), pose


def face_batch(model: MorphableModel, grid: UVGrid, count: int, side: int) -> tuple[FaceBatch, Tensor]:
    """Faces whose image is a smooth pattern of its own each: enough to overfit."""
    vertices, pose = posed_faces(model, count, side)
    landmarks, maps = model.landmarks(vertices), grid.position_map(vertices)
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")
    shapes: dict[str, tuple[int, ...]] = {
        "landmarks": (68, 3),
        "landmark_mask": (68, 3),
        "face_size": (),
        "yaw": (),
        "position_map": tuple(maps.shape[1:]),
        "vertices": tuple(vertices.shape[1:]),
    }
    samples: list[dict[str, Any]] = [
        {
            "image": images[i],
            "index": i,
            "sample_id": str(i),
            "box": torch.zeros(4),
            "crop_to_file": torch.eye(2, 3),
            "landmarks": landmarks[i],
            "landmark_mask": torch.ones(68, 3, dtype=torch.bool),
            "face_size": face_size(landmarks[i]),
            "yaw": torch.rad2deg(pose[i, 2]),
            "position_map": maps[i],
            "vertices": vertices[i],
        }
        for i in range(count)
    ]
    return collate_faces(samples, shapes), vertices


# The network ---------------------------------------------------------------------------------------------------------


def tensorflow_convolution(x: NDArray[np.float64], w: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """SAME convolution by its definition: pad so that the output has ceil(n / stride) rows, the odd one at the end."""
    size, kernel = x.shape[-1], w.shape[-1]
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    before = total // 2
    y = np.zeros((w.shape[0], out, out))
    for i in range(out):
        for j in range(out):
            for a in range(kernel):
                for b in range(kernel):
                    r, c = i * stride - before + a, j * stride - before + b
                    if 0 <= r < size and 0 <= c < size:
                        y[:, i, j] += w[:, :, a, b] @ x[:, r, c]
    return y


def tensorflow_transposed(x: NDArray[np.float64], w: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """The adjoint of the SAME convolution from size n * stride to n: every input is spread over what made it."""
    size, kernel = x.shape[-1], w.shape[-1]
    out = size * stride
    before = max((size - 1) * stride + kernel - out, 0) // 2
    y = np.zeros((w.shape[1], out, out))
    for i in range(size):
        for j in range(size):
            for a in range(kernel):
                for b in range(kernel):
                    r, c = i * stride - before + a, j * stride - before + b
                    if 0 <= r < out and 0 <= c < out:
                        y[:, r, c] += x[:, i, j] @ w[:, :, a, b]
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("layer", "reference"), [(SameConv2d, tensorflow_convolution), (SameConvTranspose2d, tensorflow_transposed)]
)
def test_padding_is_tensorflows(layer: Any, reference: Any, stride: int) -> None:
    module = layer(2, 3, stride).double()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6, 6)))
    expected = reference(x.numpy(), module.weight.detach().numpy(), stride)
    np.testing.assert_allclose(module(x[None])[0].detach().numpy(), expected, atol=1e-12)


def test_paper_network_has_13_35_million_parameters() -> None:
    """Counted from the published layer list: weights without biases, and two numbers per normalised channel."""
    expected, channels = 4 * 4 * 3 * 16 + 2 * 16, 16
    for out in (32, 64, 128, 256, 512):
        for inside in (channels, out):
            half = out // 2
            expected += inside * half + 2 * half + 16 * half * half + 2 * half + half * out + 2 * out
            expected += inside * out if inside != out else 0
        # Only the first block of a level changes the channels, so only it has shortcut weights.
        channels = out
    for out in (512, 256, 256, 256, 128, 128, 128, 64, 64, 64, 32, 32, 16, 16, 3, 3, 3):
        expected += 16 * channels * out + 2 * out
        channels = out
    method = PRNet(output="sigmoid").eval()
    assert method.num_parameters() == expected == 13_353_618
    kinds = [type(module) for module in method.modules()]
    assert kinds.count(SameConvTranspose2d) == 17
    assert kinds.count(ResidualBlock) == 10
    with torch.no_grad():
        features = method.backbone.extract(torch.rand(1, 3, 256, 256))
        assert features.maps[-1].shape == (1, 512, 8, 8)
        assert method.head(features).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("options", [{"map_size": 64}, {"map_size": 32}, {"encoder": "resnet18"}])
def test_resolution_width_and_encoder_are_options(options: dict[str, Any]) -> None:
    method = PRNet(image_size=64, width=2, **{"map_size": 64, **options}).eval()
    side = options.get("map_size", 64)
    assert method(torch.rand(2, 3, 64, 64)).shape == (2, 3, side, side)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 50}, "image_size is 50; encoder 'resfcn' needs a multiple of 32"),
        ({"image_size": 64, "map_size": 100}, "map_size is 100; at image_size 64 it can be 4, 8, 16, 32, 64"),
        ({"width": 0}, "width is 0"),
        ({"encoder": "resnet_of_mine"}, "encoder is 'resnet_of_mine': use 'resfcn' or a timm model's name"),
        ({"weight_ratios": (16.0, 4.0, -3.0, 0.0)}, "weight_ratios"),
        ({"weight_ratios": (0.0, 0.0, 0.0, 0.0)}, "weight_ratios"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PRNet(**{"image_size": 64, "width": 2, **options})


def test_only_the_linear_output_leaves_the_published_range() -> None:
    torch.manual_seed(0)
    for output, low, high in (("sigmoid", 0.0, 1.1 + 1e-6), ("linear", -np.inf, np.inf)):
        method = PRNet(image_size=32, width=2, output=output)  # type: ignore[arg-type]
        norm = next(m for m in reversed(list(method.head.decoder)) if isinstance(m, torch.nn.BatchNorm2d))
        with torch.no_grad():
            norm.weight.fill_(30.0)
            values = method(torch.rand(8, 3, 32, 32)) / 32
        assert float(values.min()) >= low
        assert float(values.max()) <= high
        assert bool(((values < -0.1) | (values > 1.2)).any()) is (output == "linear")


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
def test_loss_is_equation_1(squared: bool) -> None:
    rng = np.random.default_rng(0)
    maps, target, weights = rng.normal(size=(2, 3, 5, 5)), rng.normal(size=(2, 3, 5, 5)), rng.random((5, 5))
    expected = []
    for face, true in zip(maps, target):
        total = 0.0
        for i in range(5):
            for j in range(5):
                distance = np.sqrt(sum((face[c, i, j] - true[c, i, j]) ** 2 for c in range(3)))
                total += weights[i, j] * (distance**2 if squared else distance)
        expected.append(total / weights.sum())
    loss = position_map_loss(torch.from_numpy(maps), torch.from_numpy(target), torch.from_numpy(weights), squared)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_gradient_is_finite_at_a_perfect_map_and_absent_without_weight() -> None:
    target = torch.rand(1, 3, 4, 4)
    maps = target.clone().requires_grad_()
    weights = torch.ones(4, 4)
    weights[0] = 0
    position_map_loss(maps, target, weights).sum().backward()
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())
    moved = (target + 1).requires_grad_()
    position_map_loss(moved, target, weights).sum().backward()
    assert moved.grad is not None
    assert not bool(moved.grad[:, :, 0].any())
    assert bool(moved.grad[:, :, 1:].all())


def test_the_rearmost_point_of_the_face_has_depth_zero() -> None:
    maps, mask = torch.randn(3, 3, 6, 6), torch.rand(6, 6) > 0.3
    moved = depth_from_minimum(maps, mask)
    torch.testing.assert_close(moved[:, :2], maps[:, :2])
    for before, after in zip(maps, moved):
        assert float(after[2][mask].min()) == 0.0
        torch.testing.assert_close(after[2] - after[2, 0, 0], before[2] - before[2, 0, 0])


def test_targets_outside_the_image_are_not_clipped(model: MorphableModel, grid: UVGrid) -> None:
    """Shifting image-frame targets must move the loss of a fixed prediction by the whole shift, however far."""
    method = PRNet(image_size=64, width=2).eval()
    batch, _ = face_batch(model, grid, 2, 64)
    batch["position_map"][:, 0] += 1e5
    loss = float(loss_of(method, batch).detach())
    assert loss == pytest.approx(1e5 / 64, rel=1e-2)
    batch["position_map"][:, 0] -= 2e5
    assert float(loss_of(method, batch).detach()) == pytest.approx(1e5 / 64, rel=1e-2)


def test_depth_origin_of_the_target_does_not_matter(model: MorphableModel, grid: UVGrid) -> None:
    method = PRNet(image_size=64, width=2).eval()
    batch, _ = face_batch(model, grid, 2, 64)
    loss = loss_of(method, batch)
    batch["position_map"][:, 2] += 1000
    torch.testing.assert_close(loss_of(method, batch), loss, rtol=1e-4, atol=0)


def test_samples_without_a_map_add_nothing(model: MorphableModel, grid: UVGrid) -> None:
    method = PRNet(image_size=64, width=2).eval()
    batch, _ = face_batch(model, grid, 3, 64)
    first, _ = face_batch(model, grid, 3, 64)
    batch["has"]["position_map"] = torch.tensor([True, False, False])
    batch["position_map"][1:] = 0
    target = depth_from_minimum(first["position_map"][:1], grid.mask) / 64
    expected = position_map_loss(method(first["image"])[:1] / 64, target, method.head.weights)[0]
    torch.testing.assert_close(loss_of(method, batch), expected)
    batch["has"]["position_map"][:] = False
    assert float(loss_of(method, batch).detach()) == 0.0


# Faces from maps -----------------------------------------------------------------------------------------------------


def test_pose_of_the_canonical_face_is_exact(model: MorphableModel) -> None:
    head = PRNet(image_size=64, width=2).head
    _, pose = posed_faces(model, 6, 64)
    vertices = weak_perspective(model.mean.expand(6, -1, -1), pose) + torch.tensor((0.0, 0.0, 11.0))
    torch.testing.assert_close(head.fit_pose(vertices[:, head.learnt_vertices]), pose, atol=1e-3, rtol=1e-4)


def test_a_true_map_gives_the_true_face(model: MorphableModel, grid: UVGrid) -> None:
    head = PRNet(image_size=64, width=2).head
    vertices, pose = posed_faces(model, 8, 64)
    maps = grid.position_map(vertices)
    faces = head.read_maps(maps)
    landmarks = model.landmarks(vertices)
    assert faces.vertices is not None and faces.vertex_ids is not None and faces.pose is not None
    error = (faces.landmarks - landmarks).norm(dim=-1).mean(dim=1) / face_size(landmarks)
    assert float(error.max()) < 0.005
    assert float((faces.vertices - vertices[:, faces.vertex_ids]).norm(dim=-1).mean()) < 0.004 * 64
    assert float((faces.pose - pose)[:, 1:4].abs().max()) < 0.2  # an expression or identity turns the best fit a little
    assert torch.equal(faces.dense["position_map"], maps)
    # The triangles are those of the face model whose corners are all predicted.
    triangles = head.triangles()
    kept = torch.isin(model.faces, faces.vertex_ids).all(dim=1)
    assert torch.equal(faces.vertex_ids[triangles], model.faces[kept])


def test_a_neck_with_weight_is_read_from_the_map(model: MorphableModel) -> None:
    without, neck = PRNet(image_size=64, width=2), PRNet(image_size=64, width=2, weight_ratios=(1.0, 1.0, 1.0, 1.0))
    added = set(neck.head.learnt_vertices.tolist()) - set(without.head.learnt_vertices.tolist())
    assert added
    assert all(bool(model.region_masks["neck"][vertex]) for vertex in added)


def test_texture_is_the_image_at_the_points(model: MorphableModel, grid: UVGrid) -> None:
    """An image whose red and green are x and y must come out as the position map itself."""
    method = PRNet(image_size=64, width=2)
    vertices, _ = posed_faces(model, 2, 64)
    maps = grid.position_map(vertices)
    pixels = torch.arange(64.0)
    image = torch.stack((pixels.expand(64, 64), pixels[:, None].expand(64, 64), torch.ones(64, 64)))
    texture = method.texture(image.expand(2, -1, -1, -1), maps)
    inside = grid.mask & (maps[:, :2] > 0).all(dim=1) & (maps[:, :2] < 63).all(dim=1)
    assert float(inside.float().mean()) > 0.5
    for face in range(2):
        torch.testing.assert_close(texture[face, :2, inside[face]], maps[face, :2, inside[face]], atol=1e-3, rtol=0)
    assert not bool(texture[:, :, ~grid.mask].any())


def test_depth_image_shows_the_nearest_surface(model: MorphableModel) -> None:
    pytest.importorskip("pytorch3d")
    method = PRNet(image_size=64, width=2)
    pose = torch.tensor([[0.25, 0.0, 0.0, 0.0, 31.5, 31.5]])
    vertices = weak_perspective(model.mean[None], pose)[:, method.head.face_vertices]
    depth = method.depth_image(vertices)
    assert depth.shape == (1, 1, 64, 64)
    learnt = vertices[0]
    extent = float(learnt[:, 2].max() - learnt[:, 2].min())
    assert extent - 1.0 < float(depth.max()) <= extent + 1e-4
    row, column = divmod(int(depth[0, 0].argmax()), 64)
    tip = learnt[learnt[:, 2].argmax()]
    assert abs(column - float(tip[0])) < 2 and abs(row - float(tip[1])) < 2
    assert float(depth[0, 0, 0, 0]) == 0.0


def test_a_prediction_is_in_image_pixels(model: MorphableModel, grid: UVGrid) -> None:
    torch.manual_seed(0)
    method = PRNet(image_size=64, width=2).eval()
    batch, _ = face_batch(model, grid, 2, 64)
    with torch.no_grad():
        faces = method.predict_faces(batch)
        maps = method(batch["image"])
    torch.testing.assert_close(maps, method.head(method.backbone.extract(batch["image"])) * 64)
    torch.testing.assert_close(faces.landmarks, grid.landmarks(maps))
    assert faces.vertices is not None and faces.vertices.shape == (2, len(method.head.face_vertices), 3)
    assert faces.pose is not None and faces.pose.shape == (2, 6)
    assert method.spec.position_map_size == 64
    assert method.spec.face_model_hash == model.hash


def test_dense_errors_are_scored(tmp_path: Path, model: MorphableModel, grid: UVGrid) -> None:
    """A prediction that is off by (3, 4) pixels has a dense error of 5 pixels in 2D and 3D."""
    pytest.importorskip("pytorch3d")
    data = SyntheticFaces(train_size=1, val_size=1, test_size=3, image_size=64, position_map_size=64, num_workers=0)
    method = PRNet(image_size=64, width=2, weight_ratios=(1.0, 1.0, 1.0, 1.0))
    shift = torch.tensor((3.0, 4.0, 90.0))[:, None, None]
    size: list[float] = []

    def shifted(batch: FaceBatch) -> FacePrediction:
        size[:] = (1 / face_size(batch["landmarks"])).tolist()
        return method.head.read_maps(grid.position_map(batch["vertices"]) + shift)

    method.predict_faces = shifted  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EvaluationRecord()], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(method, data, verbose=False)
    (path,) = (tmp_path / "records").glob("*.json")
    metrics = read_record(path).metrics
    # The record draws three of the faces last, in the order of their errors.
    expected = 5 * np.mean(size)
    assert metrics["dense_nme"].value == pytest.approx(expected, rel=0.01)
    assert metrics["dense_nme_3d"].value == pytest.approx(expected, rel=0.01)
    assert metrics["dense_nme"].samples == 3
    assert metrics["nme"].value == pytest.approx(expected, rel=0.02)


def test_scored_are_the_vertices_of_the_face_whatever_the_weights(model: MorphableModel) -> None:
    for ratios in ((16.0, 4.0, 3.0, 0.0), (1.0, 1.0, 1.0, 1.0)):
        method = PRNet(image_size=64, width=2, weight_ratios=ratios)
        assert method.head.face_vertices.tolist() == model.region_masks["face"].nonzero()[:, 0].tolist()


def test_a_test_on_synthetic_faces_records_dense_errors_and_icp(tmp_path: Path) -> None:
    pytest.importorskip("pytorch3d")
    data = SyntheticFaces(train_size=1, val_size=1, test_size=3, image_size=32, position_map_size=32, num_workers=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EvaluationRecord(icp=True)], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(PRNet(image_size=32, width=2), data, verbose=False)
    (path,) = (tmp_path / "records").glob("*.json")
    metrics = read_record(path).metrics
    for name in ("dense_nme", "dense_nme_3d"):
        assert metrics[name].samples == 3
    assert {"icp", "icp_0_30", "vertex_mm", "nme_3d_mean"} <= set(metrics)


# Training ------------------------------------------------------------------------------------------------------------


def test_adam_starts_at_1e_4_and_halves_every_5_epochs() -> None:
    configured: Any = PRNet(image_size=32, width=2).configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.Adam
    assert configured["lr_scheduler"]["interval"] == "epoch"
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-4] * 5 + [5e-5] * 5 + [2.5e-5])


@pytest.mark.slow
def test_overfits_eight_faces(model: MorphableModel) -> None:
    """Under 1 % dense NME. About 5 minutes on one core."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    method = PRNet(image_size=64, width=8, weight_ratios=(1.0, 1.0, 1.0, 0.0))
    batch, vertices = face_batch(model, method.head.uv, 8, 64)
    steps = 3000
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        # The last layers of the encoder see 32 values a channel, whose variance differs from the running one by 3 %:
        # the end of the training is on the running statistics, as the evaluation is.
        method.train(step < 0.9 * steps)
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted = method.eval().predict_faces(batch).vertices
    assert predicted is not None
    error = (predicted - vertices[:, method.head.face_vertices])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]
    assert float(error.mean()) < 0.01


@pytest.mark.slow
def test_paper_exact_network_learns_in_50_full_size_steps(model: MorphableModel) -> None:
    """256 pixels, batches of 16, sigmoid output, Adam at 1e-4, ratios 16:4:3:0: the published configuration."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    method = PRNet(output="sigmoid")
    batch, _ = face_batch(model, method.head.uv, 32, 256)
    optimizer = method.make_optimizer(method.parameters())
    losses = []
    for step in range(50):
        part = slice(16 * (step % 2), 16 * (step % 2) + 16)
        half: Any = {key: batch[key][part] for key in ("image", "position_map")}  # type: ignore[literal-required]
        half["has"] = {"position_map": batch["has"]["position_map"][part]}
        optimizer.zero_grad()
        loss = loss_of(method, half)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_importing_the_method_does_not_import_the_renderer() -> None:
    """PyTorch3D is an extra; only drawing a depth image needs it (lower layers may not import the renderer at all)."""
    for path in (*Path(prnet.__file__).parent.glob("*.py"), Path(position_map.__file__)):
        for statement in ast.parse(path.read_text()).body:
            assert "rendering" not in ast.unparse(statement) or not isinstance(statement, (ast.Import, ast.ImportFrom))
