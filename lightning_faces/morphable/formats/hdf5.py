"""Arrays of HDF5 files, read in a process of its own, which a damaged file can end without harm."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.files.npz import read_npz

SCRIPT = Path(__file__).with_name("read_hdf5.py")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_hdf5(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Read arrays of numbers.

    Args:
        path: The file.
        names: The wanted data sets, as ``"shape/model/mean"``.

    Returns:
        Name to array, with those names that the file has.

    Raises:
        ConfigurationError: If h5py is not installed.
        DataError: If the file is damaged or no HDF5 file, or what is wanted is no array of numbers in it.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ConfigurationError(f"Reading {path} needs h5py: pip install h5py.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    if start != _SIGNATURE:
        raise DataError(f"{path} is not an HDF5 file: download it again.")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        run = subprocess.run(
            [sys.executable, str(SCRIPT), str(path), str(out), *names],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            if run.returncode < 0:
                reason = f"the HDF5 library ended with {signal.Signals(-run.returncode).name}"
            raise DataError(f"{path} cannot be read ({reason}): download it again.")
        return read_npz(out)
