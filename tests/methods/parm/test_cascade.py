"""The cascade on a few faces: what it learns, what it gives, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import face_size
from lightning_faces.methods import PARM
from lightning_faces.methods.parm.parameters import box_frame, normalize_pose
from lightning_faces.methods.parm.updater import grey_bytes, in_plane_rotation, pixels_at_sites
from tests.methods.parm.faces import FEW, errors, faces, fitted, rows

LOOSE = {**FEW, "landmark_ridge": 0.02, "parameter_ridge": 1e-4}


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"variant": "parm"}, 0.045),
        ({"variant": "prm"}, 0.06),
        ({"variant": "pclm"}, 0.06),
        ({"variant": "lbf"}, 0.03),
        ({"variant": "parm", "vertex_weights": True}, 0.05),
        ({"variant": "parm", "updater": "cnn", "cnn_epochs": 30}, 0.06),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_it_overfits_thirty_faces_stage_by_stage(options: dict[str, Any], reached: float) -> None:
    batch = faces()
    method = PARM(**{**LOOSE, **options})
    at_start = errors(method, batch)[0]
    found = errors(fitted(method, batch), batch)
    # With the weights, the last stage trades landmarks for parameters.
    slack = 0.01 if method.vertex_weights else 0.0
    # What is learnt by heart at once, as by the network, cannot fall further.
    assert all(after < before + slack or after < 0.01 for before, after in pairwise(found))
    assert found[0] < 0.8 * at_start
    assert found[-1] < reached


@pytest.fixture(scope="module")
def method() -> PARM:
    return fitted(PARM(**LOOSE), faces())


def test_it_starts_from_the_mean_scale_and_shift(method: PARM) -> None:
    batch = faces()
    poses = normalize_pose(batch["pose"].double(), batch["box"].double())
    assert float(method.start[0]) == pytest.approx(float(poses[:, 0].mean()))
    torch.testing.assert_close(method.start[4:6], poses[:, 4:].mean(dim=0))
    assert float(method.start[1:4].abs().max()) == float(method.start[6:].abs().max()) == 0.0


def test_a_stage_regresses_what_is_left_of_the_parameters(method: PARM) -> None:
    batch = faces()
    box = batch["box"].double()
    states = method.run(grey_bytes(batch["image"]), box, 2)
    target = torch.cat((normalize_pose(batch["pose"].double(), box), batch["coefficients"].double()), dim=1)
    values, visible, rotation = method.look(1, states[1], grey_bytes(batch["image"]), box)
    update = (method.updater(1, values, visible).double() @ rotation.transpose(1, 2)).flatten(1)
    features = torch.cat((update, states[1]), dim=1)
    # Equation 12 in closed form: standardised features, the ridge on all but the constant.
    scale = features.std(dim=0, correction=0)
    Z = torch.where(scale > 1e-12, (features - features.mean(dim=0)) / scale.clamp_min(1e-12), 0.0)
    wanted = target - states[1]
    gram = Z.T @ Z + 1e-4 * len(Z) * torch.eye(Z.shape[1], dtype=torch.float64)
    expected = Z @ torch.linalg.solve(gram, Z.T @ (wanted - wanted.mean(dim=0))) + wanted.mean(dim=0)
    torch.testing.assert_close(states[2] - states[1], expected, atol=1e-7, rtol=0)


def test_predictions_are_named_by_stage_and_consistent(method: PARM) -> None:
    batch = faces("test", 5)
    with torch.no_grad():
        named, face = method.predict_named(batch), method.predict_faces(batch)
        again = method.predict_faces(rows(batch, torch.tensor([3])))
    assert tuple(named) == method.prediction_names == ("stage_1", "stage_2", "stage_3")
    torch.testing.assert_close(face.landmarks, named["stage_3"].landmarks)
    torch.testing.assert_close(again.landmarks[0], face.landmarks[3], atol=1e-4, rtol=0)
    assert face.camera is not None
    assert face.vertices is not None
    assert face.coefficients is not None
    model = method.face_model
    identity, expression = face.coefficients.split((model.num_identity, model.num_expression), dim=1)
    vertices = face.camera.project(model.vertices(identity, expression))
    torch.testing.assert_close(face.vertices, vertices, atol=1e-3, rtol=0)
    torch.testing.assert_close(face.landmarks, model.landmarks(vertices, "bfm"), atol=1e-3, rtol=0)
    assert face.visible is not None
    assert 0.3 < float(face.visible.mean()) < 1.0
    assert named["stage_1"].vertices is None


def test_a_face_that_moves_in_its_image_gives_the_same_parameters(method: PARM) -> None:
    batch = faces("test", 4)
    moved = {**batch, "image": torch.nn.functional.pad(batch["image"], (7, 0, 3, 0), mode="replicate")}
    moved["box"] = batch["box"] + torch.tensor([7.0, 3.0, 7.0, 3.0])
    with torch.no_grad():
        before, after = method.predict_faces(batch), method.predict_faces(moved)  # type: ignore[arg-type]
    shift = after.landmarks - before.landmarks
    torch.testing.assert_close(shift, torch.tensor([7.0, 3.0, 0.0]).expand_as(shift), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.coefficients, before.coefficients, atol=1e-4, rtol=0)


def test_landmarks_alone_need_no_face_model() -> None:
    batch = faces()
    method = PARM(**{**LOOSE, "variant": "lbf"})
    assert method.requires == {"landmarks"}
    bare = {**batch, "has": {**batch["has"], "pose": torch.zeros(30, dtype=torch.bool)}}
    fitted(method, bare)  # type: ignore[arg-type]
    face = method.predict_faces(batch)
    assert face.camera is None
    assert face.coefficients is None
    # The depth of a frontal mean face: its nose is nearer than its ears.
    assert bool((face.landmarks[:, 30, 2] > face.landmarks[:, 0, 2] + 0.3 * face_size(batch["landmarks"])).all())


def test_a_batch_without_some_targets_counts_only_the_others() -> None:
    batch = faces()
    has = {key: value.clone() for key, value in batch["has"].items()}
    has["coefficients"][10:] = False
    part = {**batch, "has": has}
    method, alone = PARM(**LOOSE), PARM(**LOOSE)
    fitted(method, part)  # type: ignore[arg-type]
    fitted(alone, rows(batch, torch.arange(10)), size=8)
    torch.testing.assert_close(method.predict_faces(batch).landmarks, alone.predict_faces(batch).landmarks)
    nothing = {**batch, "has": {**has, "coefficients": torch.zeros(30, dtype=torch.bool)}}
    with pytest.raises(ConfigurationError, match="trains on coefficients, landmarks, pose, and no training sample has"):
        fitted(PARM(**LOOSE), nothing)  # type: ignore[arg-type]


def test_the_sites_follow_the_face_and_its_rotation() -> None:
    reference = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.5]], dtype=torch.float64)
    angle = torch.tensor(0.4, dtype=torch.float64)
    turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    landmarks = 0.7 * reference @ turn.T + 3.0
    torch.testing.assert_close(in_plane_rotation(landmarks[None], reference)[0], turn)
    grey = torch.arange(100, dtype=torch.uint8).reshape(1, 10, 10)
    places = torch.tensor([[[4.2, 5.0], [9.0, 0.0]]])
    sites = torch.tensor([[[0.0, 0.0], [0.5, 0.0]], [[0.5, 0.0], [0.0, -0.5]]])
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    found = pixels_at_sites(grey, places, sites, quarter, torch.tensor([[4.0]]))
    # A quarter turn takes x to y, so the second site lies two pixels below; outside, the border counts.
    assert found.tolist() == [[[54, 74], [29, 9]]]


def test_a_checkpoint_of_another_kind_is_named(method: PARM) -> None:
    state = method.state_dict()
    same = PARM(**LOOSE)
    same.load_state_dict(state)
    batch = faces("test", 3)
    assert torch.equal(same.predict_faces(batch).landmarks, method.predict_faces(batch).landmarks)
    assert same.converged
    with pytest.raises(ConfigurationError, match="holds a PARM of variant 'parm', but the method has 'prm'"):
        PARM(**{**LOOSE, "variant": "prm"}).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="holds a PARM of tree_depth 3, but the method has 4"):
        PARM(**{**LOOSE, "tree_depth": 4}).load_state_dict(state)
    other = PARM(**LOOSE)
    other.made_for = _replaced(other.made_for, method.face_model.hash, "0123456789abcdef")
    with pytest.raises(ConfigurationError, match="holds a PARM of face_model '" + method.face_model.hash):
        other.load_state_dict(state)


def _replaced(text: Tensor, old: str, new: str) -> Tensor:
    changed = bytes(text.tolist()).replace(old.encode(), new.encode())
    return torch.tensor(list(changed), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"radii": ()}, r"radii is \[\]; give 1 to 20 positive numbers"),
        ({"tree_depth": 8}, "tree_depth is 8; it must be at least 1 and at most 7"),
        ({"sites": 1}, "sites is 1; it must be at least 2 and at most 256"),
        ({"parameter_ridge": 0.0}, "parameter_ridge is 0.0; it must be positive"),
        ({"prior": (1.0, -1.0)}, r"prior is \[1.0, -1.0\]; give two positive numbers"),
        ({"variant": "sdm"}, "variant is 'sdm'; it must be one of parm, prm, pclm, lbf"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PARM option {says}"):
        PARM(**options)


def test_too_few_faces_for_a_tree_are_named() -> None:
    with pytest.raises(ConfigurationError, match="A tree of 8 leaves needs at least 8 faces, and there are 5"):
        fitted(PARM(**LOOSE), rows(faces(), torch.arange(5)))


def test_what_is_predicted_before_the_first_stage_is_the_start() -> None:
    batch = faces()
    method = PARM(**LOOSE)
    with torch.no_grad():
        method.fit_batch(batch)
        method.end_pass()
        found = method.predict_named(batch)
    assert not method.converged
    centre, size = box_frame(batch["box"])
    first = found["stage_1"].landmarks[..., :2].sub(centre[:, None]).div(size[..., None])
    torch.testing.assert_close(first, first[:1].expand_as(first), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["stage_3"].landmarks, found["stage_1"].landmarks)
