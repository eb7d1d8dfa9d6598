"""``lightning-faces scan-error PREDICTIONS SCANS``: millimetres between predicted meshes and scans, as NoW scores."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from datamodules.components.meshes import SCAN_SUFFIXES, import_trimesh
from datamodules.components.scan_error import UNITS, ScanError, scan_error, seven_landmarks
from datamodules.components.scans import Scan, read_scan
from lightning_faces.errors import DataError, LightningFacesError
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.files import write_atomic

COLUMNS = ("prediction", "scan", "mean_mm", "median_mm", "std_mm", "mesh_to_scan_mean_mm", "scale", "reason")


def main(arguments: Sequence[str]) -> None:
    """Compare all predictions of a folder to their scans.

    Args:
        arguments: Words after the command.

    Raises:
        LightningFacesError: If a prediction has no scan, or none can be scored.
    """
    parser = argparse.ArgumentParser("lightning-faces scan-error", allow_abbrev=False, description=_DESCRIPTION)
    parser.add_argument("predictions", type=Path, help="folder of NAME.obj or .ply, or of folders NAME of several")
    parser.add_argument(
        "scans", type=Path, help="folder of NAME.obj or .ply; each mesh has NAME.landmarks.csv beside it"
    )
    parser.add_argument("--unit", choices=UNITS, default="mm", help="of the scans (default mm)")
    parser.add_argument("--scale-free", action="store_true", help="fit the predictions' scale, which may have any unit")
    parser.add_argument("--out", type=Path, default=Path("scan_errors.csv"), help="table to write")
    options = parser.parse_args(arguments)
    import_trimesh()
    pairs = paired(options.predictions, options.scans)
    rows, found, subjects = [], [], []
    known: dict[Path, Scan] = {}
    for prediction, path in track(pairs, description="comparing"):
        row = [str(prediction.relative_to(options.predictions)), path.name]
        try:
            if path not in known:
                known = {path: read_scan(path)}
            error = compare(prediction, known[path], options.unit, options.scale_free)
        except LightningFacesError as refused:
            rows.append([*row, *[""] * 5, str(refused)])
            continue
        of_scan = error.scan_to_mesh
        numbers = (of_scan.mean(), np.median(of_scan), of_scan.std(), error.mesh_to_scan.mean(), error.scale)
        rows.append([*row, *(f"{number:.4f}" for number in numbers), ""])
        found.append(of_scan)
        subjects.append(path)
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomic(options.out, content.getvalue().encode())
    if not found:
        raise DataError(f"None of {len(rows)} predictions can be scored: {options.out} says why.")
    print(summary(found, subjects, options.scale_free))
    refused_rows = len(rows) - len(found)
    print(f"{options.out}: {len(rows)} predictions" + f", {refused_rows} not scored" * bool(refused_rows))


def paired(predictions: Path, scans: Path) -> list[tuple[Path, Path]]:
    """Predictions with their scans, which have the same name, or that of the prediction's first folder.

    Raises:
        DataError: If there is no prediction, or one without a scan.
    """
    there = {path.stem: path for path in _meshes(scans) if path.parent == scans}
    pairs = []
    for path in _meshes(predictions):
        inside = path.relative_to(predictions)
        name = inside.parts[0] if len(inside.parts) > 1 else path.stem
        if name not in there:
            raise DataError(f"{path} has no scan {name}.obj or {name}.ply in {scans}: put it there, or leave it out.")
        pairs.append((path, there[name]))
    if not pairs:
        raise DataError(f"{predictions} has no .obj or .ply mesh: give the folder of the predictions.")
    return pairs


def _meshes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one of .obj or .ply meshes.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SCAN_SUFFIXES)


def compare(prediction: Path, scan: Scan, unit: str, with_scale: bool) -> ScanError:
    """The error of one file, whose landmarks lie beside it as a scan's do."""
    mesh = read_scan(prediction)
    return scan_error(mesh.vertices, mesh.faces, seven_landmarks(mesh), scan, unit=unit, with_scale=with_scale)


def summary(found: list[NDArray[np.float64]], scans: list[Path], scale_free: bool) -> str:
    """Over all vertices of all scans, as NoW reports; and the mean of the meshes' means with its interval."""
    everything = np.concatenate(found)
    means = np.array([errors.mean() for errors in found])
    group = np.unique([str(path) for path in scans], return_inverse=True)[1]
    low, high = interval(bootstrap_means(means[:, None], group)[:, 0])
    return (
        f"{'scale-free' if scale_free else 'metric'}, scan to mesh: median {np.median(everything):.3f}, mean "
        f"{everything.mean():.3f}, std {everything.std():.3f} mm over all vertices; mean of {len(found)} predictions "
        f"{means.mean():.3f} [{low:.3f}, {high:.3f}] mm (95 %, scans resampled)"
    )


_DESCRIPTION = (
    "Distances in mm from scans that no model is registered to, to predicted meshes aligned by seven landmarks (eye "
    "corners, under the nose, mouth corners), as the NoW and Stirling benchmarks score."
)
