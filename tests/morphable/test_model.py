"""MorphableModel on small shapes with known answers, its file, and its complaints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable import MorphableModel

TETRAHEDRON = np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]])
OUTWARD = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
UV = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def tetrahedron(**changes: object) -> MorphableModel:
    identity = np.zeros((1, 4, 3))
    identity[0, 1, 0] = 1.0
    expression = np.zeros((2, 4, 3))
    expression[0, 3, 2] = 4.0
    expression[1, 2, 1] = -2.0
    fields: dict[str, object] = {
        "name": "tetrahedron",
        "mean": TETRAHEDRON,
        "faces": OUTWARD,
        "identity_basis": identity,
        "identity_std": [3.0],
        "expression_basis": expression,
        "expression_std": [1.0, 1.0],
        "expression_kind": "blendshapes",
        "expression_names": ["up", "down"],
        "landmark_embeddings": {"bfm": ([3, 0], [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])},
        "region_masks": {"nose": [False, False, False, True]},
    }
    return MorphableModel(**{**fields, **changes})  # type: ignore[arg-type]


def test_coefficients_are_in_standard_deviations() -> None:
    model = tetrahedron()
    vertices = model.vertices(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 0.0], [0.5, 1.0]]))
    expected = np.stack([TETRAHEDRON, TETRAHEDRON])
    expected[0, 1, 0] += 2.0 * 3.0
    expected[1, 3, 2] += 0.5 * 4.0
    expected[1, 2, 1] -= 2.0
    np.testing.assert_allclose(vertices.numpy(), expected, atol=1e-6)
    assert (model.num_vertices, model.num_identity, model.num_expression, model.num_coefficients) == (4, 1, 2, 3)


def test_landmarks_are_barycentric_points_that_move_with_the_surface() -> None:
    model = tetrahedron()
    points = model.landmarks(model.vertices(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 2)))
    np.testing.assert_allclose(points[0].numpy(), [[2.0, 3.0, 5.0], [0.0, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(points[1, 0].numpy(), [2.0 + 0.2 * 3.0, 3.0, 5.0], atol=1e-6)


def test_vertex_normals_point_outwards() -> None:
    model = tetrahedron()
    normals = model.vertex_normals(model.mean[None])[0]
    np.testing.assert_allclose(normals.norm(dim=-1).numpy(), 1.0, atol=1e-6)
    # The corner at the origin sees the three axis planes, of equal area.
    np.testing.assert_allclose(normals[0].numpy(), -np.ones(3) / np.sqrt(3.0), atol=1e-6)


def test_gradients_reach_the_coefficients() -> None:
    model = tetrahedron()
    identity = torch.zeros(1, 1, requires_grad=True)
    model.vertices(identity, torch.zeros(1, 2)).sum().backward()
    assert identity.grad is not None
    assert identity.grad.item() == pytest.approx(3.0)


def test_saved_and_loaded_model_is_the_same(tmp_path: Path) -> None:
    model = tetrahedron(mean=TETRAHEDRON + 0.123456, albedo_mean=np.full((3, 4, 4), 0.3), albedo_std=[0.1],
                        albedo_basis=np.linspace(0, 1, 48).reshape(1, 3, 4, 4), albedo_names=["light"])  # fmt: skip
    model.save(tmp_path / "model.npz")
    again = MorphableModel.load(tmp_path / "model.npz")
    assert again.hash == model.hash
    assert again.expression_names == ("up", "down")
    assert again.expression_kind == "blendshapes"
    assert set(again.landmark_embeddings) == {"bfm"}
    assert again.uv is None
    for key, value in model.named_buffers():
        assert torch.equal(value, dict(again.named_buffers())[key]), key
    assert again.to_bytes() == model.to_bytes()


def test_hash_follows_the_content_and_not_the_name() -> None:
    moved = TETRAHEDRON.copy()
    moved[0, 0] = 1e-3
    assert tetrahedron(name="other").hash == tetrahedron().hash
    assert tetrahedron(mean=moved).hash != tetrahedron().hash
    assert len(tetrahedron().hash) == 16


def test_state_dict_is_empty_and_device_moves_follow() -> None:
    model = tetrahedron()
    assert len(model.state_dict()) == 0
    assert model.to(torch.float64).landmark_embeddings["bfm"][1].dtype == torch.float64


def test_albedo_is_clamped() -> None:
    model = tetrahedron(albedo_mean=np.full((3, 2, 2), 0.5), albedo_basis=np.ones((1, 3, 2, 2)), albedo_std=[0.2])
    image = model.albedo(torch.tensor([[1.0], [5.0]]))
    np.testing.assert_allclose(image[:, 0, 0, 0].numpy(), [0.7, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity_std": [1.0, 2.0]}, "identity_std"),
        ({"faces": [*OUTWARD[:3], [0, 1, 9]]}, "faces has an index"),
        ({"expression_names": ["one"]}, "expression names"),
        ({"expression_kind": "muscles"}, "muscles"),
        ({"region_masks": {"nose": [True]}}, "nose"),
        ({"landmark_embeddings": {"bfm": ([7], [[1.0, 0.0, 0.0]])}}, "missing triangle"),
        ({"mean": 3.0}, r"mean has shape \(\) but \(V, 3\) is needed"),
        ({"faces": OUTWARD[0]}, r"faces has shape \(3,\) but \(F, 3\) is needed"),
        ({"expression_basis": 1.0}, r"expression_basis has shape \(\) but \(Ke, 4, 3\) is needed"),
        ({"faces": np.zeros((0, 3)), "landmark_embeddings": {}}, "it has 4 vertices and 0 triangles"),
        ({"mean": TETRAHEDRON * np.nan}, r"mean has 12 values that are not finite"),
        ({"identity_std": [np.inf]}, "identity_std has 1 value that is not finite"),
        ({"landmark_embeddings": {"bfm": ([0], [[np.nan, 0.0, 1.0]])}}, "'bfm' has 1 value that is not finite"),
        ({"uv": UV}, "has uv but no uv_faces and no uv_face_ids: give all of them or none"),
        ({"uv": UV, "uv_faces": OUTWARD[:2]}, "has uv and uv_faces but no uv_face_ids"),
        ({"uv_face_ids": [0, 1]}, "has uv_face_ids but no uv and no uv_faces"),
        ({"uv": UV, "uv_faces": OUTWARD[:2] + 1, "uv_face_ids": [0, 1]}, r"uv_faces has an index outside 0\.\.3"),
        ({"uv": UV, "uv_faces": OUTWARD[:2], "uv_face_ids": [0, 4]}, r"uv_face_ids has an index outside 0\.\.3"),
        ({"uv": UV, "uv_faces": OUTWARD[:2], "uv_face_ids": [0]}, r"uv_face_ids has shape \(1,\) but \(2,\)"),
        ({"uv": UV + np.nan, "uv_faces": OUTWARD[:2], "uv_face_ids": [0, 1]}, "uv has 8 values that are not finite"),
        ({"albedo_mean": np.zeros((3, 2, 2))}, "has albedo_mean but no albedo_basis and no albedo_std"),
        ({"mirror": [0, 1]}, "mirror has shape"),
        ({"mean": [["a", "b", "c"]]}, "mean is not an array of numbers"),
        ({"faces": [[0, 1], [0, 1, 2]]}, "faces is not an array of numbers"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tetrahedron(**changes)


def test_unknown_names_are_named() -> None:
    with pytest.raises(DataError, match=r"nothing\.npz"):
        MorphableModel.load("nothing.npz")
    with pytest.raises(ConfigurationError, match="'ibug'"):
        tetrahedron().landmarks(torch.zeros(1, 4, 3), "ibug")
    with pytest.raises(ConfigurationError, match="no albedo"):
        tetrahedron().albedo(torch.zeros(1, 1))


def test_uv_map_that_fits_is_kept() -> None:
    model = tetrahedron(uv=UV, uv_faces=OUTWARD[:2], uv_face_ids=[0, 1])
    assert model.uv is not None
    np.testing.assert_array_equal(model.uv.numpy(), UV)


@pytest.mark.parametrize("content", [b"", b"not a zip", "other npz", "pickle", "cut", "list", "embedding", "words"])
def test_files_that_are_not_models_are_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "model.npz"
    tetrahedron().save(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pickle":
        np.savez(path, header=np.array({"format": 1}, dtype=object))
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "list":
        np.savez(path, header=np.array("[1, 2]"))
    elif content == "other npz":
        np.savez(path, weights=np.zeros(3))
    else:
        change = {"landmarks/other/triangle": np.zeros(1, np.int64)} if content == "embedding" else {"mean": ["a", "b"]}
        with np.load(path) as archive:
            np.savez(path, **{**archive, **change})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"model\.npz"):
        MorphableModel.load(path)


def test_damaged_bytes_of_a_file_are_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    model = tetrahedron(mean=TETRAHEDRON + 0.123456)
    model.save(path)
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = whole.copy()
        damaged[place] ^= 0x5A
        path.write_bytes(damaged)
        try:
            MorphableModel.load(path)
        except DataError as error:
            assert "model.npz" in str(error)
            refused += 1
    # The bytes that zip files hold twice, and dates, are not looked at.
    assert refused > len(whole) // 14
