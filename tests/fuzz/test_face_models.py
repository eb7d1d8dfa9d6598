"""Any bytes in the place of a face model's file give a model or an error that names the file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_faces.files.mat import read_mat
from lightning_faces.files.npz import read_npz
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.formats import FORMATS, build_from_meshes, import_model
from lightning_faces.morphable.meshes import read_mesh
from tests.fakes import face_models as fakes
from tests.fuzz.damage import outcomes

pytestmark = pytest.mark.slow


def small() -> fakes.Truth:
    """A patch of a face, so that the files are mostly headers."""
    whole = fakes.truth()
    faces = whole.faces[:12]
    used, local = np.unique(faces, return_inverse=True)
    return fakes.Truth(
        whole.mean[used], local.reshape(-1, 3), whole.identity[:, used], whole.expression[:, used], np.zeros(68, int)
    )


def read_fields(path: Path) -> None:
    read_mat(path, ["w", "sigma", "mu_shape", "tri", "keypoints", "segbin", "model.shapeMU", "model.tri"])


def read_npz_file(path: Path) -> None:
    read_npz(path)


def load_model(path: Path) -> None:
    MorphableModel.load(path)


def read_bfm2009(path: Path) -> None:
    FORMATS["bfm2009"].read(path.parent, None)


def read_300wlp(path: Path) -> None:
    FORMATS["300w-lp"].read(path.parent, None)


def read_face3d(path: Path) -> None:
    FORMATS["face3d"].read(path, None)


def read_bfm2017(path: Path) -> None:
    FORMATS["bfm2017"].read(path, None)


def read_sfm(path: Path) -> None:
    FORMATS["sfm"].read(path.parent, None)


def read_ict(path: Path) -> None:
    FORMATS["ict-facekit"].read(path.parent, None)


def read_flame(path: Path) -> None:
    FORMATS["flame"].read(path, None)


def read_triangles(path: Path) -> None:
    read_mesh(path)


def import_sfm(path: Path) -> None:
    import_model("sfm", path.parent)


def import_face3d(path: Path) -> None:
    import_model("face3d", path.parent)


def build(path: Path) -> None:
    build_from_meshes(path.parent)


def write_files(folder: Path) -> None:
    """One good file of each kind, in a folder of its own where its importer looks beside it."""
    truth = small()
    for name in ("bfm2009", "bin", "300w-lp", "sfm", "ict", "meshes", "whole"):
        (folder / name).mkdir()
    fakes.write_bfm2009(folder / "bfm2009", truth)
    fakes.write_bfm2009(folder / "bin", truth, "Exp_Pca.bin")
    fakes.write_300wlp(folder / "300w-lp", truth)
    fakes.write_face3d(folder / "BFM.mat", truth)
    fakes.write_sfm(folder / "sfm", truth)
    fakes.write_ict(folder / "ict", truth)
    fakes.write_flame(folder / "generic_model.pkl", truth)
    for protocol in (0, 4):
        values = {"v_template": truth.mean, "f": truth.faces, "shapedirs": truth.identity.transpose(1, 2, 0)}
        (folder / f"flame{protocol}.pkl").write_bytes(pickle.dumps(values, protocol))
    np.savez_compressed(folder / "flame.npz", **values)
    fakes.write_obj(folder / "mesh.obj", truth.mean, truth.faces)
    fakes.write_ply(folder / "ascii.ply", truth.mean, truth.faces, binary=False)
    fakes.write_ply(folder / "binary.ply", truth.mean, truth.faces, binary=True)
    bases = {"identity_basis": truth.identity, "identity_std": np.ones(3), "expression_basis": truth.expression}
    MorphableModel("small", truth.mean, truth.faces, expression_std=np.ones(2), **bases).save(folder / "model.npz")
    whole = fakes.truth()
    fakes.write_sfm(folder / "whole", whole)
    fakes.write_face3d(folder / "whole" / "BFM.mat", whole)
    for k in range(3):
        fakes.write_obj(folder / "meshes" / f"{k}.obj", whole.mean + k * whole.identity[k], whole.faces)


@pytest.mark.parametrize(
    ("name", "reader", "count"),
    [
        ("300w-lp/Model_Shape.mat", read_fields, 700),
        ("BFM.mat", read_fields, 500),
        ("bfm2009/01_MorphableModel.mat", read_bfm2009, 300),
        ("bfm2009/model_info.mat", read_bfm2009, 200),
        ("bin/Exp_Pca.bin", read_bfm2009, 100),
        ("bin/std_exp.txt", read_bfm2009, 100),
        ("300w-lp/Model_Exp.mat", read_300wlp, 200),
        ("BFM.mat", read_face3d, 200),
        ("model.h5", read_bfm2017, 20),
        ("sfm/sfm_shape_3448.bin", read_sfm, 300),
        ("sfm/expression_blendshapes_3448.bin", read_sfm, 200),
        ("ict/vertex_indices.json", read_ict, 200),
        ("ict/jawOpen.obj", read_ict, 200),
        ("generic_model.pkl", read_flame, 500),
        ("flame0.pkl", read_flame, 300),
        ("flame4.pkl", read_flame, 300),
        ("flame.npz", read_flame, 200),
        ("flame.npz", read_npz_file, 300),
        ("model.npz", load_model, 500),
        ("mesh.obj", read_triangles, 200),
        ("ascii.ply", read_triangles, 300),
        ("binary.ply", read_triangles, 300),
        ("whole/sfm_shape_3448.bin", import_sfm, 12),
        ("whole/BFM.mat", import_face3d, 12),
        ("meshes/1.obj", build, 8),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, reader: Callable[[Path], None], count: int) -> None:
    if name == "model.h5":
        pytest.importorskip("h5py", reason="h5py is not installed")
        fakes.write_bfm2017(tmp_path / name, small())
    write_files(tmp_path)
    if reader not in (import_sfm, import_face3d, build):
        reader(tmp_path / name)
    counts = outcomes(reader, tmp_path / name, count)
    print(name, dict(counts))
    assert not {what: n for what, n in counts.items() if what not in ("read", "named")}
    assert counts["read"] + counts["named"] == count
    assert counts["named"] > 0
