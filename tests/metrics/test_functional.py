from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.metrics import functional, functional_model
from tests.metrics import reference


def faces(count: int = 5, points: int = 68, noise: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random faces in pixels and noisy predictions of them, float64."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, points, 3, dtype=torch.float64, generator=generator) * 40 + 100
    return target + torch.randn(count, points, 3, dtype=torch.float64, generator=generator) * noise, target


def rows(*tensors: Tensor) -> list[tuple[np.ndarray, ...]]:
    return list(zip(*(tensor.numpy() for tensor in tensors)))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("normalizer", ["bbox", "interocular", "outer_interocular", "diagonal"])
@pytest.mark.parametrize("depth", ["raw", "mean", "min", "similarity"])
def test_normalized_mean_error_equals_the_numpy_reference(dimensions: int, normalizer: str, depth: str) -> None:
    preds, target = (points[..., :dimensions] for points in faces())
    ours = functional.normalized_mean_error(preds, target, normalizer, depth=depth)
    expected = [reference.nme(p, g, normalizer, depth if dimensions == 3 else "raw") for p, g in rows(preds, target)]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", ["raw", "mean", "min", "similarity"])
def test_a_mask_equals_the_reference_on_the_marked_points(depth: str) -> None:
    preds, target = faces()
    mask = torch.rand(5, 68, generator=torch.Generator().manual_seed(1)) < 0.6
    ours = functional.normalized_mean_error(preds, target, depth=depth, mask=mask)
    expected = [reference.nme(p, g, "bbox", depth, m) for p, g, m in rows(preds, target, mask)]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)
    # A mask by coordinate: a landmark without annotated depth counts in 2D and not in 3D.
    by_coordinate = mask[..., None].expand(5, 68, 3).clone()
    by_coordinate[..., :2] = True
    whole = functional.normalized_mean_error(preds[..., :2], target[..., :2], mask=by_coordinate)
    assert torch.equal(whole, functional.normalized_mean_error(preds[..., :2], target[..., :2]))
    assert torch.equal(ours, functional.normalized_mean_error(preds, target, depth=depth, mask=by_coordinate))


def test_given_sizes_and_dense_points_with_a_reference() -> None:
    preds, target = faces()
    size = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    points = functional.average_point_error(preds, target, depth="raw")
    ours = functional.normalized_mean_error(preds, target, size=size, depth="raw")
    np.testing.assert_allclose(ours.numpy(), points.numpy() / size.numpy(), rtol=0, atol=1e-12)
    dense, dense_target = faces(points=500, seed=3)
    ours = functional.normalized_mean_error(dense, dense_target, "outer_interocular", depth="min", reference=target)
    expected = [
        reference.nme(p, g, "bbox", "min") * reference.box_size(g) / reference.measure(r, "outer_interocular")
        for p, g, r in rows(dense, dense_target, target)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)


def test_ground_truth_and_average_point_error_equal_the_reference() -> None:
    preds, target = faces()
    expected = np.array([reference.nme(p, g, "outer_interocular", "mean") for p, g in rows(preds, target)])
    np.testing.assert_allclose(functional.ground_truth_error(preds, target).numpy(), expected, rtol=0, atol=1e-10)
    distances = expected * [reference.measure(g, "outer_interocular") for g in target.numpy()]
    np.testing.assert_allclose(functional.average_point_error(preds, target).numpy(), distances, rtol=0, atol=1e-10)
    moved = preds + torch.tensor([0.0, 0.0, 1234.5])
    np.testing.assert_allclose(functional.ground_truth_error(moved, target).numpy(), expected, rtol=0, atol=1e-10)


def test_cross_view_error_by_least_squares_equals_horns_closed_form() -> None:
    preds, target = faces(noise=10)
    expected = [
        np.linalg.norm(reference.horn(p, g) - g, axis=1).mean() / reference.measure(g, "outer_interocular")
        for p, g in rows(preds, target)
    ]
    ours = functional.cross_view_consistency_error(preds, target)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)


def test_cross_view_error_as_printed_equals_a_general_minimiser() -> None:
    preds, target = faces(count=3, noise=10)
    preds[0, :10] += 80.0  # outliers, where the two criteria differ most
    expected = [
        np.linalg.norm(reference.unsquared_fit(p, g) - g, axis=1).mean() / reference.measure(g, "outer_interocular")
        for p, g in rows(preds, target)
    ]
    printed = functional.cross_view_consistency_error(preds, target, criterion="unsquared")
    np.testing.assert_allclose(printed.numpy(), expected, rtol=0, atol=1e-6)
    squares = functional.cross_view_consistency_error(preds, target)
    assert bool((printed < squares).all())
    assert float(squares[0] / printed[0]) > 1.05


def test_the_same_face_in_another_similarity_has_no_cross_view_error() -> None:
    _, target = faces()
    turn = torch.from_numpy(reference.Rotation.from_rotvec([0.3, -1.2, 0.4]).as_matrix())
    view = 1.7 * target @ turn.T + torch.tensor([3.0, -200.0, 40.0])
    for criterion in ("squared", "unsquared"):
        assert float(functional.cross_view_consistency_error(view, target, criterion=criterion).max()) < 1e-9


def test_per_vertex_error_is_in_millimetres() -> None:
    preds, target = faces(points=300)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    expected = [np.linalg.norm(reference.horn(p, g) - g, axis=1).mean() / s for p, g, s in rows(preds, target, scale)]
    ours = functional.per_vertex_error(preds, target, scale=scale)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)


def test_parameter_error_is_a_norm_and_angles_wrap() -> None:
    preds = torch.tensor([[3.0, 4.0], [-3.1, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0], [3.1, 0.0]], dtype=torch.float64)
    assert functional_model.parameter_error(preds, target).tolist() == [5.0, 6.2]
    wrapped = functional_model.parameter_error(preds, target, angles=True)
    np.testing.assert_allclose(wrapped.numpy(), [np.hypot(3.0, 4.0 - 2 * np.pi), 2 * np.pi - 6.2], atol=1e-12)


@pytest.mark.parametrize("with_scale", [False, True])
def test_icp_equals_brute_force(with_scale: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(2, 200, 3, dtype=torch.float64, generator=generator) * 40
    turn = torch.from_numpy(reference.Rotation.from_rotvec([0.05, 0.04, -0.03]).as_matrix())
    preds = (1.03 * target + torch.randn(2, 200, 3, dtype=torch.float64, generator=generator))[:, :150] @ turn.T + 2.0
    size = torch.tensor([80.0, 90.0])
    ours = functional.iterative_closest_point_error(preds, target, size=size, with_scale=with_scale)
    expected = [reference.icp(p, g, with_scale).mean() / s for p, g, s in rows(preds, target, size.double())]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-6)


def test_icp_finds_a_rigid_motion_without_correspondence_and_similarity_also_scale() -> None:
    generator = torch.Generator().manual_seed(6)
    target = torch.randn(1, 2000, 3, dtype=torch.float64, generator=generator) * torch.tensor([60.0, 80.0, 30.0])
    turn = torch.from_numpy(reference.Rotation.from_rotvec([0.1, -0.05, 0.04]).as_matrix())
    preds = (target[:, torch.randperm(2000, generator=generator)[:1500]] @ turn.T) + torch.tensor([2.0, 1.0, -3.0])
    size = torch.tensor([90.0])
    assert float(functional.iterative_closest_point_error(preds, target, size=size)[0]) < 1e-9
    larger = preds * 1.05
    assert float(functional.iterative_closest_point_error(larger, target, size=size)[0]) > 0.01
    assert float(functional.iterative_closest_point_error(larger, target, size=size, with_scale=True)[0]) < 1e-9


def test_icp_agrees_with_trimesh() -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh is the outside reference of ICP")
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(1, 1500, 3, dtype=torch.float64, generator=generator) * 40
    turn = torch.from_numpy(reference.Rotation.from_rotvec([0.06, 0.02, -0.05]).as_matrix())
    preds = (target + torch.randn(1, 1500, 3, dtype=torch.float64, generator=generator)) @ turn.T + 1.5
    _, moved, _ = trimesh.registration.icp(
        preds[0].numpy(), target[0].numpy(), threshold=1e-12, max_iterations=100, reflection=False, scale=False
    )
    expected = reference.cKDTree(target[0].numpy()).query(moved)[0].mean() / 90
    ours = functional.iterative_closest_point_error(preds, target, size=torch.tensor([90.0]))
    assert float(ours[0]) == pytest.approx(expected, abs=1e-6)


def test_curve_area_and_failures_of_a_worked_example() -> None:
    errors = torch.tensor([0.01, 0.03, 0.03, 0.09])
    curve = functional.cumulative_error_curve(errors.double(), torch.tensor([0.0, 0.01, 0.02, 0.03, 0.1]).double())
    # errors are float32 here: 0.01f is a little below 0.01, so that the step at 0.01 is counted.
    assert curve.tolist() == [0.0, 0.25, 0.25, 0.75, 1.0]
    # Under the steps from 0 to 0.05: 0.25 * 0.02 + 0.75 * 0.02 = 0.02, over 0.05.
    assert float(functional.area_under_curve(errors, 0.05)) == pytest.approx(0.4, abs=1e-7)
    assert float(functional.failure_rate(errors, 0.05)) == 0.25
    many = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    grid = torch.linspace(0, 0.07, 20001, dtype=torch.float64)
    steps = float(torch.trapezoid(functional.cumulative_error_curve(many, grid), grid) / 0.07)
    assert float(functional.area_under_curve(many, 0.07)) == pytest.approx(steps, abs=1e-6)
    with_nan = torch.tensor([0.01, float("nan")], dtype=torch.float64)
    assert functional.cumulative_error_curve(with_nan, torch.tensor([1e9])).tolist() == [0.5]


def test_one_nan_stays_in_its_own_sample() -> None:
    preds, target = faces()
    preds[2, 5, 0] = float("nan")
    size = torch.full((5,), 90.0)
    for error in (
        functional.normalized_mean_error(preds, target),
        functional.normalized_mean_error(preds, target, depth="similarity"),
        functional.ground_truth_error(preds, target),
        functional.cross_view_consistency_error(preds, target),
        functional.cross_view_consistency_error(preds, target, criterion="unsquared"),
        functional.iterative_closest_point_error(preds, target, size=size),
    ):
        assert error.isnan().tolist() == [False, False, True, False, False]


def test_an_empty_batch_gives_no_error() -> None:
    preds, target = (points[:0] for points in faces())
    for depth in ("raw", "mean", "min", "similarity"):
        assert functional.normalized_mean_error(preds, target, depth=depth).shape == (0,)
    assert functional.cross_view_consistency_error(preds, target, criterion="unsquared").shape == (0,)


def test_wrong_options_are_named() -> None:
    preds, target = faces()
    with pytest.raises(ConfigurationError, match=r"'box'.*bbox, interocular"):
        functional.normalized_mean_error(preds, target, "box")
    with pytest.raises(ConfigurationError, match=r"'median'.*raw, mean"):
        functional.normalized_mean_error(preds, target, depth="median")
    with pytest.raises(ConfigurationError, match=r"\(5, 68, 3\).*\(5, 66, 3\)"):
        functional.normalized_mean_error(preds, target[:, :66])
    with pytest.raises(ConfigurationError, match="17 points"):
        functional.ground_truth_error(preds[:, :17], target[:, :17])
    with pytest.raises(ConfigurationError, match="51 points"):
        functional.normalized_mean_error(preds[:, :51], target[:, :51], "interocular")
