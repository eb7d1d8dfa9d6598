"""Copies arrays of an HDF5 file into a .npz archive; run by :mod:`hdf5`, as a script, in a process of its own.

The HDF5 library can end its process, or never come back, on a damaged file. It is told not to load filters from shared
libraries, and nothing is read that lies in another file: a link or a raw file whose name comes from this one.
"""

import os
import resource
import sys
from pathlib import Path

MEMORY = 2**29
"""Bytes beyond what the libraries themselves and the arrays take."""


def main(path: str, out: str, names: list[str]) -> None:
    """Write those of the data sets that the file has."""
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    import h5py
    import numpy as np

    size = Path(path).stat().st_size
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY + 4 * size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seconds = 4 + size // 50_000_000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    arrays = {}
    left = max(2**26, 2 * size)
    with h5py.File(path, "r") as file:
        for name in names:
            here = file
            for part in name.split("/"):
                kind = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
                if kind is not None and not isinstance(kind, h5py.HardLink):
                    raise ValueError(f"{name} is a link to another place")
                here = None if kind is None else here[part]
            if here is None:
                continue
            if not isinstance(here, h5py.Dataset) or here.dtype.kind not in "fiub":
                raise ValueError(f"{name} is not an array of numbers")
            if here.is_virtual or here.external:
                raise ValueError(f"{name} lies in another file")
            left -= here.size * here.dtype.itemsize
            if left < 0:
                raise ValueError(f"{name} is to be an array {here.shape}, out of proportion to the file")
            arrays[name] = here[()]
    np.savez(out, **arrays)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
