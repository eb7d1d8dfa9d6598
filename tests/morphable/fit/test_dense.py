"""Fitting to maps that were rendered from known faces, and to maps that are broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_dense, fit_dense_landmarks, fit_landmarks, point_cloud
from lightning_faces.rendering.maps import FaceMaps

from .faces import Faces, degrees_between, random_faces, rms

SIZE = 200
Maps = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def maps_of(model: MorphableModel, faces: Faces, size: int = SIZE) -> Maps:
    maps = FaceMaps(model, size)
    return maps.pncc(maps.face_region(faces.camera.project(faces.shapes)), faces.shapes)


@pytest.fixture(scope="module")
def turned(model: MorphableModel) -> tuple[Faces, Maps]:
    faces = random_faces(model, 6, yaw=0.8, scale=0.9)
    return faces, maps_of(model, faces)


@pytest.fixture(scope="module")
def frontal(model: MorphableModel) -> tuple[Faces, Maps]:
    faces = random_faces(model, 6, seed=7, yaw=0.05, scale=0.9)
    return faces, maps_of(model, faces)


def region(model: MorphableModel) -> Tensor:
    return torch.unique(model.faces[model.uv_face_ids])


@pytest.mark.parametrize("kind", ["affine", "weak_perspective", "perspective"])
def test_perfect_maps_give_pose_and_landmarks(model: MorphableModel, turned: tuple[Faces, Maps], kind: str) -> None:
    faces, maps = turned
    fit = fit_dense(*maps, model, camera=kind)
    assert fit.camera.kind == kind
    assert fit.valid.all()
    assert degrees_between(fit.camera.pose, faces.camera.pose).max() < 0.1
    error = (fit.landmarks - faces.landmarks)[..., :2].norm(dim=2)
    assert error.mean() < 0.3
    assert fit.residual.max() < 0.05
    torch.testing.assert_close(model.landmarks(fit.vertices), fit.landmarks, atol=1e-2, rtol=0)


def test_perfect_frontal_maps_give_the_geometry(model: MorphableModel, frontal: tuple[Faces, Maps]) -> None:
    faces, maps = frontal
    fit = fit_dense(*maps, model)
    visible = region(model)
    assert rms(fit.shapes[:, visible], faces.shapes[:, visible]).max() < 0.2
    assert (fit.landmarks - faces.landmarks)[..., :2].norm(dim=2).mean(dim=1).max() < 0.1
    assert (fit.landmarks - faces.landmarks)[..., 2].abs().max() < 1.0


def test_four_views_of_a_subject_are_better_than_one(model: MorphableModel) -> None:
    visible, single, joint = region(model), [], []
    for seed in range(4):
        faces = random_faces(model, 4, seed=seed)
        identity = faces.coefficients[:1, :72].expand(4, -1)
        shapes = model.vertices(identity, faces.coefficients[:, 72:])
        pose = faces.camera.pose.clone()
        pose[:, 2] = torch.tensor([0.0, 0.6, -0.6, 0.9])
        pose[:, 0] = 0.9
        views = Faces(faces.coefficients, shapes, Camera.from_pose(pose), faces.landmarks)
        maps = maps_of(model, views)
        alone, together = fit_dense(*maps, model), fit_dense(*maps, model, subject=torch.full((4,), 3))
        assert torch.equal(together.coefficients[:1, :72].expand(4, -1), together.coefficients[:, :72])
        assert not torch.equal(alone.coefficients[0, :72], alone.coefficients[1, :72])
        single.append(rms(alone.shapes[:, visible], shapes[:, visible]))
        joint.append(rms(together.shapes[:, visible], shapes[:, visible]))
    one, four = torch.stack(single).mean(dim=0), torch.stack(joint).mean(dim=0)
    assert (four < one).all()
    assert four[1:3].mean() < 0.5 * one[1:3].mean()  # half profiles, whose other half one image does not show


def test_subjects_are_kept_apart(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    _, maps = turned
    fit = fit_dense(*maps, model, subject=torch.tensor([5, 5, -1, -1, 2, 5]))
    alone = fit_dense(*maps, model)
    identity = fit.coefficients[:, :72]
    assert torch.equal(identity[0], identity[1])
    assert torch.equal(identity[0], identity[5])
    torch.testing.assert_close(fit.coefficients[2:5], alone.coefficients[2:5])


def test_the_fast_way_gives_camera_and_landmarks(model: MorphableModel, frontal: tuple[Faces, Maps]) -> None:
    faces, maps = frontal
    fast = fit_dense_landmarks(*maps, model)
    torch.testing.assert_close(fast.camera.matrix, fit_dense(*maps, model).camera.matrix)
    error = (fast.landmarks - faces.landmarks)[..., :2].norm(dim=2)
    # Lids and lips apart, where the PNCC of what touches on the mean face is ambiguous.
    assert error[:, 17:36].mean() < 0.1
    assert error.median() < 0.3


def test_landmarks_at_chosen_vertices(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    _, maps = turned
    fit = fit_dense(*maps, model, landmark_vertices=torch.tensor([7, 100, 4000]))
    torch.testing.assert_close(fit.landmarks, fit.vertices[:, [7, 100, 4000]])


def test_noise_and_wrong_pixels(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    faces, (pncc, offsets, mask) = turned
    generator = torch.Generator().manual_seed(0)
    offsets = offsets + torch.randn(offsets.shape, generator=generator)
    wrong = torch.rand(mask.shape, generator=generator) < 0.15
    offsets = torch.where(wrong, offsets + 60.0, offsets)
    fit = fit_dense(pncc, offsets, mask, model, identity_weight=1.0, expression_weight=1.0)
    assert degrees_between(fit.camera.pose, faces.camera.pose).max() < 0.6
    assert (fit.landmarks - faces.landmarks)[..., :2].norm(dim=2).mean() < 1.5


@pytest.mark.parametrize("kind", ["affine", "weak_perspective", "perspective"])
@pytest.mark.parametrize("fit_maps", [fit_dense, fit_dense_landmarks])
def test_bad_maps_are_named_and_the_batch_goes_on(
    model: MorphableModel, turned: tuple[Faces, Maps], kind: str, fit_maps: object
) -> None:
    faces, maps = turned
    pncc, offsets, mask = (values.clone() for values in maps)
    pncc[0] = float("nan")
    mask[1] = 0.0
    mask[2] = 0.0
    mask[2, 0, 100, 96:104] = 1.0
    mask[3] = 0.0
    mask[3, 0, 100, 60:140] = 1.0  # one row: a plane through the camera
    offsets[4, :, 90] = float("nan")
    offsets[4, :, 91] = float("inf")
    fit = fit_maps(pncc, offsets, mask, model, camera=kind)  # type: ignore[operator]
    assert fit.valid.tolist() == [False, False, False, False, True, True]
    assert "0 valid pixels, at least 10 are needed" in fit.reason[0]
    assert "more have values that are not finite" in fit.reason[0]
    assert fit.reason[1] == "it has 0 valid pixels, at least 10 are needed"
    assert fit.reason[2] == "it has 8 valid pixels, at least 10 are needed"
    assert "lie in a plane" in fit.reason[3] or "lie on a line" in fit.reason[3]
    values = [fit.camera.matrix[:, :2], fit.camera.pose, fit.landmarks, fit.residual]
    if fit_maps is fit_dense:
        values += [fit.coefficients, fit.vertices]
    for value in values:
        assert value.isfinite().all()
        assert (value[:4] == 0).all()
    assert degrees_between(fit.camera.pose[4:], faces.camera.pose[4:]).max() < 0.1


def test_pixels_far_from_the_face_model_find_no_vertices(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    _, (pncc, offsets, mask) = turned
    moved = pncc.clone()
    moved[0] += 1000.0
    fit = fit_dense(moved, offsets, mask, model)
    assert fit.reason[0].startswith("0 vertices of the face model were found")
    assert (fit.camera.pose[0] == 0).all()
    assert fit.valid.tolist() == [False] + [True] * 5


def test_a_face_is_the_same_in_any_batch_and_type(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    _, maps = turned
    whole = fit_dense(*maps, model)
    alone = fit_dense(*(values[3:4] for values in maps), model)
    torch.testing.assert_close(alone.landmarks[0], whole.landmarks[3], atol=1e-3, rtol=0)
    double = fit_dense(*(values[3:4].double() for values in maps), model)
    assert double.vertices.dtype == torch.float64
    torch.testing.assert_close(double.landmarks[0].float(), whole.landmarks[3], atol=5e-3, rtol=0)
    cut = fit_dense(*(values[3:4, :, 10:, :-5] for values in maps), model)
    torch.testing.assert_close(cut.landmarks[0, :, 1] + 10, whole.landmarks[3, :, 1], atol=0.3, rtol=0)
    half = fit_dense(*(values[3:4].half() for values in maps), model)
    assert half.vertices.dtype == torch.float32
    torch.testing.assert_close(half.landmarks[0], whole.landmarks[3], atol=0.5, rtol=0)
    nothing = fit_dense(*(values[:0] for values in maps), model)
    assert nothing.vertices.shape == (0, 4280, 3)


def test_the_point_cloud_is_the_surface_with_its_colours(model: MorphableModel, frontal: tuple[Faces, Maps]) -> None:
    faces, (pncc, offsets, mask) = frontal
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    points, colours = point_cloud(pncc[0], offsets[0], mask[0], image)
    assert len(points) == len(colours) == int(mask[0].sum())
    place = Camera.from_pose(faces.camera.pose[:1]).project(points[None])[0, :, :2].round().long()
    torch.testing.assert_close(image[:, place[:, 1], place[:, 0]].T, colours)


def test_wrong_arguments_are_named(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    _, (pncc, offsets, mask) = turned
    with pytest.raises(ConfigurationError, match=r"offsets has shape \(6, 2, 200, 200\)"):
        fit_dense(pncc, offsets[:, :2], mask, model)
    with pytest.raises(ConfigurationError, match=r"mask has shape \(6, 200, 200\)"):
        fit_dense_landmarks(pncc, offsets, mask[:, 0], model)
    with pytest.raises(ConfigurationError, match="no camera 'fisheye'"):
        fit_dense(pncc, offsets, mask, model, camera="fisheye")  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_maps_and_landmarks_on_a_gpu(model: MorphableModel, turned: tuple[Faces, Maps]) -> None:
    faces, maps = turned
    for kind in ("affine", "weak_perspective", "perspective"):
        fit = fit_dense(*(values.cuda() for values in maps), model, camera=kind)
        assert fit.vertices.is_cuda
        torch.testing.assert_close(
            fit.landmarks.cpu(), fit_dense(*maps, model, camera=kind).landmarks, atol=0.05, rtol=0
        )
    assert fit_dense_landmarks(*(values.cuda() for values in maps), model).landmarks.is_cuda
    sparse = fit_landmarks(faces.landmarks.cuda(), "68", model)
    torch.testing.assert_close(
        sparse.vertices.cpu(), fit_landmarks(faces.landmarks, "68", model).vertices, atol=0.1, rtol=0
    )
