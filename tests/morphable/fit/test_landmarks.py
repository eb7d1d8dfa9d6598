"""Face models fitted to landmarks: optimality, accuracy, schemes, missing points, other models, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import apply_similarity, similarity_transform, weak_perspective
from lightning_faces.geometry.landmarks import convert_landmarks
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_landmarks
from lightning_faces.morphable.fit.coefficients import BLENDSHAPE_STD

from .faces import degrees_between, random_faces, rms


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def test_size_of_what_comes_back(model: MorphableModel) -> None:
    faces = random_faces(model, 3)
    for dtype in (torch.float32, torch.float64):
        fit = fit_landmarks(faces.landmarks.to(dtype), "68", model)
        assert fit.coefficients.shape == (3, 123)
        assert fit.vertices.shape == (3, 4280, 3)
        assert fit.landmarks.shape == (3, 68, 3)
        assert fit.camera.kind == "weak_perspective"
        for values in (fit.coefficients, fit.vertices, fit.camera.matrix, fit.landmarks, fit.residual):
            assert values.dtype == dtype
        assert fit.valid.all()
        assert fit.reason == ["", "", ""]
    torch.testing.assert_close(model.landmarks(fit.vertices.float()), fit.landmarks.float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("width", [2, 3])
def test_it_reaches_the_minimum(model: MorphableModel, width: int) -> None:
    """Against SciPy on the objective as the docstring writes it, pixels over the scale that it ends with."""
    points = random_faces(model, 1, seed=3).landmarks[..., :width].double()
    points = points + torch.randn(points.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    fit = fit_landmarks(points, "68", model, identity_weight=4.0, expression_weight=9.0)
    scale = float(fit.camera.pose[0, 0])
    weights = np.sqrt(np.r_[np.full(72, 4.0), np.full(51, 9.0) / BLENDSHAPE_STD**2])
    mean = model.landmarks(model.mean[None])[0].double()
    identity = model.landmarks(model.identity_basis).double() * model.identity_std.double()[:, None, None]
    modes = torch.cat((identity, model.landmarks(model.expression_basis).double())).flatten(1)

    def errors(values: np.ndarray) -> np.ndarray:
        shape = mean + (torch.from_numpy(values[7:]) @ modes).reshape(68, 3)
        image = weak_perspective(shape, torch.from_numpy(values[:6]))
        image[:, 2] += float(values[6])
        return np.r_[((points[0] - image[:, :width]) / scale).numpy().ravel(), weights * values[7:]]

    start = torch.cat((fit.camera.pose[0], fit.depth, fit.coefficients[0])).numpy()
    best = least_squares(errors, start, xtol=1e-10, max_nfev=30)
    assert (errors(start) ** 2).sum() == pytest.approx(2 * best.cost, rel=1e-4)
    assert float(fit.residual[0]) == pytest.approx(np.sqrt((errors(start)[: 68 * width] ** 2).sum() / 68) * scale)


@pytest.mark.parametrize("width", [2, 3])
def test_a_fit_to_noisy_landmarks_beats_the_mean_face(model: MorphableModel, width: int) -> None:
    faces = random_faces(model, 200, seed=1)
    noise = torch.randn(200, 68, width, generator=torch.Generator().manual_seed(2))
    points = faces.landmarks[..., :width] + 0.02 * 140 * faces.camera.pose[:, :1, None] * noise
    fit = fit_landmarks(points, "68", model)
    skin = model.region_masks["face"]
    true, mean = faces.shapes[:, skin], model.mean[skin].expand(200, -1, -1)

    def error(shapes: torch.Tensor) -> torch.Tensor:
        return rms(apply_similarity(shapes, *similarity_transform(shapes, true)), true)

    gain = error(mean) - error(fit.shapes[:, skin])
    low = gain.mean() - 2.6 * gain.std() / 200**0.5
    assert low > (1.5 if width == 2 else 2.3), f"the 99 % interval of the gain starts at {low} mm"
    assert degrees_between(fit.camera.pose, faces.camera.pose).median() < (3.0 if width == 2 else 1.5)


def test_more_weight_means_a_smaller_face_from_the_mean(model: MorphableModel) -> None:
    points = random_faces(model, 4).landmarks
    light, heavy, both = (
        fit_landmarks(points, "68", model, identity_weight=a, expression_weight=b).coefficients
        for a, b in ((1.0, 1.0), (100.0, 1.0), (1e7, 1e7))
    )
    assert (heavy[:, :72].norm(dim=1) < 0.7 * light[:, :72].norm(dim=1)).all()
    assert both.abs().max() < 1e-2


@pytest.mark.parametrize("scheme", ["66", "51", "49", "21"])
@pytest.mark.parametrize("width", [2, 3])
def test_every_scheme(model: MorphableModel, scheme: str, width: int) -> None:
    faces = random_faces(model, 5)
    points = convert_landmarks(faces.landmarks, "68", scheme)[..., :width]
    fit = fit_landmarks(points, scheme, model)
    again = convert_landmarks(fit.landmarks, "68", scheme)[..., :width]
    torch.testing.assert_close((again - points).square().sum(2).mean(1).sqrt(), fit.residual, atol=1e-3, rtol=1e-3)
    assert degrees_between(fit.camera.pose, faces.camera.pose).max() < 8.0
    assert fit.residual.max() < 2.5


def test_a_scheme_without_a_published_map_takes_one(model: MorphableModel) -> None:
    faces = random_faces(model, 2)
    mapping = [[2 * i] for i in range(33)] + [[]]
    points = torch.cat((faces.landmarks[:, :66:2, :2], torch.full((2, 1, 2), 1e4)), dim=1)
    fit = fit_landmarks(points, "34", model, mapping=mapping)
    assert fit.residual.max() < 2.0
    with pytest.raises(ConfigurationError, match=r"34-point scheme .* has no published map"):
        fit_landmarks(points, "34", model)


@pytest.mark.parametrize("width", [2, 3])
def test_missing_points_count_for_nothing(model: MorphableModel, width: int) -> None:
    points = random_faces(model, 4).landmarks[..., :width]
    mask = torch.rand(4, 68, generator=torch.Generator().manual_seed(0)) < 0.6
    whole = fit_landmarks(points, "68", model, mask)
    for wrong in (float("nan"), float("inf"), 1e30):
        spoiled = points.clone()
        spoiled[~mask] = wrong
        torch.testing.assert_close(fit_landmarks(spoiled, "68", model).coefficients, whole.coefficients)
    assert (whole.coefficients - fit_landmarks(points, "68", model).coefficients).abs().max() > 0.01
    alone = fit_landmarks(points[2:3], "68", model, mask[2:3])
    torch.testing.assert_close(alone.coefficients[0], whole.coefficients[2], atol=2e-3, rtol=0)


def test_arrays_and_integers(model: MorphableModel) -> None:
    points = random_faces(model, 2).landmarks[..., :2]
    fit = fit_landmarks(points.double().numpy(), "68", model, np.ones((2, 68), bool))
    torch.testing.assert_close(
        fit.coefficients.float(), fit_landmarks(points, "68", model).coefficients, atol=2e-3, rtol=0
    )
    assert fit_landmarks(points.round().long().numpy(), "68", model).residual.max() < 2.5


def test_contour_landmarks_are_the_embeddings_own(model: MorphableModel) -> None:
    faces = random_faces(model, 3, yaw=0.1)
    points = faces.camera.project(model.landmarks(faces.shapes, "ibug"))[..., :2]
    right = fit_landmarks(points, "68", model, embedding="ibug", identity_weight=0.1, expression_weight=0.1)
    wrong = fit_landmarks(points, "68", model, embedding="bfm", identity_weight=0.1, expression_weight=0.1)
    assert (right.residual < 0.5 * wrong.residual).all()
    assert (
        degrees_between(right.camera.pose, faces.camera.pose) < degrees_between(wrong.camera.pose, faces.camera.pose)
    ).all()


@pytest.mark.parametrize("width", [2, 3])
def test_bad_faces_are_named_and_the_batch_goes_on(model: MorphableModel, width: int) -> None:
    points = random_faces(model, 7).landmarks[..., :width]
    good = fit_landmarks(points, "68", model)
    points[1] = float("nan")
    least = 4 if width == 2 else 3
    points[2, least - 1 :] = float("nan")
    points[3] = 50.0
    points[4] = torch.arange(68.0)[:, None]
    points[5] = float("inf")
    fit = fit_landmarks(points, "68", model)
    assert fit.valid.tolist() == [True, False, False, False, False, False, True]
    parts = (
        "no valid points",
        f"{least - 1} valid points, at least {least}",
        "lie on a line",
        "lie on a line",
        "no valid",
    )
    for reason, part in zip(fit.reason[1:6], parts):
        assert part in reason
    for values in (fit.coefficients, fit.camera.pose, fit.camera.matrix[:, :2], fit.vertices, fit.landmarks, fit.depth):
        assert values.isfinite().all()
        assert (values[1:6] == 0).all()
    torch.testing.assert_close(fit.coefficients[[0, 6]], good.coefficients[[0, 6]], atol=2e-3, rtol=0)


def test_an_empty_batch(model: MorphableModel) -> None:
    fit = fit_landmarks(torch.zeros(0, 68, 2), "68", model)
    assert fit.coefficients.shape == (0, 123)
    assert fit.vertices.shape == (0, 4280, 3)


def test_wrong_arguments_are_named(model: MorphableModel) -> None:
    points = torch.zeros(2, 68, 2)
    for message, arguments, options in (
        (r"shape \(2, 68, 2\) .* 51-point scheme: give \[B, 51, 2\]", (points, "51"), {}),
        (r"shape \(68, 2\)", (points[0], "68"), {}),
        ("Unknown landmark scheme '98'", (points, "98"), {}),
        (r"no landmarks 'flame' \(it has bfm, ibug\)", (points, "68"), {"embedding": "flame"}),
        ("identity_weight is -1", (points, "68"), {"identity_weight": -1}),
        (r"mask has shape \(2, 51\): give \[2, 68\]", (points, "68"), {"mask": torch.ones(2, 51)}),
    ):
        with pytest.raises(ConfigurationError, match=message):
            fit_landmarks(*arguments, model, **options)


def test_a_model_without_landmarks_is_refused(model: MorphableModel) -> None:
    fields = ("mean", "faces", "identity_basis", "identity_std", "expression_basis", "expression_std")
    bare = MorphableModel("bare", *(getattr(model, name) for name in fields))
    with pytest.raises(ConfigurationError, match=r"'bare' has no landmarks 'bfm' \(it has none\)"):
        fit_landmarks(torch.zeros(1, 68, 2), "68", bare)
