"""Tiny face models in other people's on-disk layouts; the geometry is the embedded model's own mean.

Sources of the layouts: FACTS.md A ("BFM" table: keys, micrometres, 1-based and clockwise triangles, shapeEV are
standard deviations, BFM 2017 holds variances) and F ("3DMMs for a common loader": SFM, ICT, FLAME); Exp_Pca.bin as
Deep3D's ``transferBFM09`` reads it (int32 count, float32 mean, float32 modes; std_exp.txt).
"""

from __future__ import annotations

import pickle
import struct
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from lightning_faces.morphable import MorphableModel


@dataclass
class Truth:
    """What a faithful import gives back: millimetres, object frame, counter-clockwise."""

    mean: np.ndarray
    faces: np.ndarray
    identity: np.ndarray
    """``[K, V, 3]`` mm for one standard deviation each."""
    expression: np.ndarray
    landmarks: np.ndarray
    """Vertex of each of the 68 points."""


def truth(seed: int = 0) -> Truth:
    model = MorphableModel.load("embedded")
    triangle, weights = model.landmark_embeddings["bfm"]
    corner = weights.argmax(1)
    return Truth(
        mean=model.mean.double().numpy(),
        faces=model.faces.numpy(),
        identity=(model.identity_basis[:3] * model.identity_std[:3, None, None]).double().numpy(),
        expression=model.expression_basis[[24, 0]].double().numpy(),
        landmarks=model.faces[triangle, corner].numpy(),
    )


def _columns(modes: np.ndarray) -> np.ndarray:
    """Modes ``[K, V, 3]`` as columns ``[3V, K]``, xyzxyz."""
    return modes.reshape(len(modes), -1).T


def _unit(modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    std = np.linalg.norm(modes.reshape(len(modes), -1), axis=1)
    return modes / std[:, None, None], std


def _bfm_arrays(t: Truth) -> dict[str, np.ndarray]:
    identity, identity_std = _unit(t.identity * 1e3)
    expression, expression_std = _unit(t.expression * 1e3)
    generator = np.random.default_rng(1)
    texture = generator.normal(size=(2, len(t.mean), 3))
    texture, _ = _unit(texture)
    return {
        "mu": t.mean.reshape(-1, 1) * 1e3,
        "w": _columns(identity),
        "sigma": identity_std[:, None],
        "w_exp": _columns(expression),
        "sigma_exp": expression_std[:, None],
        "tri": t.faces[:, ::-1].T + 1,
        "keypoints": t.landmarks[None] + 1,
        "mu_tex": np.full((3 * len(t.mean), 1), 127.5),
        "w_tex": _columns(texture),
        "sigma_tex": np.array([[300.0], [100.0]]),
    }


def write_bfm2009(folder: Path, t: Truth, expressions: str = "Model_Expression.mat", trimmed: bool = True) -> Path:
    """01_MorphableModel.mat with 5 vertices in front that the trimming drops, and the files beside it."""
    a = _bfm_arrays(t)
    extra = 5 if trimmed else 0

    def pad(columns: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full((3 * extra, columns.shape[1]), 7.0), columns])

    offset = np.tile([[100.0], [200.0], [-300.0]], (len(t.mean), 1))
    scipy.io.savemat(
        folder / "01_MorphableModel.mat",
        {
            "shapeMU": pad(a["mu"] - offset),
            "shapePC": pad(a["w"]),
            "shapeEV": a["sigma"],
            "texMU": pad(a["mu_tex"]),
            "texPC": pad(a["w_tex"]),
            "texEV": a["sigma_tex"],
            "tl": t.faces[:, ::-1] + 1 + extra,
        },
    )
    if trimmed:
        info = {"trimIndex": np.arange(len(t.mean))[:, None] + extra + 1, "keypoints": a["keypoints"], "tri": a["tri"]}
        scipy.io.savemat(folder / "model_info.mat", info)
    if expressions == "Exp_Pca.bin":
        modes = a["w_exp"].T
        content = struct.pack("<i", len(modes)) + offset.astype("<f4").tobytes() + modes.astype("<f4").tobytes()
        (folder / "Exp_Pca.bin").write_bytes(content)
        np.savetxt(folder / "std_exp.txt", a["sigma_exp"].ravel()[None])
    else:
        fields = {"mu_exp": offset, "w_exp": a["w_exp"], "sigma_exp": a["sigma_exp"]}
        scipy.io.savemat(folder / expressions, fields)
    return folder


def write_300wlp(folder: Path, t: Truth) -> Path:
    a = _bfm_arrays(t)
    segments = np.zeros((len(t.mean), 4), np.uint8)
    segments[np.arange(len(t.mean)), np.arange(len(t.mean)) % 4] = 1
    shape = {key: a[key] for key in ("w", "sigma", "mu_tex", "w_tex", "sigma_tex", "tri", "keypoints")}
    scipy.io.savemat(folder / "Model_Shape.mat", {**shape, "mu_shape": a["mu"] - 1000.0, "segbin": segments})
    fields = {"mu_exp": np.full_like(a["mu"], 1000.0), "w_exp": a["w_exp"], "sigma_exp": a["sigma_exp"]}
    scipy.io.savemat(folder / "Model_Exp.mat", fields)
    return folder


def write_face3d(path: Path, t: Truth) -> Path:
    a = _bfm_arrays(t)
    model = {
        "shapeMU": a["mu"],
        "shapePC": a["w"],
        "shapeEV": a["sigma"],
        "expMU": np.zeros_like(a["mu"]),
        "expPC": a["w_exp"],
        "expEV": a["sigma_exp"],
        "texMU": a["mu_tex"],
        "texPC": a["w_tex"],
        "texEV": a["sigma_tex"],
        "tri": a["tri"],
        "tri_mouth": a["tri"][:, :114],
        "kpt_ind": a["keypoints"],
    }
    scipy.io.savemat(path, {"model": model})
    return path


def write_bfm2017(path: Path, t: Truth) -> Path:
    import h5py

    identity, identity_std = _unit(t.identity)
    expression, expression_std = _unit(t.expression)
    with h5py.File(path, "w") as file:
        file["shape/model/mean"] = (t.mean.reshape(-1) - 2.0).astype(np.float32)
        file["shape/model/pcaBasis"] = _columns(identity).astype(np.float32)
        file["shape/model/pcaVariance"] = (identity_std**2).astype(np.float32)
        file["expression/model/mean"] = np.full(3 * len(t.mean), 2.0, np.float32)
        file["expression/model/pcaBasis"] = _columns(expression).astype(np.float32)
        file["expression/model/pcaVariance"] = (expression_std**2).astype(np.float32)
        file["color/model/mean"] = np.full(3 * len(t.mean), 0.5, np.float32)
        file["color/model/pcaBasis"] = np.ones((3 * len(t.mean), 1), np.float32)
        file["color/model/pcaVariance"] = np.array([0.01], np.float32)
        file["shape/representer/cells"] = t.faces.T.astype(np.int32)
    return path


def write_sfm(folder: Path, t: Truth) -> Path:
    """cereal, little endian: i32 rows, i32 columns, f32 column-major matrices; u64 counts."""
    identity, identity_std = _unit(t.identity)

    def matrix(values: np.ndarray) -> bytes:
        return struct.pack("<ii", *values.shape) + values.T.astype("<f4").tobytes()

    empty = struct.pack("<ii", 0, 0)
    content = struct.pack("<I", 1) + matrix(t.mean.reshape(-1, 1)) + matrix(_columns(identity))
    content += matrix((identity_std**2)[:, None])
    content += struct.pack("<Q", len(t.faces)) + t.faces.astype("<i4").tobytes()
    content += empty * 3 + struct.pack("<Q", 0) + struct.pack("<Q", 0)
    (folder / "sfm_shape_3448.bin").write_bytes(content)
    shapes = struct.pack("<Q", len(t.expression))
    for name, move in zip((b"joy", b"anger"), t.expression, strict=True):
        shapes += struct.pack("<Q", len(name)) + name + matrix(move.reshape(-1, 1))
    (folder / "expression_blendshapes_3448.bin").write_bytes(shapes)
    return folder


def write_obj(path: Path, points: np.ndarray, faces: np.ndarray) -> Path:
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in points]
    lines += ["vt 0 0"] + [f"f {a + 1}/1 {b + 1}/1 {c + 1}/1" for a, b, c in faces]
    path.write_text("\n".join(["# a comment", *lines]) + "\n")
    return path


def write_ply(path: Path, points: np.ndarray, faces: np.ndarray, binary: bool) -> Path:
    kind = "binary_little_endian" if binary else "ascii"
    header = (
        f"ply\nformat {kind} 1.0\ncomment made by a test\nelement vertex {len(points)}\nproperty float x\n"
        f"property float y\nproperty float z\nproperty uchar red\nelement face {len(faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    if binary:
        body = b"".join(struct.pack("<fffB", *p, 9) for p in points) + b"".join(
            struct.pack("<Biii", 3, *f) for f in faces
        )
    else:
        body = ("\n".join(f"{x} {y} {z} 9" for x, y, z in points) + "\n").encode()
        body += ("\n".join(f"3 {a} {b} {c}" for a, b, c in faces) + "\n").encode()
    path.write_bytes(header.encode() + body)
    return path


def write_ict(folder: Path, t: Truth) -> Path:
    """Centimetres; an identity mode is OBJ minus neutral."""
    write_obj(folder / "generic_neutral_mesh.obj", t.mean / 10, t.faces)
    for k, mode in enumerate(t.identity):
        write_obj(folder / f"identity{k:03d}.obj", (t.mean + mode) / 10, t.faces)
    for name, move in zip(("jawOpen", "browDown_L"), t.expression, strict=True):
        write_obj(folder / f"{name}.obj", (t.mean + move) / 10, t.faces)
    (folder / "vertex_indices.json").write_text('{"expressions": ["browDown_L", "jawOpen", "mouthLeft"]}')
    return folder


def write_flame(path: Path, t: Truth) -> Path:
    """generic_model.pkl: metres, Python 2 protocol, shapedirs 300 + 100, chumpy arrays (here a stand-in module)."""
    identity = np.zeros((300, len(t.mean), 3))
    identity[: len(t.identity)] = t.identity
    directions = np.concatenate([identity, t.expression]).transpose(1, 2, 0) / 1e3

    class Ch:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    package, module = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    module.Ch = Ch  # type: ignore[attr-defined]
    package.ch = module  # type: ignore[attr-defined]
    saved = {name: sys.modules.get(name) for name in ("chumpy", "chumpy.ch")}
    sys.modules.update({"chumpy": package, "chumpy.ch": module})
    try:
        content = {"v_template": Ch(t.mean / 1e3), "shapedirs": Ch(directions), "f": t.faces.astype(np.uint32)}
        path.write_bytes(pickle.dumps(content, protocol=2))
    finally:
        for name, old in saved.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return path
