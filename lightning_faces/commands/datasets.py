"""``lightning-faces datasets``: which data sets are found, what each needs, and whether every file of one is good."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datamodules.aflw2000 import AFLW20003D
from datamodules.aflwlfpa import AFLWLFPA
from datamodules.base import FaceDataset
from datamodules.bp4d import BP4D
from datamodules.components.annotations import Annotations
from datamodules.components.files import DATA_VARIABLE, FileFaceDataModule, walk_files
from datamodules.components.images import IMAGE_SUFFIXES
from datamodules.components.render_scans import PITCHES, YAWS, render_scans
from datamodules.components.tables import TableFaceDataModule
from datamodules.florence import Florence
from datamodules.image_folder import ImageFolder
from datamodules.menpo import Menpo3D
from datamodules.threedfaw import ThreeDFAW
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D
from lightning_faces.errors import ConfigurationError, DataError, LightningFacesError
from lightning_faces.geometry.landmarks import num_landmarks

DATA_SETS: Mapping[str, tuple[type[FileFaceDataModule], str]] = {
    "W300LP": (W300LP, "300W-LP, training: 61 225 photographs, 3DMM parameters"),
    "W3003D": (W3003D, "300W-3D, training: 3 837 photographs, 3DMM parameters"),
    "AFLW20003D": (AFLW20003D, "AFLW2000-3D, test: 2 000 photographs, 3DMM parameters"),
    "ThreeDFAW": (ThreeDFAW, "3DFAW: 18 694 photographs, 66 points (import layout)"),
    "BP4D": (BP4D, "BP4D-S, test: 1 100 photographs, 45 points (import layout)"),
    "AFLWLFPA": (AFLWLFPA, "AFLW-LFPA, test: 1 299 photographs, 34 points (import layout)"),
    "Florence": (Florence, "Florence, test: 53 scanned subjects in 15 poses (import layout)"),
    "Menpo3D": (Menpo3D, "Menpo 3D tracking: videos, 68 points (import layout)"),
}
_WHOLE: Mapping[str, Callable[[str], FileFaceDataModule]] = {
    # Options that make a check read everything that is there, whatever the papers' splits leave out.
    "W300LP": lambda root: W300LP(root=root, include_flips=True, val_fraction=0.0),
    "W3003D": lambda root: W3003D(root=root, val_fraction=0.0),
    "BP4D": lambda root: BP4D(root=root, protocol="all"),
    "ThreeDFAW": lambda root: ThreeDFAW(root=root, test_size=0, val_fraction=0.0),
    "ImageFolder": lambda root: ImageFolder(root=root),
}
SPLITS = ("train", "val", "test")


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: Those after ``datasets``.

    Returns:
        0 if all is well, 1 if a check found bad files, 2 for bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-faces datasets",
        description="List the data sets, read one through, or bring one into the import layout.",
        epilog="The import layout is described in datamodules/table.py.",
    )
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="FOLDER",
        help=f"where to look, may be repeated; {DATA_VARIABLE} is searched too",
    )
    commands = parser.add_subparsers(dest="command")
    check = commands.add_parser("check", help="read every file once and report every bad one")
    check.add_argument("name", choices=[*DATA_SETS, "ImageFolder"], metavar="NAME", help=", ".join(DATA_SETS))
    check.add_argument("path", metavar="PATH", help="folder of the data set")
    convert = commands.add_parser("convert", help="write annotations.npz from one text file of points per picture")
    tables = [name for name, (kind, _) in DATA_SETS.items() if issubclass(kind, TableFaceDataModule)]
    convert.add_argument("name", choices=tables, metavar="NAME", help=", ".join(tables))
    convert.add_argument("images", metavar="FOLDER", help="folder of the pictures, which becomes the data set's")
    convert.add_argument("points", metavar="POINTS", help="folder with X.txt, X.csv or X.pts for each picture X")
    convert.add_argument("--one-based", action="store_true", help="the top-left pixel is (1, 1), as in MATLAB and .pts")
    render = commands.add_parser("render", help="render scans in the poses of Florence, and write annotations.npz")
    render.add_argument("folder", type=Path, metavar="FOLDER", help="folder of scans, which becomes the data set's")
    render.add_argument("--pitch", type=float, nargs="+", default=PITCHES, help="degrees (default: -15 -20 -25)")
    render.add_argument("--yaw", type=float, nargs="+", default=YAWS, help="degrees (default: -80 -40 0 40 80)")
    render.add_argument("--size", type=int, default=450, help="side of a picture in pixels (default: 450)")
    options = parser.parse_args(list(arguments))
    try:
        if options.command == "render":
            print(f"wrote {render_scans(options.folder, options.pitch, options.yaw, options.size)}")
            return 0
        if options.command == "check":
            return check_data_set(options.name, options.path)
        if options.command == "convert":
            written = convert_points(options.name, Path(options.images), Path(options.points), options.one_based)
            print(f"wrote {written}")
            return 0
        list_data_sets(options.root)
    except LightningFacesError as error:
        print(f"lightning-faces datasets: {error}", file=sys.stderr)
        return 2
    return 0


def list_data_sets(roots: Sequence[str]) -> None:
    """Print a table of all data sets: where each was found, its samples, and what is missing."""
    searched = [Path(root).expanduser() for root in [*roots, os.environ.get(DATA_VARIABLE, "")] if root]
    table = Table(
        title=f"searched: {', '.join(map(str, searched)) or 'nothing (give --root, or set ' + DATA_VARIABLE + ')'}"
    )
    for column in ("name", "what", "found", "samples", "what is missing, or where to get it"):
        table.add_column(column, overflow="fold")
    for name, (kind, what) in DATA_SETS.items():
        folder = locate(kind, searched)
        if folder is None:
            table.add_row(name, what, "no", "", kind.source)
            continue
        counts, problems = [], []
        module = kind(root=str(folder))
        for split in SPLITS:
            try:
                dataset = module.make_dataset(split, module.available_targets)
            except LightningFacesError as error:
                if str(error) not in problems:
                    problems.append(str(error))
                continue
            if dataset is not None:
                counts.append(f"{len(dataset)} {split}")
        table.add_row(name, what, str(folder), "\n".join(counts), "\n".join(problems))
    # Wide enough for a path where the output is a file or a pipe.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        "SyntheticFaces needs no files, ImageFolder takes any folder of photographs and videos, Mixed joins several."
    )


def locate(kind: type[FileFaceDataModule], roots: Sequence[Path]) -> Path | None:
    """The first folder of a data set below, or among, the roots."""
    for root in roots:
        for name in kind.folders:
            if (root / name).is_dir():
                return root / name
        if root.name in kind.folders and root.is_dir():
            return root
    return None


def check_data_set(name: str, path: str) -> int:
    """Read every sample of a data set once and print what is wrong with each bad one.

    Returns:
        0 if all are good, else 1.
    """
    kind = ImageFolder if name == "ImageFolder" else DATA_SETS[name][0]
    module = _WHOLE[name](path) if name in _WHOLE else kind(root=path)
    console = Console()
    bad = total = 0
    for split in ("predict",) if kind is ImageFolder else SPLITS:
        dataset = module.make_dataset(split, module.available_targets)
        if dataset is None:
            continue
        dataset.image_size, dataset.margin = module.image_size, module.margin
        total += len(dataset)
        for index in track(range(len(dataset)), description=f"{name} {split}", console=console):
            problem = _problem(dataset, index)
            if problem is not None:
                bad += 1
                console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if total == 0:
        raise DataError(f"{path} has no sample of {name}: {kind.source}")
    console.print(f"{total - bad} of {total} samples are good, {bad} are bad.", highlight=False)
    return 1 if bad else 0


def _problem(dataset: FaceDataset, index: int) -> str | None:
    try:
        dataset[index]
    except DataError as error:
        return str(error)
    return None


def convert_points(name: str, images: Path, points: Path, one_based: bool) -> Path:
    """Write ``annotations.npz`` into a folder of pictures from one text file of points per picture.

    A file has one point per line, two or three numbers (x, y and, if known, z in pixels, larger towards the viewer);
    other lines (the head of a .pts file) are left out.

    Args:
        name: Data set.
        images: Folder of the pictures.
        points: Folder with a file of points for each, at the same place below it.
        one_based: Whether the top-left pixel is (1, 1).

    Raises:
        DataError: If a folder is empty or a file is missing or has another number of points than the data set's scheme.
    """
    kind = DATA_SETS[name][0]
    assert issubclass(kind, TableFaceDataModule)
    if not images.is_dir():
        raise DataError(f"The folder of pictures {images} does not exist: give the folder that holds them.")
    count = num_landmarks(kind.scheme)
    names, rows = [], []
    for image in walk_files(images, IMAGE_SUFFIXES):
        place = (points / image.relative_to(images)).with_suffix("")
        files = [place.with_suffix(suffix) for suffix in (".txt", ".csv", ".pts")]
        file = next((candidate for candidate in files if candidate.exists()), None)
        if file is None:
            raise DataError(f"{files[0]} does not exist, nor with .csv or .pts: each picture needs its points.")
        values = read_points(file)
        if len(values) != count:
            raise DataError(f"{file} has {len(values)} points, not the {count} of {name}: map them first.")
        values[:, :2] -= float(one_based)
        names.append(image.relative_to(images).as_posix())
        rows.append(values)
    if not names:
        raise DataError(f"There is no picture in {images}: give the folder that holds them.")
    target = images / "annotations.npz"
    if target.exists():
        raise ConfigurationError(f"{target} exists: remove it to write it again.")
    return Annotations(target, names, np.stack(rows)).save()


def read_points(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Points of a text file ``[L, 3]``, NaN for a depth that it lacks."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a text file of points.") from error
    rows = []
    for line in lines:
        try:
            numbers = [float(cell) for cell in re.split(r"[\s,;]+", line.strip())]
        except ValueError:
            continue
        if len(numbers) in (2, 3):
            rows.append([*numbers, np.nan][:3])
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
