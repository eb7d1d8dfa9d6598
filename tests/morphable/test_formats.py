"""Importers against files in the real layouts: fakes with known content, and the real SFM and ICT-FaceKit."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import apply_similarity, similarity_transform
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.commands import main_build, main_import
from lightning_faces.morphable.formats import build_from_meshes, import_model
from lightning_faces.morphable.meshes import read_mesh
from lightning_faces.morphable.surface import triangle_areas
from tests.fakes import face_models as fakes

DATA = os.environ.get("LIGHTNING_FACES_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="LIGHTNING_FACES_DATA is not set")


@pytest.fixture(scope="module")
def truth() -> fakes.Truth:
    return fakes.truth()


def check(
    model: MorphableModel, truth: fakes.Truth, moved: bool = False, expression_order: tuple[int, ...] = (0, 1)
) -> None:
    """Same shapes, in mm, for the same coefficients; triangles counter-clockwise; derived fields there.

    ``moved``: the importer places the head itself, so shapes are compared after a rigid alignment.
    """
    assert model.num_identity >= len(truth.identity)
    generator = np.random.default_rng(0)
    identity = np.zeros((1, model.num_identity))
    identity[0, : len(truth.identity)] = generator.normal(size=len(truth.identity))
    expression = generator.normal(size=(1, model.num_expression))
    shape = model.vertices(torch.from_numpy(identity).float(), torch.from_numpy(expression).float())[0].double()
    expected = truth.mean + np.einsum("k,kvd->vd", identity[0, : len(truth.identity)], truth.identity)
    expected = expected + np.einsum("k,kvd->vd", expression[0], truth.expression[list(expression_order)])
    if moved:
        fit = similarity_transform(shape, torch.from_numpy(expected), with_scale=False)
        shape = apply_similarity(shape, *fit)
        mean_move = model.mean.double().numpy() - truth.mean
        assert np.abs(mean_move).max() < 2.0, "the head sits where the embedded one does"
    np.testing.assert_allclose(shape.numpy(), expected, atol=0.02)
    corners = truth.mean[model.faces.numpy()]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals * (corners.mean(1) - truth.mean.mean(0))).sum() > 0
    assert set(model.landmark_embeddings) == {"bfm", "ibug"}
    assert {"eye", "nose", "mouth", "face", "neck"} <= set(model.region_masks)


@pytest.mark.parametrize("expressions", ["Model_Expression.mat", "Exp_Pca.bin"])
def test_bfm2009(tmp_path: Path, truth: fakes.Truth, expressions: str) -> None:
    lines: list[str] = []
    model = import_model("bfm2009", fakes.write_bfm2009(tmp_path, truth, expressions), report=lines.append)
    check(model, truth)
    assert any("clockwise" in line for line in lines)
    own = model.landmarks(model.mean[None], "bfm")[0].numpy()
    np.testing.assert_allclose(own, truth.mean[truth.landmarks], atol=1e-3)
    np.testing.assert_allclose(model.identity_basis.flatten(1).norm(dim=1).numpy(), 1.0, atol=1e-4)
    # The mean offset of the expressions is part of the mean face.
    np.testing.assert_allclose(model.mean.numpy(), truth.mean, atol=1e-3)
    assert model.albedo_mean is not None
    assert model.albedo_std is not None
    np.testing.assert_allclose(model.albedo_mean.numpy(), 0.5, atol=1e-5)
    np.testing.assert_allclose(model.albedo_std.numpy(), [300 / 255, 100 / 255], atol=1e-5)


def test_bfm2009_without_trimming_has_no_landmarks_of_its_own(tmp_path: Path, truth: fakes.Truth) -> None:
    lines: list[str] = []
    model = import_model("bfm2009", fakes.write_bfm2009(tmp_path, truth, trimmed=False), report=lines.append)
    check(model, truth)
    error = model.landmarks(model.mean[None])[0].numpy() - truth.mean[truth.landmarks]
    # The truth are vertices, the result points of the surface between them.
    assert np.linalg.norm(error, axis=1).mean() < 2.5
    assert any("closest points" in line for line in lines)


def test_300w_lp(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("300w-lp", fakes.write_300wlp(tmp_path, truth), name="mine")
    check(model, truth)
    assert model.name == "mine"
    assert torch.equal(model.region_masks["nose"], torch.arange(len(truth.mean)) % 4 == 0)
    assert torch.equal(model.region_masks["mouth"], torch.arange(len(truth.mean)) % 4 == 2)


def test_face3d(tmp_path: Path, truth: fakes.Truth) -> None:
    check(import_model("face3d", fakes.write_face3d(tmp_path / "BFM.mat", truth)), truth)


def test_bfm2017(tmp_path: Path, truth: fakes.Truth) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    check(import_model("bfm2017", fakes.write_bfm2017(tmp_path / "model2017.h5", truth)), truth)


def test_bfm2017_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="pip install h5py"):
        import_model("bfm2017", tmp_path / "model.h5")


def test_sfm(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("sfm", fakes.write_sfm(tmp_path, truth))
    check(model, truth, moved=True)
    assert model.expression_names == ("joy", "anger")
    assert model.expression_kind == "blendshapes"


def test_ict_facekit(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("ict-facekit", fakes.write_ict(tmp_path, truth))
    assert model.expression_names == ("browDown_L", "jawOpen"), "those that are listed and there"
    check(model, truth, moved=True, expression_order=(1, 0))


def test_flame(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("flame", fakes.write_flame(tmp_path / "generic_model.pkl", truth))
    check(model, truth, moved=True)
    assert model.num_identity == 300
    values = {"v_template": truth.mean / 1e3, "f": truth.faces, "shapedirs": np.zeros((len(truth.mean), 3, 301))}
    np.savez(tmp_path / "flame.npz", **values)
    assert import_model("flame", tmp_path / "flame.npz").num_expression == 1


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made_by_the_pickle",)


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generic_model.pkl").write_bytes(pickle.dumps({"v_template": Malicious()}, protocol=2))
    with pytest.raises(DataError, match=r"mkdir.*numpy\.savez"):
        import_model("flame", tmp_path / "generic_model.pkl")
    assert not (tmp_path / "made_by_the_pickle").exists()


def test_derived_uv_is_injective(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("face3d", fakes.write_face3d(tmp_path / "BFM.mat", truth))
    assert model.uv is not None
    assert model.uv_faces is not None
    assert (-triangle_areas(model.uv.double().numpy(), model.uv_faces.numpy())).min() > 0.0


@pytest.mark.parametrize(
    ("format", "name", "content", "message"),
    [
        ("bfm2009", "01_MorphableModel.mat", b"junk", "not a MATLAB file"),
        ("face3d", "BFM.mat", b"", "not a MATLAB file"),
        ("sfm", "sfm_shape_3448.bin", b"\x01\x00\x00\x00\xff", "ends too early"),
        ("sfm", "sfm_shape_3448.bin", b"\x07\x00\x00\x00", "version 7"),
        ("flame", "generic_model.pkl", b"\x80\x02]q\x00.", "no array 'v_template'"),
        ("flame", "generic_model.pkl", b"", "numpy.savez"),
        ("ict-facekit", "generic_neutral_mesh.obj", b"v 1 2 x\n", "not a readable .obj"),
        ("ict-facekit", "other.txt", b"", "generic_neutral_mesh.obj"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, format: str, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        import_model(format, tmp_path)


def test_wrong_requests_are_named(tmp_path: Path, truth: fakes.Truth) -> None:
    with pytest.raises(ConfigurationError, match="'bfm'"):
        import_model("bfm", tmp_path)
    with pytest.raises(DataError, match="missing"):
        import_model("sfm", tmp_path / "missing")
    fakes.write_bfm2009(tmp_path, truth)
    (tmp_path / "Exp_Pca.bin").write_bytes(b"\x01\x00\x00\x00" * 9)
    with pytest.raises(DataError, match=r"Exp_Pca\.bin"):
        import_model("bfm2009", tmp_path, tmp_path / "Exp_Pca.bin")


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
    fakes.write_obj(folder / "expressions" / "p0__open.obj", (shapes[0] + truth.expression[0]) / 10, truth.faces)
    model = build_from_meshes(folder, modes=3, unit="cm")
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
    move = (model.expression_basis[0] * model.expression_std[0]).numpy()
    lengths = np.linalg.norm(truth.expression[0], axis=1)
    np.testing.assert_allclose(np.linalg.norm(move, axis=1), lengths, atol=0.05 * lengths.max())


def test_meshes_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    points, faces = np.eye(4, 3), np.array([[0, 1, 2]])
    for k in range(2):
        fakes.write_obj(tmp_path / f"{k}.obj", points, faces)
    with pytest.raises(DataError, match="at least 3"):
        build_from_meshes(tmp_path)
    fakes.write_obj(tmp_path / "2.obj", np.eye(5, 3), faces)
    with pytest.raises(DataError, match=r"2\.obj has 5 vertices"):
        build_from_meshes(tmp_path)
    with pytest.raises(ConfigurationError, match="'inch'"):
        build_from_meshes(tmp_path, unit="inch")


def test_commands_write_a_model_or_nothing(
    tmp_path: Path, truth: fakes.Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "model.npz"
    out.parent.mkdir()
    fakes.write_face3d(tmp_path / "BFM.mat", truth)
    assert main_import(["face3d", str(tmp_path), "--out", str(out)]) == 0
    model = MorphableModel.load(out)
    printed = capsys.readouterr().out
    assert model.hash in printed
    assert "Landmarks 'bfm': 68 of 68 from the file" in printed
    broken = tmp_path / "out" / "broken.npz"
    with pytest.raises(DataError):
        main_build([str(tmp_path), "--out", str(broken)])
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.npz"]


@needs_data
def test_real_sfm_agrees_with_its_landmark_map() -> None:
    """The 50 points of the file's own map against the embedded model's, after a similarity."""
    model = import_model("sfm", Path(str(DATA)) / "sfm")
    assert (model.num_vertices, model.num_identity, model.num_expression) == (3448, 63, 6)
    text = (Path(str(DATA)) / "sfm" / "ibug_to_sfm.txt").read_text().split("[contour_landmarks]")[0]
    pairs = [(int(a) - 1, int(b)) for a, b in re.findall(r"^\s*(\d+)\s*=\s*(\d+)", text, re.MULTILINE)]
    assert len(pairs) == 50
    points = model.landmarks(model.mean[None], "ibug")[0]
    for number, vertex in pairs:
        torch.testing.assert_close(points[number], model.mean[vertex])
    embedded = MorphableModel.load("embedded")
    theirs = embedded.landmarks(embedded.mean[None], "ibug")[0].double()
    ids = [number for number, _ in pairs]
    scale, rotation, translation = similarity_transform(points[ids].double(), theirs[ids])
    error = (apply_similarity(points[ids].double(), scale, rotation, translation) - theirs[ids]).norm(dim=-1)
    assert error.mean() < 4.0
    assert 0.9 < scale < 1.2
    # The subject's right is -x, up is +y, the viewer +z; unit modes.
    assert points[36, 0] < 0 < points[45, 0]
    assert points[8, 1] < points[27, 1]
    assert points[30, 2] > points[[0, 16], 2].max()
    np.testing.assert_allclose(model.identity_basis.flatten(1).norm(dim=1).numpy(), 1.0, atol=1e-3)


@needs_data
def test_real_ict_facekit_agrees_with_its_readme() -> None:
    model = import_model("ict-facekit", Path(str(DATA)) / "ict_facekit")
    readme = (Path(str(DATA)) / "ict_facekit" / "README.md").read_text()
    listed = readme.split("Multi-PIE 68 point facial landmarks indices:")[1].split("!")[0]
    indices = [int(value) for value in listed.replace(",", " ").split()]
    assert len(indices) == 68
    points = model.landmarks(model.mean[None], "ibug")[0]
    # Vertices up to the eyeballs keep their numbers.
    torch.testing.assert_close(points, model.mean[indices])
    assert points[36, 0] < 0 < points[45, 0]
    assert 80.0 < (points[36] - points[45]).norm() < 100.0, "outer eye corners in mm"
    opened = torch.zeros(1, model.num_expression)
    opened[0, model.expression_names.index("jawOpen")] = 1.0
    chin = model.landmarks(model.vertices(torch.zeros(1, model.num_identity), opened), "ibug")[0, 8] - points[8]
    assert chin[1] < -10.0
    embedded = MorphableModel.load("embedded")
    gap = points[17:] - embedded.landmarks(embedded.mean[None], "ibug")[0, 17:]
    assert gap.norm(dim=-1).mean() < 5.0
