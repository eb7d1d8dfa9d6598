"""MATLAB files are read as SciPy reads them, and whatever bytes they hold the process goes on and the file is named."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files.mat import read_mat

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?")


def element(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def variable(name: str, shape: tuple[int, ...], values: bytes, matrix_class: int = 6) -> bytes:
    return element(
        14,
        element(6, struct.pack("<II", matrix_class, 0))
        + element(5, struct.pack(f"<{len(shape)}i", *shape))
        + element(1, name.encode())
        + values,
    )


def mat_file(path: Path, *content: bytes) -> Path:
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(content))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_those_of_scipy(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"a{k}": (rng.random((k % 3 + 1, 5, 2)) * 100).astype(kind) for k, kind in enumerate(TYPES)}
    arrays |= {"empty": np.zeros((0, 3)), "b": np.array([[7]], np.uint8), "long_name_" * 3: np.arange(3.0)}
    struct_of = {"tri": np.arange(6, dtype=np.int32).reshape(2, 3), "inner": {"x": 1.0}, "text": "words"}
    scipy.io.savemat(tmp_path / "a.mat", {**arrays, "skipped": "words", "model": struct_of}, do_compression=compressed)
    expected = scipy.io.loadmat(tmp_path / "a.mat")
    found = read_mat(tmp_path / "a.mat", [*arrays, "model.tri", "model.absent", "absent"])
    assert found.keys() == arrays.keys() | {"model.tri"}
    for name in arrays:
        assert found[name].dtype == expected[name].dtype
        assert np.array_equal(found[name], expected[name])
    assert np.array_equal(found["model.tri"], struct_of["tri"])


def test_real_labels_are_those_of_scipy() -> None:
    if "LIGHTNING_FACES_DATA" not in os.environ:
        pytest.skip("LIGHTNING_FACES_DATA is not set")
    files = sorted(Path(os.environ["LIGHTNING_FACES_DATA"]).glob("*/**/*.mat"))
    assert len(files) > 100
    for file in files:
        expected = {name: value for name, value in scipy.io.loadmat(file).items() if not name.startswith("__")}
        found = read_mat(file, expected)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value)


def test_big_endian_files(tmp_path: Path) -> None:
    inner = b"".join(
        struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        for kind, data in (
            *((6, struct.pack(">II", 6, 0)), (5, struct.pack(">ii", 1, 3)), (1, b"x")),
            (9, np.array([1.5, -2.0, 3.0], ">f8").tobytes()),
        )
    )
    content = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(inner)) + inner
    (tmp_path / "a.mat").write_bytes(content)
    found = read_mat(tmp_path / "a.mat", ["x"])["x"]
    assert found.dtype == np.float64 and found.dtype.isnative
    assert found.tolist() == [[1.5, -2.0, 3.0]]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        *(("words", "text"), ({"a": 1}, "a struct"), (np.array([["a", 1]], object), "a cell array")),
        *((np.ones((1, 7)) * 1j, "complex"), (scipy.sparse.eye(3, format="csc"), "a sparse matrix")),
    ],
)
def test_what_is_no_array_of_numbers_is_named(tmp_path: Path, value: object, what: str) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": value, "y": 2.0})
    assert read_mat(tmp_path / "a.mat", ["y"])["y"] == 2.0
    with pytest.raises(DataError, match=rf"a\.mat field x is {what}, not numeric"):
        read_mat(tmp_path / "a.mat", ["x"])
    if what != "a struct":
        with pytest.raises(DataError, match=r"a\.mat field x is not a single struct"):
            read_mat(tmp_path / "a.mat", ["x.tri"])


def test_other_matlab_files_are_named_with_the_way_out(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "old.mat", {"x": np.ones((2, 3))}, format="4")
    with pytest.raises(DataError, match=r"old\.mat is a MATLAB 4 file.*save\('-v7', 'old\.mat'\)"):
        read_mat(tmp_path / "old.mat", ["x"])
    signature = b"\x89HDF\r\n\x1a\n"
    for content in (
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(384) + signature + bytes(99),
        signature + bytes(200),
    ):
        (tmp_path / "new.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"new\.mat is a MATLAB 7\.3 file.*'-struct', 's', '-v7'"):
            read_mat(tmp_path / "new.mat", ["x"])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.mat does not exist"):
        read_mat(tmp_path / "absent.mat", ["x"])
    with pytest.raises(DataError, match="is not a file"):
        read_mat(tmp_path, ["x"])
    os.mkfifo(tmp_path / "pipe.mat")
    with pytest.raises(DataError, match=r"pipe\.mat is not a file"):
        read_mat(tmp_path / "pipe.mat", ["x"])
    for content in (b"", b"hello" * 100, bytes(1000), b"\xff" * 1000):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.mat is not a whole MATLAB file .*: replace or remove it"):
            read_mat(tmp_path / "a.mat", ["x"])


def test_sizes_are_checked_before_anything_of_them_is_allocated(tmp_path: Path) -> None:
    zeros = zlib.compress(variable("x", (2**26, 1), element(2, bytes(2**26))), 9)
    assert len(zeros) < 2**19
    numbers = element(9, bytes(24))
    cases = {
        "out of proportion to the file": element(15, zeros, len(zeros))[: len(zeros) + 8],
        "24 bytes of values": variable("x", (100_000, 100_000), numbers),
        "an array of shape": variable("x", (-1, -3), numbers),
        "of 4294967280 bytes where": variable("x", (1, 3), struct.pack("<II", 9, 2**32 - 16) + bytes(24)),
        "a variable of 4294967295 bytes": struct.pack("<II", 14, 2**32 - 1) + bytes(100),
        "a shape of 132 bytes": variable("x", (1,) * 33, numbers),
        "it ends within a tag": variable("y", (1, 3), numbers) + bytes(5),
        "values of type 14": variable("x", (1, 3), element(14, bytes(24))),
        "a variable without values": variable("x", (1, 3), b""),
        "that is not of the 64 bytes": element(
            15, data := zlib.compress(struct.pack("<II", 14, 64) + variable("x", (1, 3), numbers)[8:]), len(data)
        ),
    }
    for message, content in cases.items():
        path = mat_file(tmp_path / "a.mat", content)
        tracemalloc.start()
        with pytest.raises(DataError, match=rf"a\.mat is not a whole MATLAB file .*{re.escape(message)}"):
            read_mat(path, ["x"])
        assert tracemalloc.get_traced_memory()[1] < 10 * len(content) + 2**20
        tracemalloc.stop()


def test_cells_nested_deeply_are_passed_over(tmp_path: Path) -> None:
    head = variable("deep", (1, 1), b"", matrix_class=1)[8:]
    content = head
    for _ in range(5000):
        content = head + element(14, content)
    path = mat_file(tmp_path / "a.mat", element(14, content), variable("x", (1, 1), element(9, struct.pack("<d", 4.0))))
    assert read_mat(path, ["x"])["x"] == 4.0
    with pytest.raises(DataError, match="deep is a cell array"):
        read_mat(path, ["deep"])


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_bytes_give_arrays_or_a_named_error(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(1)
    fields = {"x": rng.random((3, 68)), "z": np.arange(9), "model": {"tri": np.arange(6), "w": np.zeros((3, 2))}}
    scipy.io.savemat(tmp_path / "a.mat", fields, do_compression=compressed)
    source = np.frombuffer((tmp_path / "a.mat").read_bytes(), np.uint8)
    outcomes = {"read": 0, "named": 0}
    for attempt in range(600):
        damaged = damage(source, rng, attempt)
        (tmp_path / "b.mat").write_bytes(damaged.tobytes())
        try:
            read_mat(tmp_path / "b.mat", ["x", "z", "model.tri", "model.w"])
            outcomes["read"] += 1
        except DataError as error:
            assert "b.mat" in str(error)
            outcomes["named"] += 1
    assert min(outcomes.values()) > 10


def damage(source: NDArray[np.uint8], rng: np.random.Generator, attempt: int) -> NDArray[np.uint8]:
    """A cut, or a few other bytes, more often among the tags at the start."""
    if attempt % 4 == 0:
        return source[: rng.integers(len(source))]
    damaged = source.copy()
    end = len(source) if attempt % 2 else min(len(source), 600)
    damaged[rng.integers(128, end, size=rng.integers(1, 5))] = rng.integers(0, 256)
    return damaged
