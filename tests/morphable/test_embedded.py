"""The shipped face model: frame, sides, symmetry, landmarks, UV map, albedo and size."""

from __future__ import annotations

import csv
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.geometry import apply_similarity, similarity_transform
from lightning_faces.geometry.landmarks import FLIP_68
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.surface import triangle_areas

FLIP_X = torch.tensor([-1.0, 1.0, 1.0])
DATA = os.environ.get("LIGHTNING_FACES_DATA")


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def act(model: MorphableModel, name: str, amount: float = 1.0) -> torch.Tensor:
    expression = torch.zeros(1, model.num_expression)
    expression[0, model.expression_names.index(name)] = amount
    return model.vertices(torch.zeros(1, model.num_identity), expression)[0] - model.mean


def points(model: MorphableModel, vertices: torch.Tensor, embedding: str = "bfm") -> torch.Tensor:
    return model.landmarks(vertices[None], embedding)[0]


def test_size_and_content(model: MorphableModel) -> None:
    asset = resources.files("lightning_faces.morphable") / "assets" / "embedded.npz"
    assert len(asset.read_bytes()) < 6e6
    assert model.num_vertices > 4000
    assert model.num_identity == 72
    assert model.num_expression == 51
    assert model.expression_kind == "blendshapes"
    assert set(model.landmark_embeddings) == {"bfm", "ibug"}
    assert {"eye", "nose", "mouth", "face", "neck", "eyeball", "lips", "ear", "scalp"} <= set(model.region_masks)
    np.testing.assert_allclose(model.identity_basis.flatten(1).norm(dim=1).numpy(), 1.0, atol=1e-3)


def test_frame(model: MorphableModel) -> None:
    mean = model.mean
    landmarks = points(model, mean)
    tip = mean[mean[:, 2].argmax()]
    assert (tip - landmarks[30]).norm() < 8.0, "the nose tip is nearest to the viewer"
    assert landmarks[8, 1] < landmarks[57, 1] < landmarks[33, 1] < landmarks[27, 1] < mean[:, 1].max()
    assert landmarks[36, 0] < 0 < landmarks[45, 0], "the subject's right eye is on the image left"
    assert 80.0 < (landmarks[36] - landmarks[45]).norm() < 100.0, "outer eye corners of an adult, millimetres"
    normals = model.vertex_normals(mean[None])[0]
    outward = (normals * (mean - mean.mean(0))).sum(-1)
    assert (outward[model.region_masks["scalp"]] > 0).float().mean() > 0.99, "triangles are seen from outside"


def test_actions_move_the_right_part_of_the_right_side(model: MorphableModel) -> None:
    brow = act(model, "browOuterUpLeft")
    moved = brow[:, 1] > 3.0
    assert moved.any()
    assert (model.mean[moved, 0] > 0).all(), "the subject's left brow is on the image right"
    chin = points(model, model.mean + act(model, "jawOpen"))[8] - points(model, model.mean)[8]
    assert chin[1] < -15.0
    corner = points(model, model.mean + act(model, "mouthSmileRight"))[48] - points(model, model.mean)[48]
    assert corner[0] < -2.0
    assert corner[1] > 2.0
    lids = points(model, model.mean + act(model, "eyeBlinkLeft"))
    closed, opened = (lids[43] - lids[47]).norm(), (lids[38] - lids[40]).norm()
    assert closed < 0.4 * opened
    # Facial actions leave the skull where it is: no re-posing of the head with the jaw.
    assert act(model, "jawOpen")[model.region_masks["scalp"]].norm(dim=-1).max() < 0.5


def test_lips_part_when_the_jaw_opens(model: MorphableModel) -> None:
    opened = points(model, model.mean + act(model, "jawOpen"))
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        assert opened[upper, 1] - opened[lower, 1] > 15.0


def test_mirror_symmetry(model: MorphableModel) -> None:
    mirror = model.mirror
    assert mirror is not None
    torch.testing.assert_close(model.mean[mirror] * FLIP_X, model.mean, atol=1e-4, rtol=0)
    for basis in model.identity_basis:
        flipped = basis[mirror] * FLIP_X
        assert min((flipped - basis).abs().max(), (flipped + basis).abs().max()) < 1e-4
    for name in model.expression_names:
        other = name.replace("Left", "@").replace("Right", "Left").replace("@", "Right")
        torch.testing.assert_close(act(model, name)[mirror] * FLIP_X, act(model, other), atol=0.03, rtol=0)
    for embedding in model.landmark_embeddings:
        landmarks = points(model, model.mean, embedding)
        torch.testing.assert_close(landmarks[list(FLIP_68)] * FLIP_X, landmarks, atol=1e-3, rtol=0)
    for name, mask in model.region_masks.items():
        assert torch.equal(mask[mirror], mask), name


def test_landmark_weights(model: MorphableModel) -> None:
    for triangle, weights in model.landmark_embeddings.values():
        assert triangle.shape == (68,)
        assert weights.min() >= 0.0
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(68), atol=1e-5, rtol=0)


def test_regions(model: MorphableModel) -> None:
    masks = model.region_masks
    assert not (masks["face"] & masks["neck"]).any()
    for name in ("eye", "nose", "mouth"):
        assert (masks[name] & ~masks["face"]).sum() == 0, name
    assert not (masks["eye"] & masks["nose"]).any()
    assert not (masks["mouth"] & masks["nose"]).any()
    throat = masks["neck"] & (model.mean[:, 0].abs() < 15.0) & (model.mean[:, 2] > 20.0)
    assert throat.any()
    assert model.mean[throat, 1].max() < points(model, model.mean)[8, 1] + 3.0


def test_uv_is_injective_and_symmetric(model: MorphableModel) -> None:
    assert model.uv is not None
    assert model.uv_faces is not None
    assert model.uv_face_ids is not None
    uv, faces = model.uv.double().numpy(), model.uv_faces.numpy()
    assert uv.min() >= 0.0
    assert uv.max() <= 1.0
    # v points down, so triangles that are counter-clockwise on the face have negative area here: all of them.
    area = -triangle_areas(uv, faces)
    assert area.min() > 1e-8
    assert len(np.unique(model.uv_face_ids.numpy())) == len(faces)
    # Locally injective with disjoint parts: no texel centre lies in two triangles.
    size = 512
    hits = np.zeros((size, size), np.int64)
    for triangle in uv[faces] * size - 0.5:
        low, high = np.ceil(triangle.min(0)).astype(int), np.floor(triangle.max(0)).astype(int)
        if (high < low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        inside = np.ones(x.shape, bool)
        for k in range(3):
            (x0, y0), (x1, y1) = triangle[k], triangle[(k + 1) % 3]
            inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) < -1e-9
        hits[y[inside], x[inside]] += 1
    assert hits.max() == 1
    assert (hits == 1).mean() > 0.9, "the map fills the square"
    # Facing right on the face is right in the map, up is up, and the middle line is u = 0.5.
    corners = model.faces[model.uv_face_ids].flatten()
    x, y = model.mean[corners, 0].numpy(), model.mean[corners, 1].numpy()
    flat = uv[faces.ravel()]
    assert np.corrcoef(x, flat[:, 0])[0, 1] > 0.9
    assert np.corrcoef(y, flat[:, 1])[0, 1] < -0.9
    assert np.abs(flat[np.abs(x) < 1e-3, 0] - 0.5).max() < 1e-3


def test_every_landmark_lies_in_the_uv_map(model: MorphableModel) -> None:
    assert model.uv_face_ids is not None
    mapped = set(model.uv_face_ids.tolist())
    for triangle, _ in model.landmark_embeddings.values():
        assert set(triangle.tolist()) <= mapped


def test_albedo(model: MorphableModel) -> None:
    assert model.albedo_mean is not None
    assert model.albedo_std is not None
    assert model.albedo_mean.shape == (3, 256, 256)
    assert 0.0 <= model.albedo_mean.min() <= model.albedo_mean.max() <= 1.0
    light = torch.zeros(2, len(model.albedo_std))
    light[:, model.albedo_names.index("skin_light")] = torch.tensor([-2.0, 2.0])
    dark, fair = model.albedo(light).mean(dim=(2, 3))
    assert (fair / dark > 2.0).all()

    def colour(embedding: str, ids: list[int]) -> torch.Tensor:
        assert model.uv is not None
        assert model.uv_faces is not None
        assert model.uv_face_ids is not None
        assert model.albedo_mean is not None
        triangle, weights = (value[ids] for value in model.landmark_embeddings[embedding])
        rows = torch.tensor([int((model.uv_face_ids == t).nonzero()[0]) for t in triangle])
        place = (model.uv[model.uv_faces[rows]] * weights[..., None]).sum(1).mul(256).long().clamp(0, 255)
        return model.albedo_mean[:, place[:, 1], place[:, 0]].mean(1)

    skin, lips, brows = colour("bfm", [27, 28]), colour("bfm", [61, 62, 63, 65, 66, 67]), colour("bfm", [19, 24])
    assert lips[1] / lips[0] < 0.85 * skin[1] / skin[0], "lips are redder than skin"
    assert brows.mean() < 0.85 * skin.mean(), "brows are darker than skin"


def test_random_faces_are_faces(model: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(64, model.num_identity, generator=generator)
    vertices = model.vertices(identity, torch.zeros(64, model.num_expression))
    landmarks = model.landmarks(vertices)
    distance = (landmarks[:, 45] - landmarks[:, 36]).norm(dim=-1)
    assert 75.0 < distance.min() < distance.max() < 110.0
    assert (landmarks[:, 33, 1] > landmarks[:, 51, 1]).all()
    assert (landmarks[:, 30, 2] > landmarks[:, 27, 2]).all()


@pytest.mark.skipif(DATA is None, reason="LIGHTNING_FACES_DATA is not set")
def test_bfm_landmarks_agree_with_the_basel_mean(model: MorphableModel) -> None:
    with (Path(str(DATA)) / "landmarks" / "bfm_mean_68.csv").open() as file:
        rows = [row for row in csv.reader(file) if row and row[0].isdigit()]
    basel = torch.tensor([[float(value) for value in row[1:]] for row in rows], dtype=torch.float64) / 1000.0
    ours = points(model, model.mean).double()
    scale, rotation, translation = similarity_transform(basel, ours)
    error = (apply_similarity(basel, scale, rotation, translation) - ours).norm(dim=-1)
    assert error.mean() < 3.0
    assert error.max() < 8.0
    # The frame is the Basel model's: no rotation is left between the two.
    angle = torch.rad2deg(torch.acos(((rotation.trace() - 1) / 2).clamp(-1, 1)))
    assert angle < 3.0
