"""Fields of MATLAB files are float64, whole and finite, or the file is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from datamodules.components.matfile import read_mat
from lightning_faces.errors import DataError


def test_any_numeric_type_becomes_float64(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.int16, np.float32, np.float64, bool):
        savemat(tmp_path / "a.mat", {"x": np.ones((1, 7), dtype=dtype), "other": "text"})
        fields = read_mat(tmp_path / "a.mat", {"x": (1, None)}, {"y": (3,)})
        assert fields.keys() == {"x"}
        assert fields["x"].dtype == np.float64
        assert np.array_equal(fields["x"], np.ones((1, 7)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((7, 1)), r"shape \(7, 1\)"),
        (np.full((1, 7), np.nan), "not finite"),
        ("words", "not numeric"),
        ({"a": 1}, "not numeric"),
        (np.ones((1, 7)) * 1j, "not numeric"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, value: object, message: str) -> None:
    savemat(tmp_path / "a.mat", {"x": value})
    with pytest.raises(DataError, match=rf"a\.mat field x .*{message}"):
        read_mat(tmp_path / "a.mat", {"x": (1, 7)})


def test_missing_fields_and_files_are_named(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"y": 1.0})
    with pytest.raises(DataError, match=r"a\.mat has no field x"):
        read_mat(tmp_path / "a.mat", {"x": (1, 7)})
    for name, content in (("empty", b""), ("text", b"hello" * 100), ("short", b"MATLAB 5.0")):
        (tmp_path / f"{name}.mat").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.mat is not a whole MATLAB file"):
            read_mat(tmp_path / f"{name}.mat", {"x": (1, 7)})
    (tmp_path / "hdf.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(DataError, match=r"hdf\.mat is a MATLAB 7\.3 file .* '-v7'\)"):
        read_mat(tmp_path / "hdf.mat", {"x": (1, 7)})
    with pytest.raises(DataError, match=r"absent\.mat does not exist"):
        read_mat(tmp_path / "absent.mat", {"x": (1, 7)})


def test_damaged_bytes_give_the_field_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for compressed in (False, True):
        savemat(tmp_path / "a.mat", {"x": np.ones((3, 68)), "z": np.arange(9.0)}, do_compression=compressed)
        source = np.frombuffer((tmp_path / "a.mat").read_bytes(), dtype=np.uint8)
        for attempt in range(150):
            damaged = source.copy()
            damaged[rng.integers(0, len(source), size=6)] = rng.integers(0, 256, size=6)
            (tmp_path / "b.mat").write_bytes(damaged.tobytes() if attempt % 3 else damaged.tobytes()[: -attempt - 1])
            try:
                assert read_mat(tmp_path / "b.mat", {"x": (3, 68)})["x"].shape == (3, 68)
            except DataError as error:
                assert "b.mat" in str(error)
