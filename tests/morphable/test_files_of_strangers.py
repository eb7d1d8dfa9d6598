"""Face models from others are data: nothing in them runs, opens another file or takes more memory than they have."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_faces.errors import DataError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.formats import import_model
from lightning_faces.morphable.formats.pickle_data import as_array, read_pickle
from lightning_faces.morphable.meshes import read_mesh
from tests.fakes import face_models as fakes

HUGE = 2**29


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02]r" + struct.pack("<I", HUGE) + b".", "no array 'v_template'"),
        (b"]p536870912\n.", "no array 'v_template'"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].", "no array 'v_template'"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "it ends too early"),
        (b"\x80\x02T" + struct.pack("<i", -5) + b"x.", "it ends too early"),
        (b"\x80\x02X" + struct.pack("<I", HUGE) + b"x.", "it ends too early"),
        (b"\x80\x02\x8b" + struct.pack("<i", HUGE) + b"x.", "it ends too early"),
        (b"\x80\x02" + b"]" * 200_000 + b".", "more than 100000 objects"),
        (b"\x80\x02" + b"]r" + struct.pack("<I", 7) + b"j" + struct.pack("<I", 8) + b".", "is damaged before byte 13"),
        (b"I" + b"9" * 100_000 + b"\n.", "is no whole number"),
        (b"cposix\nsystem\n(S'touch made_by_the_pickle'\ntR.", "it holds posix.system, which is not data"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it holds os.system, which is not data"),
        (b"\x80\x02P1\n.", "opcode b'P'"),
        (b"\x80\x02" + b"0" * 3 + b".", "is damaged before byte 3"),
        (b"\x80\x02a.", "is damaged"),
        (b"\x80\x02(((.", "a mark is in the place"),
        (b"", "it ends too early"),
    ],
)
def test_a_pickle_takes_no_more_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"generic_model\.pkl") as error:
        import_model("flame", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(error.value)
    assert peak < 2**20 + 100 * len(content)
    assert not (tmp_path / "made_by_the_pickle").exists()


def test_keys_of_any_depth_do_no_harm(tmp_path: Path) -> None:
    """Python hashes the key of a dictionary, which ends the process for deeply nested tuples."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02})" + b"\x85" * 90_000 + b"Ns.")
    assert read_pickle(tmp_path / "a.pkl") == {}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    content = {
        "shape": np.asfortranarray(rng.random((4, 3, 5))),
        "faces": np.arange(6, dtype=">u4").reshape(2, 3),
        "half": rng.random(3).astype(np.float16),
        "text": "a\u20ac\\'\"", "number": -(2**40), "small": 7, "real": 0.1, "no": False, "none": None,
        "list": [1, (2, 3), {"four": b"\x00\xff"}],
    }  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    for key in ("shape", "faces", "half"):
        array = as_array(found.pop(key))
        assert array is not None
        assert np.array_equal(array, content.pop(key))  # type: ignore[call-overload]
    if protocol < 3:  # Bytes are a call there.
        found["list"][2] = {"four": b"\x00\xff"}
    assert found == content


def test_the_memory_of_an_array_is_that_of_its_values(tmp_path: Path) -> None:
    array = pickle.dumps({"v_template": np.zeros((7, 3))}, 2)
    for old, new in ((b"K\x07", b"J" + struct.pack("<i", 2**31 - 1)), (b"K\x03\x86", b"J\xff\xff\xff\x7f\x86")):
        assert old in array
        (tmp_path / "generic_model.pkl").write_bytes(array.replace(old, new))
        with pytest.raises(DataError, match=r"it holds an array of shape .* in 168 bytes"):
            import_model("flame", tmp_path)


def test_names_in_a_list_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret.obj").write_text("v 1 2 x\n")
    folder = tmp_path / "FaceXModel"
    folder.mkdir()
    fakes.write_ict(folder, fakes.truth())
    (folder / "vertex_indices.json").write_text('{"expressions": ["../secret", "jawOpen", "/etc/passwd"]}')
    assert import_model("ict-facekit", tmp_path).expression_names == ("jawOpen",)
    (folder / "vertex_indices.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"vertex_indices\.json has no list"):
        import_model("ict-facekit", tmp_path)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("count", [3, 10**12, 10**30])
def test_lists_of_a_mesh_go_forward(tmp_path: Path, kind: str, count: int) -> None:
    body = "-1 " * 20 if kind == "ascii" else "\xff" * 60
    header = f"ply\nformat {kind} 1.0\nelement face {count}\nproperty list char int vertex_indices\nend_header\n"
    (tmp_path / "m.ply").write_bytes((header + body).encode("latin1"))
    with pytest.raises(DataError, match=r"m\.ply is not a readable \.ply file .*(length -1|lists in the)"):
        read_mesh(tmp_path / "m.ply")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.obj")
    with pytest.raises(DataError, match=r"m\.obj is not a file"):
        read_mesh(tmp_path / "m.obj")


def write_h5(path: Path, **changes: Any) -> Path:
    import h5py

    fakes.write_bfm2017(path, fakes.truth())
    with h5py.File(path, "a") as file:
        for name, value in changes.items():
            key = {"mean": "shape/model/mean", "cells": "shape/representer/cells", "shape": "shape"}[name]
            del file[key]
            if isinstance(value, dict):
                file.create_dataset(key, **value)
            else:
                file[key] = value
    return path


def test_an_hdf5_file_opens_no_other_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    other = fakes.write_bfm2017(tmp_path / "other.h5", fakes.truth())
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!!" * 20_000)
    count = 3 * len(fakes.truth().mean)
    virtual = h5py.VirtualLayout((count,), "f4")
    virtual[:] = h5py.VirtualSource(str(other), "shape/model/mean", (count,))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"mean": h5py.ExternalLink(str(other), "shape/model/mean")}, "is a link to another place"),
        ({"shape": h5py.ExternalLink(str(other), "shape")}, "is a link to another place"),
        ({"mean": {"shape": (count,), "dtype": "f4", "external": [(str(secret), 0, 4 * count)]}}, "in another file"),
        ({"mean": {"shape": (10**11,), "dtype": "f4", "chunks": (1024,)}}, "out of proportion to the file"),
        ({"mean": {"data": "words"}}, "is not an array of numbers"),
    ]
    for change, message in changes:
        path = write_h5(tmp_path / "model.h5", **change)
        with pytest.raises(DataError, match=rf"model\.h5 cannot be read \(.*{message}.*\)"):
            import_model("bfm2017", path)
    with h5py.File(write_h5(tmp_path / "model.h5"), "a") as file:
        del file["shape/model/mean"]
        file.create_virtual_dataset("shape/model/mean", virtual)
    with pytest.raises(DataError, match="in another file"):
        import_model("bfm2017", tmp_path / "model.h5")


def test_the_hdf5_library_may_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    path = fakes.write_bfm2017(tmp_path / "model.h5", fakes.truth())
    script = tmp_path / "ends.py"
    monkeypatch.setattr("lightning_faces.morphable.formats.hdf5.SCRIPT", script)
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DataError, match=r"model\.h5 cannot be read \(the HDF5 library ended with SIGSEGV\)"):
        import_model("bfm2017", path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": np.zeros((2**25, 3), np.float32)}, "out of proportion to the file"),
        (
            {"landmarks/a.b/triangle": np.zeros(1, int), "landmarks/a.b/barycentric": np.ones((1, 3))},
            "not a whole face",
        ),
        ({"header": np.array("[" * 5000)}, "is not a face model of this platform"),
        ({"header": np.array([1.0])}, "is not a face model of this platform"),
        ({"mirror": np.array([{}], object)}, "is not an array of numbers or text"),
    ],
)
def test_archives_with_other_content_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.npz"
    MorphableModel.load().save(path)
    with np.load(path) as archive:
        np.savez_compressed(path, **{**archive, **changes})
    with pytest.raises(DataError, match=rf"model\.npz .*{message}"):
        MorphableModel.load(path)
