"""Meshes from files, and a face model made of registered ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import apply_similarity, similarity_transform
from lightning_faces.morphable.formats import build_from_meshes
from lightning_faces.morphable.meshes import read_mesh
from tests.fakes import face_models as fakes


@pytest.fixture(scope="module")
def truth() -> fakes.Truth:
    return fakes.truth()


@pytest.mark.parametrize("kind", ["obj", "ascii ply", "binary ply"])
def test_meshes(tmp_path: Path, kind: str) -> None:
    points, faces = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1.5, 0], [0, 0, 2]]), np.array([[0, 2, 1], [1, 2, 3]])
    if kind == "obj":
        path = fakes.write_obj(tmp_path / "m.obj", points, faces)
    else:
        path = fakes.write_ply(tmp_path / "m.ply", points, faces, kind.startswith("binary"))
    read_points, read_faces = read_mesh(path)
    np.testing.assert_allclose(read_points, points)
    np.testing.assert_array_equal(read_faces, faces)
    quad = tmp_path / "quad.obj"
    quad.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1//1 2//1 3//1 4//1\nf -4 -3 -2\n")
    np.testing.assert_array_equal(read_mesh(quad)[1], [[0, 1, 2], [0, 2, 3], [0, 1, 2]])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.obj", "v 0 0\nv 0 1\nv 1 0\n"),
        ("m.obj", "v 0 0 0\nf 1 1 99999999999999999999\n"),
        ("m.obj", "v 0 0 inf\n"),
        ("m.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n"),
        (
            "m.ply",
            "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n3 inf 1 2\n",
        ),
        ("m.ply", "ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\n1\n"),
        ("m.ply", "ply\nformat ascii 1.0\nelement vertex -1\nproperty float x\nend_header\n1\n"),
        ("m.ply", "ply\nproperty float x\nend_header\n"),
        ("m.ply", ""),
        ("m.obj", None),
    ],
)
def test_broken_meshes_are_named(tmp_path: Path, name: str, content: str | None) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=re.escape(name)):
        read_mesh(path)


def rotation_onto(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation with which ``source @ rotation`` is nearest to ``target``, apart from its place."""
    turn: np.ndarray = Rotation.align_vectors(target - target.mean(0), source - source.mean(0))[0].as_matrix().T
    return turn


def test_model_from_meshes_reproduces_them(tmp_path: Path, truth: fakes.Truth) -> None:
    generator = np.random.default_rng(3)
    coefficients = generator.normal(size=(6, 3))
    coefficients -= coefficients.mean(0)
    shapes = truth.mean + np.einsum("nk,kvd->nvd", coefficients, truth.identity)
    folder = tmp_path / "people"
    (folder / "expressions").mkdir(parents=True)
    for k, shape in enumerate(shapes):
        turn = np.radians(10.0 * k)
        rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        placed = (shape if k == 0 else shape @ rotation.T + 20.0) / 10
        write = fakes.write_obj if k % 2 else lambda p, v, f: fakes.write_ply(p.with_suffix(".ply"), v, f, True)
        write(folder / f"p{k}.obj", placed, truth.faces)
        if k in (0, 3):
            moved = truth.expression[0] @ (np.eye(3) if k == 0 else rotation.T)
            fakes.write_obj(folder / "expressions" / f"p{k}__open.obj", placed + moved / 10, truth.faces)
    model = build_from_meshes(folder, modes=3, expression_modes=1, unit="cm")
    assert model.name == "people"
    assert (model.num_identity, model.num_expression) == (3, 1)
    np.testing.assert_allclose(model.identity_basis.flatten(1).norm(dim=1).numpy(), 1.0, atol=1e-4)
    # Three modes made the shapes, so three modes explain them: every mesh is reached by some coefficients.
    basis = model.identity_basis.flatten(1).double()
    for shape in shapes:
        target = torch.from_numpy(shape)
        target = apply_similarity(target, *similarity_transform(target, model.mean.double(), with_scale=False))
        for _ in range(3):
            weights = basis @ (target - model.mean).flatten()
            fitted = model.mean + (weights @ basis).reshape(-1, 3)
            target = apply_similarity(target, *similarity_transform(target, fitted, with_scale=False))
        assert (fitted - target).norm(dim=-1).max() < 1.0
    # Both subjects made the same move, one of them turned by 30 degrees: one mode, in the mean face's frame.
    move = (model.expression_basis[0] * model.expression_std[0]).numpy()
    top = np.linalg.norm(truth.expression[0], axis=1).max()
    turn = rotation_onto(truth.mean, model.mean.double().numpy())
    expected = truth.expression[0] @ turn
    assert np.abs(move * np.sign((move * expected).sum()) - expected).max() < 0.05 * top


def test_rounding_is_no_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the meshes of a folder are copies: two modes are all that there is, and one of expressions."""
    monkeypatch.setattr("lightning_faces.morphable.formats.checks.complete", lambda parts, report: parts)
    generator = np.random.default_rng(0)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    shapes = generator.normal(size=(3, 6, 3)) * 50.0
    (tmp_path / "expressions").mkdir()
    for k in range(5):
        fakes.write_obj(tmp_path / f"p{k}.obj", shapes[k % 3], faces)
        moved = shapes[k % 3] + (k + 1.0) * np.array([[0, 3.0, 0]] + 5 * [[0, 0, 0]])
        fakes.write_obj(tmp_path / "expressions" / f"p{k}__up.obj", moved, faces)
    lines: list[str] = []
    parts = build_from_meshes(tmp_path, report=lines.append)
    assert lines == ["5 meshes: 2 identity modes hold 100.0% of the variance."]
    assert parts.identity_basis.shape == (2, 6, 3)
    assert len(parts.identity_std) == 2
    # One vertex moved, in three frames of the aligned subjects.
    assert len(parts.expression_std) == len(parts.expression_basis) == 3


def test_meshes_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    points, faces = 100.0 * np.eye(4, 3), np.array([[0, 1, 2]])
    for k in range(2):
        fakes.write_obj(tmp_path / f"{k}.obj", points, faces)
    with pytest.raises(DataError, match="at least 3"):
        build_from_meshes(tmp_path)
    fakes.write_obj(tmp_path / "2.obj", 100.0 * np.eye(5, 3), faces)
    with pytest.raises(DataError, match=r"2\.obj has 5 vertices"):
        build_from_meshes(tmp_path)
    fakes.write_obj(tmp_path / "2.obj", points, np.array([[0, 2, 1]]))
    with pytest.raises(DataError, match=r"triangles of .*2\.obj .* of .*0\.obj: the meshes must be registered"):
        build_from_meshes(tmp_path)
    fakes.write_obj(tmp_path / "2.obj", points, faces)
    with pytest.raises(DataError, match=r"3 meshes .* have all the same shape"):
        build_from_meshes(tmp_path)
    # So are copies that are only placed elsewhere.
    fakes.write_obj(tmp_path / "2.obj", points[:, [1, 2, 0]] + 9.0, faces)
    with pytest.raises(DataError, match=r"3 meshes .* have all the same shape"):
        build_from_meshes(tmp_path)
    fakes.write_obj(tmp_path / "2.obj", 1.1 * points, faces)
    (tmp_path / "expressions").mkdir()
    expression = tmp_path / "expressions" / "1__open.obj"
    fakes.write_obj(expression, 2.0 * points, np.array([[0, 2, 1]]))
    with pytest.raises(DataError, match=r"triangles of .*1__open\.obj"):
        build_from_meshes(tmp_path)
    fakes.write_obj(expression, points, faces)
    with pytest.raises(DataError, match=r"1 expressions .* are neutral"):
        build_from_meshes(tmp_path)
    with pytest.raises(ConfigurationError, match="'inch'"):
        build_from_meshes(tmp_path, unit="inch")
