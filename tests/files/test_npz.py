"""Archives of arrays come back as they were written; any other bytes give an error that names the file."""

from __future__ import annotations

import io
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_faces.errors import DataError
from lightning_faces.files.npz import read_npz
from tests.files.test_mat import damage


def member(descr: str, shape: str, data: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + data


def write(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_were_written(tmp_path: Path, save: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        kind: (100.0 * rng.random((3, 2, 5))).astype(kind)
        for kind in ("?", "u1", "i2", "<u4", ">i8", "<f2", ">f4", "f8", "U3", "S2")
    }
    arrays |= {"scalar": np.array("text"), "empty": np.zeros((0, 7)), "turned": np.asfortranarray(rng.random((4, 6)))}
    save(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member("'<f4'", "(100000, 100000)"), "is to be an array (100000, 100000) of float32 in 0 bytes"),
        (member("'<f4'", "(2,)", bytes(12)), "is to be an array (2,) of float32 in 12 bytes"),
        (member("'<f4'", "(" + "9" * 999 + ",)"), "is to be an array"),
        (member("'<U0'", "(10000000000,)"), "is not an array of numbers or text"),
        (member("'|O'", "(1,)", b"cos\nsystem\n(S'true'\ntR."), "is not an array of numbers or text"),
        (member("[('a', '<f4')]", "(1,)", bytes(4)), "is not an array of numbers or text"),
        (member("'<f4'", "__import__('os').getpid()"), "is not an array of numbers or text"),
        (member("'<f4'", "(-1,)"), "is not an array of numbers or text"),
        (member("'<f7'", "(1,)", bytes(7)), "is of type f7"),
        (member("'<U1'", "(1,)", b"\xff" * 4), "holds letters that there are not"),
        (member("'<f4'", "(" + "(" * 3000 + ")" * 3000 + ")", version=2), "has a header of"),
        (member("'<f4'", "()", bytes(4))[:9], "ends too early"),
        (b"\x93NUMPY\x09\x00", "is not a NumPy array"),
        (b"", "ends too early"),
        (bytes(2**27), "out of proportion to the file"),
    ],
)
def test_what_a_header_claims_is_checked_before_it_is_allocated(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "a.npz", content)
    tracemalloc.start()
    with pytest.raises(
        DataError, match=rf"a\.npz is not a whole \.npz archive .*{re.escape(message)}.*: import it again"
    ):
        read_npz(path, fix="import it again")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_other_bytes_than_0_and_1_are_truth_values(tmp_path: Path) -> None:
    values = read_npz(write(tmp_path / "a.npz", member("'|b1'", "(3,)", bytes((0, 1, 255)))))["x"]
    assert values.view(np.uint8).tolist() == [0, 1, 1]


def test_files_that_are_no_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz does not exist"):
        read_npz(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="is not a file"):
        read_npz(tmp_path)
    for content in (b"", b"PK\x03\x04", b"hello" * 99, bytes(1000)):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz is not a whole \.npz archive"):
            read_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="compressed in another way"):
        read_npz(write(tmp_path / "a.npz", member("'<f4'", "()", bytes(4)), zipfile.ZIP_LZMA))
    # Many members that share the same bytes.
    content = bytearray(
        write(tmp_path / "a.npz", member("'<f4'", "(99,)", bytes(396)), zipfile.ZIP_STORED).read_bytes()
    )
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    central, tail = content[start:end], content[end:]
    tail[8:12] = (50).to_bytes(2, "little") * 2
    tail[12:16] = (50 * len(central)).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(content[:start] + central * 50 + tail)
    with pytest.raises(DataError, match=r"are to take .* of its .* bytes|Overlapped entries"):
        read_npz(tmp_path / "a.npz")


def test_damaged_bytes_give_the_arrays_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=rng.random((3, 68)), mask=np.arange(9) > 4, name=np.array("text"))
        source = np.frombuffer(buffer.getvalue(), np.uint8)
        named = 0
        for attempt in range(300):
            (tmp_path / "b.npz").write_bytes(damage(source, rng, attempt).tobytes())
            try:
                read_npz(tmp_path / "b.npz")
            except DataError as error:
                assert "b.npz" in str(error)
                named += 1
        assert 200 < named < 300
