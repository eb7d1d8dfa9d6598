"""The parameter vector: frames, landmarks, the Jacobian, visibility and effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_faces.geometry.camera import weak_perspective
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.methods.parm.parameters import (
    POSE,
    FaceParameters,
    denormalize_pose,
    gauss_newton_step,
    normalize_pose,
)
from lightning_faces.morphable import MorphableModel


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


@pytest.fixture(scope="module")
def face(model: MorphableModel) -> FaceParameters:
    return FaceParameters(model)


def some_parameters(face: FaceParameters, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    parameters = 0.5 * torch.randn((count, face.count), generator=generator, dtype=torch.float64)
    parameters[:, 0] = 0.007 + 0.001 * parameters[:, 0].abs()
    return parameters


def test_a_pose_is_measured_in_its_box_and_comes_back() -> None:
    pose = torch.tensor([[0.8, 0.1, -0.4, 0.2, 70.0, 45.0], [0.5, -0.2, 1.2, 0.0, 20.0, 30.0]], dtype=torch.float64)
    box = torch.tensor([[40.0, 20.0, 90.0, 100.0], [0.0, 0.0, 40.0, 10.0]], dtype=torch.float64)
    normalized = normalize_pose(pose, box)
    # By hand: sqrt(50 * 80) and sqrt(40 * 10); centres (65, 60) and (20, 5).
    sizes = [math.sqrt(4000.0), 20.0]
    np.testing.assert_allclose(normalized[:, 0], [0.8 / sizes[0], 0.5 / sizes[1]])
    np.testing.assert_allclose(normalized[:, 4:], [[5 / sizes[0], -15 / sizes[0]], [0.0, 1.25]], atol=1e-12)
    torch.testing.assert_close(denormalize_pose(normalized, box), pose)


def test_a_head_turned_beyond_a_profile_keeps_a_small_pitch_and_roll() -> None:
    box = torch.tensor([[-0.5, -0.5, 0.5, 0.5]], dtype=torch.float64)
    # The same rotation as pitch 0.1, yaw 1.65, roll -0.2.
    flipped = torch.tensor([[1.0, 0.1 - math.pi, math.pi - 1.65, math.pi - 0.2, 0.0, 0.0]], dtype=torch.float64)
    angles = normalize_pose(flipped, box)[:, 1:4]
    torch.testing.assert_close(angles, torch.tensor([[0.1, 1.65, -0.2]], dtype=torch.float64))
    torch.testing.assert_close(euler_to_matrix(angles), euler_to_matrix(flipped[:, 1:4]))


def test_landmarks_are_those_of_the_model_in_the_pose(model: MorphableModel, face: FaceParameters) -> None:
    parameters = some_parameters(face)
    identity, expression = parameters[:, POSE:].float().split((model.num_identity, model.num_expression), dim=1)
    points = model.landmarks(model.vertices(identity, expression), "bfm")
    expected = weak_perspective(points.double(), parameters[:, :POSE])
    torch.testing.assert_close(face.landmarks(parameters), expected, atol=1e-5, rtol=0)


def test_the_jacobian_is_that_of_autograd(face: FaceParameters) -> None:
    for row in some_parameters(face):
        expected = torch.autograd.functional.jacobian(lambda p: face.landmarks(p[None])[0, :, :2], row)
        torch.testing.assert_close(face.jacobian(row[None])[0], expected, atol=1e-10, rtol=1e-9)


def test_a_profile_hides_the_landmarks_of_its_far_side(face: FaceParameters) -> None:
    parameters = torch.zeros((3, face.count), dtype=torch.float64)
    parameters[:, 0] = 0.007
    parameters[1:, 2] = torch.tensor([1.2, -1.2])  # the nose to the image's left, and to its right
    frontal, left, right = face.visible(parameters)
    assert bool(frontal[17:].all())
    # The jaw's points 0-7 are on the image's left of a frontal face, 9-16 on its right; the brows' are 17-21 and 22-26.
    assert not bool(left[:8].any())
    assert not bool(right[9:17].any())
    for seen in (left[[*range(11, 17), *range(22, 27)]], right[[*range(6), *range(17, 22)]]):
        assert float(seen.float().mean()) > 0.8


def test_a_landmark_is_seen_where_the_surface_around_it_faces_the_viewer(
    model: MorphableModel, face: FaceParameters
) -> None:
    parameters = some_parameters(face, 6)
    parameters[:, 1:4] = torch.linspace(-1.4, 1.4, 18, dtype=torch.float64).reshape(6, 3)[:, [1, 0, 2]]
    seen = face.visible(parameters)
    identity, expression = parameters[:, POSE:].float().split((model.num_identity, model.num_expression), dim=1)
    vertices = model.vertices(identity, expression)
    inner = torch.stack([model.region_masks[name] for name in ("eye_inside", "mouth_inside", "eyeball")]).any(dim=0)
    outer = model.faces[~inner[model.faces].any(dim=1)]
    centres, landmarks = model.mean[outer].mean(dim=1), model.landmarks(model.mean[None], "bfm")[0]
    corners = vertices[:, outer]
    areas = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    viewer = euler_to_matrix(parameters[:, 1:4])[:, 2].float()
    for number, landmark in enumerate(landmarks):
        near = (centres - landmark).norm(dim=1) <= 12.0
        towards = (areas[:, near].sum(dim=1) * viewer).sum(dim=1)
        assert torch.equal(seen[:, number], towards > 0)


def test_the_effect_of_a_parameter_is_how_far_the_vertices_move(model: MorphableModel, face: FaceParameters) -> None:
    effect = face.effect(model)
    assert effect.shape == (face.count,)
    mean = model.mean.double() - model.mean.double().mean(dim=0)
    scale = 1.0 / float((face.mean[:, :2].amax(dim=0) - face.mean[:, :2].amin(dim=0)).prod().sqrt())
    pose = torch.tensor([[scale, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    at_rest = weak_perspective(mean[None], pose)
    for column in range(POSE):
        step = 1e-6 * (scale if column == 0 else 1.0)
        moved = pose.clone()
        moved[0, column] += step
        distance = (weak_perspective(mean[None], moved) - at_rest).norm() / step / scale
        assert float(effect[column]) == pytest.approx(float(distance), rel=1e-4)
    for number in (0, model.num_identity):
        one = torch.zeros(1, model.num_coefficients)
        one[0, number] = 1.0
        moved_face = model.vertices(one[:, : model.num_identity], one[:, model.num_identity :])[0]
        assert float(effect[POSE + number]) == pytest.approx(float((moved_face - model.mean).norm()), rel=1e-4)


def test_the_gauss_newton_step_solves_its_normal_equations(face: FaceParameters) -> None:
    parameters = some_parameters(face)
    jacobian = face.jacobian(parameters).flatten(1, 2)
    generator = torch.Generator().manual_seed(5)
    update = 0.05 * torch.randn((3, 136), generator=generator, dtype=torch.float64)
    prior = torch.full((face.count,), 1e-3, dtype=torch.float64)
    prior[:POSE] = 0.0
    step = gauss_newton_step(jacobian, update, parameters, prior)
    for J, dx, p, dp in zip(jacobian.numpy(), update.numpy(), parameters.numpy(), step.numpy()):
        # Equation 4 as one least-squares problem: the landmarks, and the prior's rows below them.
        root = np.sqrt(prior.numpy())
        A, b = np.vstack((J, np.diag(root))), np.concatenate((dx, -root * p))
        np.testing.assert_allclose(dp, np.linalg.lstsq(A, b, rcond=None)[0], atol=1e-7)


def test_exact_landmark_updates_lead_gauss_newton_to_the_pose(face: FaceParameters) -> None:
    truth = torch.zeros((1, face.count), dtype=torch.float64)
    truth[0, :POSE] = torch.tensor([0.0075, 0.2, -0.6, 0.15, 0.03, -0.05])
    current = torch.zeros_like(truth)
    current[0, 0] = 0.007
    prior = torch.full((face.count,), 1e-3, dtype=torch.float64)
    prior[:POSE] = 0.0
    for _ in range(8):
        update = (face.landmarks(truth) - face.landmarks(current))[..., :2].flatten(1)
        current = current + gauss_newton_step(face.jacobian(current).flatten(1, 2), update, current, prior)
    torch.testing.assert_close(current[:, :POSE], truth[:, :POSE], atol=2e-3, rtol=0)
