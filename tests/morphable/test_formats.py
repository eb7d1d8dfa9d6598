"""Importers against files in the real layouts: fakes with known content, and the real SFM and ICT-FaceKit."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from lightning_faces.commands import build_model
from lightning_faces.commands import import_model as import_command
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import apply_similarity, similarity_transform
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.formats import arkit_name, build_from_meshes, import_model
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


def test_colours_are_drawn_where_their_vertices_are(tmp_path: Path, truth: fakes.Truth) -> None:
    """Red grows to the image right, green upwards; mode 0 is blue on the image right alone."""
    fakes.write_300wlp(tmp_path, truth)
    file = tmp_path / "Model_Shape.mat"
    values = {key: value for key, value in scipy.io.loadmat(file).items() if not key.startswith("__")}
    colours = np.stack([0.5 + truth.mean[:, 0] / 400, 0.5 + truth.mean[:, 1] / 400, np.full(len(truth.mean), 0.2)], 1)
    blue = np.zeros_like(colours)
    blue[:, 2] = truth.mean[:, 0] / 1000
    values |= {
        "mu_tex": 255 * colours.reshape(-1, 1),
        "w_tex": blue.reshape(-1, 1),
        "sigma_tex": np.full((1, 1), 510.0),
    }
    scipy.io.savemat(file, values)
    model = import_model("300w-lp", tmp_path)
    assert model.uv is not None
    assert model.uv_faces is not None
    assert model.uv_face_ids is not None
    images = model.albedo(torch.tensor([[0.0], [1.0]]))
    texel = (model.uv[model.uv_faces].mean(1) * images.shape[-1]).long()
    place = model.mean[model.faces[model.uv_face_ids]].mean(1)
    mean, changed = images[:, :, texel[:, 1], texel[:, 0]]
    assert (mean[0] - (0.5 + place[:, 0] / 400)).abs().mean() < 0.005
    assert (mean[1] - (0.5 + place[:, 1] / 400)).abs().mean() < 0.005
    right = place[:, 0] > 5.0
    assert (changed[2] - mean[2] - 2.0 * place[:, 0] / 1000)[right].abs().mean() < 0.005


def test_face3d(tmp_path: Path, truth: fakes.Truth) -> None:
    check(import_model("face3d", fakes.write_face3d(tmp_path / "BFM.mat", truth)), truth)


def test_bfm2017(tmp_path: Path, truth: fakes.Truth) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    model = import_model("bfm2017", fakes.write_bfm2017(tmp_path / "model2017.h5", truth))
    check(model, truth)
    # The file holds a variance of 0.01 for a mode that is 1 everywhere.
    change = model.albedo(torch.ones(1, 1)) - model.albedo(torch.zeros(1, 1))
    np.testing.assert_allclose(change.numpy(), 0.1, atol=1e-5)


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


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_uv_map_of_a_file_is_turned_upright(tmp_path: Path, truth: fakes.Truth, upside_down: bool) -> None:
    embedded = MorphableModel.load("embedded")
    assert embedded.uv is not None
    assert embedded.uv_faces is not None
    assert embedded.uv_face_ids is not None
    faces, uv_faces = embedded.faces[embedded.uv_face_ids].numpy(), embedded.uv_faces.numpy()
    used, first = np.unique(faces, return_index=True)
    uv = embedded.uv.double().numpy()[uv_faces.ravel()[first]]
    part = fakes.Truth(
        truth.mean[used], np.searchsorted(used, faces), truth.identity[:, used], truth.expression[:, used], used[:0]
    )
    fakes.write_sfm(tmp_path, part)
    stored = uv.copy()
    if upside_down:
        stored[:, 1] = uv[:, 1].min() + uv[:, 1].max() - uv[:, 1]
    file = tmp_path / "sfm_shape_3448.bin"
    file.write_bytes(file.read_bytes()[:-8] + struct.pack("<Q", len(uv)) + stored.astype("<f8").tobytes())
    lines: list[str] = []
    model = import_model("sfm", tmp_path, report=lines.append)
    assert "UV map taken from the file." in lines
    assert model.uv is not None
    np.testing.assert_allclose(model.uv.numpy(), uv, atol=1e-6)


def cereal(values: np.ndarray) -> bytes:
    return struct.pack("<ii", *values.shape) + values.T.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("mean", "basis", "eigenvalues", "uv", "message"),
    [
        (np.ones((7, 1)), np.ones((6, 2)), np.ones((2, 1)), 0, "mean holds 7 numbers"),
        (np.ones((0, 1)), np.ones((6, 2)), np.ones((2, 1)), 0, "mean holds 0 numbers"),
        (np.ones((6, 1)), np.ones((9, 2)), np.ones((2, 1)), 0, "modes are (9, 2) numbers, for 2 vertices (6, K)"),
        (np.ones((6, 1)), np.ones((6, 2)), np.ones((3, 1)), 0, "holds 3 numbers for 2 modes"),
        (np.ones((6, 1)), np.ones((6, 2)), -np.ones((2, 1)), 0, "the variances holds -1, which no spread can be"),
        (np.ones((6, 1)), np.ones((6, 2)), np.ones((2, 1)), 5, "goes on for 80 bytes after the model"),
    ],
)
def test_sfm_with_shapes_that_do_not_fit_is_named(
    tmp_path: Path, mean: np.ndarray, basis: np.ndarray, eigenvalues: np.ndarray, uv: int, message: str
) -> None:
    empty = cereal(np.zeros((0, 0))) * 3 + struct.pack("<QQ", 0, 0)
    content = struct.pack("<I", 1) + cereal(mean) + cereal(basis) + cereal(eigenvalues)
    content += struct.pack("<Qiii", 1, 0, 1, 0) + empty + bytes(16 * uv)
    (tmp_path / "sfm_shape_3448.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"sfm_shape_3448\.bin.*{re.escape(message)}"):
        import_model("sfm", tmp_path)


def test_sfm_expressions_that_do_not_fit_are_named(tmp_path: Path, truth: fakes.Truth) -> None:
    fakes.write_sfm(tmp_path, truth)
    file = tmp_path / "expression_blendshapes_3448.bin"
    content = file.read_bytes()
    for damaged, message in (
        (
            struct.pack("<QQ", 1, 3) + b"joy" + cereal(np.zeros((9, 1))),
            "'joy' holds 9 numbers, for 4280 vertices 12840",
        ),
        (struct.pack("<Q", 0), "no expressions"),
        (content[:-4], "ends too early"),
        (content + b"1234", "goes on for 4 bytes"),
        (struct.pack("<QQ", 1, 3) + b"joy" + struct.pack("<ii", -1, -12840), "a matrix of -1 x -12840"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"expression_blendshapes_3448\.bin.*{re.escape(message)}"):
            import_model("sfm", tmp_path)


def test_random_bytes_are_never_a_model(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for k in range(60):
        content = generator.integers(0, 256, int(generator.integers(0, 3000)), dtype=np.uint8).tobytes()
        for format, name, start in (
            ("sfm", "m.bin", struct.pack("<I", 1) if k % 2 else b""),
            ("flame", "m.pkl", b"\x80\x02" if k % 2 else b""),
            ("flame", "m.npz", b"PK\x03\x04" if k % 2 else b""),
        ):
            (tmp_path / name).write_bytes(start + content)
            with pytest.raises(DataError, match=re.escape(name)):
                import_model(format, tmp_path / name)


def test_ict_facekit(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("ict-facekit", fakes.write_ict(tmp_path, truth))
    assert model.expression_names == ("browDownLeft", "jawOpen"), "those that are listed and there"
    check(model, truth, moved=True, expression_order=(1, 0))


def test_flame(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("flame", fakes.write_flame(tmp_path / "generic_model.pkl", truth))
    check(model, truth, moved=True)
    assert model.num_identity == 300


def write_npz(path: Path, truth: fakes.Truth, **changes: np.ndarray) -> Path:
    modes = np.concatenate([truth.identity, truth.expression]).transpose(1, 2, 0) / 1e3
    values = {"v_template": truth.mean / 1e3, "f": truth.faces.astype(np.uint32), "shapedirs": modes, **changes}
    np.savez(path, **values)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("count", [1, 299, 300, 301, 400])
def test_flame_has_its_expressions_behind_300_identities(
    tmp_path: Path, truth: fakes.Truth, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("lightning_faces.morphable.formats.checks.complete", lambda parts, report: parts)
    modes = np.zeros((len(truth.mean), 3, count))
    modes[0, 0] = np.arange(count) + 1.0
    parts = import_model("flame", write_npz(tmp_path / "flame.npz", truth, shapedirs=modes))
    std = [*parts.identity_std, *parts.expression_std]
    assert len(parts.identity_basis) == len(parts.identity_std) == min(count, 300)
    assert len(parts.expression_basis) == len(parts.expression_std) == max(count - 300, 0)
    np.testing.assert_allclose(std, 1e3 * (np.arange(count) + 1.0))


def test_flame_with_few_directions_has_no_expressions(tmp_path: Path, truth: fakes.Truth) -> None:
    model = import_model("flame", write_npz(tmp_path / "flame.npz", truth))
    assert (model.num_identity, model.num_expression) == (5, 0)
    both = np.concatenate([truth.identity, truth.expression])
    moves = (model.identity_basis * model.identity_std[:, None, None]).norm(dim=-1)
    np.testing.assert_allclose(moves.numpy(), np.linalg.norm(both, axis=-1), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapedirs": np.zeros((4280, 3, 0))}, "no identity modes"),
        ({"shapedirs": np.zeros((4280, 3))}, "shapedirs of shape (4280, 3) for (4280, 3)"),
        ({"shapedirs": np.zeros((9, 3, 2))}, "shapedirs of shape (9, 3, 2) for (4280, 3)"),
        ({"v_template": np.zeros((0, 3)), "shapedirs": np.zeros((0, 3, 2))}, "v_template of shape (0, 3)"),
        ({"v_template": np.zeros((4, 2)), "shapedirs": np.zeros((4, 2, 2))}, "v_template of shape (4, 2)"),
        ({"f": np.zeros((5, 4))}, "f of shape (5, 4)"),
        ({"f": np.full((5, 3), np.nan)}, "f holds values that are no indices"),
        ({"f": np.full((5, 3), 1 << 40)}, "vertex 1099511627776"),
        ({"shapedirs": np.full((4280, 3, 2), np.nan)}, "not finite"),
        ({"v_template": np.array(["a"])}, "no array 'v_template'"),
    ],
)
def test_flame_with_values_that_do_not_fit_is_named(
    tmp_path: Path, truth: fakes.Truth, changes: dict[str, np.ndarray], message: str
) -> None:
    path = write_npz(tmp_path / "flame.npz", truth, **changes)
    with pytest.raises(DataError, match=rf"flame\.npz.*{re.escape(message)}"):
        import_model("flame", path)


def test_a_model_in_another_unit_is_named_with_the_unit_of_its_format(tmp_path: Path, truth: fakes.Truth) -> None:
    path = write_npz(tmp_path / "flame.npz", truth, v_template=truth.mean)
    with pytest.raises(DataError, match=r"flame\.npz is 2\d{5} mm across.* in metres"):
        import_model("flame", path)
    for k in range(3):
        fakes.write_obj(tmp_path / f"{k}.obj", (1.0 + 0.1 * k) * truth.mean / 1e3, truth.faces)
    with pytest.raises(DataError, match=r"is 0\.2\d* mm across.* in mm: give their unit with --unit"):
        build_from_meshes(tmp_path)


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
        ("bfm2009", "01_MorphableModel.mat", b"junk", "is not a whole MATLAB file"),
        ("face3d", "BFM.mat", b"", "is not a whole MATLAB file"),
        ("sfm", "sfm_shape_3448.bin", b"\x01\x00\x00\x00\xff", "ends too early"),
        ("sfm", "sfm_shape_3448.bin", b"\x07\x00\x00\x00", "version 7"),
        ("flame", "generic_model.pkl", b"\x80\x02]q\x00.", "no array 'v_template'"),
        ("flame", "generic_model.pkl", b"", "numpy.savez"),
        ("flame", "generic_model.pkl", pickle.dumps([1.0] * 999)[:-99], "numpy.savez"),
        ("flame", "generic_model.pkl", b"\x80\x02" + b"]" * 10 + b"R.", "numpy.savez"),
        ("flame", "generic_model.pkl", b"cnumpy\nabsent\n.", "numpy.absent, which is not data"),
        ("flame", "generic_model.npz", b"PK\x03\x04", "numpy.savez"),
        ("ict-facekit", "generic_neutral_mesh.obj", b"v 1 2 x\n", "not a readable .obj"),
        ("ict-facekit", "other.txt", b"", "generic_neutral_mesh.obj"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, format: str, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        import_model(format, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapeMU": np.ones((7, 1))}, "shapeMU holds 7 numbers, which is no list of points"),
        ({"shapeMU": np.full((6, 1), "a")}, "shapeMU is text, not numeric"),
        ({"shapeMU": scipy.sparse.eye(6)}, "shapeMU is a sparse matrix, not numeric"),
        ({"shapePC": np.ones((6, 2, 2))}, "shapePC are (6, 2, 2) numbers, for 2 vertices (6, K)"),
        ({"shapePC": np.ones((9, 2))}, "shapePC are (9, 2) numbers, for 2 vertices (6, K)"),
        ({"shapeEV": np.ones((3, 1))}, "holds 3 numbers for 2 modes"),
        ({"texMU": np.ones((9, 1))}, "texMU holds 9 numbers, for 2 vertices 6"),
        ({"texPC": np.ones((3, 1))}, "texPC are (3, 1) numbers"),
        ({"texEV": np.ones((9, 1))}, "texEV holds 9 numbers for 1 modes"),
        ({"tl": np.ones((2, 2))}, "tl holds 4 numbers, which are no triangles"),
        ({"tl": np.full((1, 3), np.nan)}, "tl holds values that are no indices"),
        ({"tl": np.full((1, 3), 9)}, "vertex 8"),
    ],
)
def test_a_matlab_file_with_values_that_do_not_fit_is_named(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    values = {
        **{"shapeMU": 4e4 * np.arange(6.0), "shapePC": np.ones((6, 2)), "shapeEV": np.ones((2, 1))},
        **{"texMU": np.ones((6, 1)), "texPC": np.ones((6, 1)), "texEV": np.ones((1, 1)), "tl": np.ones((1, 3))},
    }
    scipy.io.savemat(tmp_path / "01_MorphableModel.mat", {**values, **changes})
    with pytest.raises(DataError, match=rf"01_MorphableModel\.mat.*{re.escape(message)}"):
        import_model("bfm2009", tmp_path / "01_MorphableModel.mat")


def test_ict_facekit_with_a_broken_list_is_named(tmp_path: Path) -> None:
    fakes.write_obj(tmp_path / "generic_neutral_mesh.obj", np.eye(4, 3), np.array([[0, 1, 2]]))
    for content in ("{", "[]", '{"expressions": 3}'):
        (tmp_path / "vertex_indices.json").write_text(content)
        with pytest.raises(DataError, match=r"vertex_indices\.json has no list of expressions"):
            import_model("ict-facekit", tmp_path)


def test_wrong_requests_are_named(tmp_path: Path, truth: fakes.Truth) -> None:
    with pytest.raises(ConfigurationError, match="'bfm'"):
        import_model("bfm", tmp_path)
    with pytest.raises(DataError, match="missing"):
        import_model("sfm", tmp_path / "missing")
    fakes.write_bfm2009(tmp_path, truth)
    (tmp_path / "Exp_Pca.bin").write_bytes(b"\x01\x00\x00\x00" * 9)
    with pytest.raises(DataError, match=r"Exp_Pca\.bin"):
        import_model("bfm2009", tmp_path, tmp_path / "Exp_Pca.bin")
    with pytest.raises(ConfigurationError, match="face3d keeps its expressions in the same file"):
        import_model("face3d", tmp_path, tmp_path / "Exp_Pca.bin")


def test_commands_write_a_model_or_nothing(
    tmp_path: Path, truth: fakes.Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "model.npz"
    out.parent.mkdir()
    fakes.write_face3d(tmp_path / "BFM.mat", truth)
    import_command.main(["face3d", str(tmp_path), "--out", str(out)])
    model = MorphableModel.load(out)
    printed = capsys.readouterr().out
    assert model.hash in printed
    assert "Landmarks 'bfm': 68 of 68 from the file" in printed
    broken = tmp_path / "out" / "broken.npz"
    with pytest.raises(DataError):
        build_model.main([str(tmp_path), "--out", str(broken)])
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
    # The file's own UV map, u right and v down; the chin is below the brows.
    assert model.uv is not None
    assert model.uv_faces is not None
    assert len(model.uv_faces) == 6736
    brow, chin, right, left = model.uv[[2086, 33, 177, 607]].tolist()
    assert brow[1] + 0.3 < chin[1]
    assert right[0] + 0.1 < left[0]


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
    # Left is the subject's, at the image right.
    for name, side in (("eyeBlinkLeft", 1.0), ("eyeBlinkRight", -1.0), ("mouthSmileLeft", 1.0)):
        move = model.expression_basis[model.expression_names.index(name)].norm(dim=-1)
        assert float((move * model.mean[:, 0]).sum() / move.sum()) * side > 10.0, name
    embedded = MorphableModel.load("embedded")
    whole = json.loads((Path(str(DATA)) / "ict_facekit/FaceXModel/vertex_indices.json").read_text())["expressions"]
    names = {arkit_name(name) for name in whole}
    assert len(names) == len(whole) == 53
    assert set(embedded.expression_names) - names == {"browInnerUp", "cheekPuff"}, "which ICT-FaceKit has per side"
    assert names - set(embedded.expression_names) == {
        "browInnerUpLeft", "browInnerUpRight", "cheekPuffLeft", "cheekPuffRight"
    }  # fmt: skip
    gap = points[17:] - embedded.landmarks(embedded.mean[None], "ibug")[0, 17:]
    assert gap.norm(dim=-1).mean() < 5.0
