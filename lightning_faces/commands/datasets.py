"""``lightning-faces datasets``: which data sets are found, what each needs, and whether every file of one is good."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from datamodules.aflw2000 import AFLW20003D
from datamodules.aflwlfpa import AFLWLFPA
from datamodules.base import FaceDataset
from datamodules.bp4d import BP4D
from datamodules.components.annotations import read_annotations
from datamodules.components.convert import convert_points
from datamodules.components.files import DATA_VARIABLE, FileFaceDataModule, find_folder
from datamodules.components.render_scans import PITCHES, YAWS, render_scans
from datamodules.components.tables import TableFaceDataModule
from datamodules.florence import Florence
from datamodules.image_folder import ImageFolder
from datamodules.menpo import Menpo3D
from datamodules.table import OWN_SCHEMES
from datamodules.table import Table as OwnTable
from datamodules.threedfaw import ThreeDFAW
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D
from lightning_faces.errors import DataError, LightningFacesError
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
    "Table": (OwnTable, "your own labels: any pictures, 68, 66, 51, 49 or 21 points (import layout)"),
}


def _whole_table(root: str) -> OwnTable:
    """A user's table with the landmark scheme that it has."""
    count = read_annotations(find_folder(root, (), "Table", OwnTable.source), None).landmarks.shape[1]
    return OwnTable(root=root, landmark_scheme=str(count), test_fraction=1.0)


_WHOLE: Mapping[str, Callable[[str], FileFaceDataModule]] = {
    # Options that make a check read everything that is there, whatever the papers' splits leave out.
    "W300LP": lambda root: W300LP(root=root, include_flips=True, val_fraction=0.0),
    "W3003D": lambda root: W3003D(root=root, val_fraction=0.0),
    "BP4D": lambda root: BP4D(root=root, protocol="all"),
    "ThreeDFAW": lambda root: ThreeDFAW(root=root, test_size=0, val_fraction=0.0),
    "ImageFolder": lambda root: ImageFolder(root=root),
    "Table": _whole_table,
}
SPLITS = ("train", "val", "test")


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: Those after ``datasets``.

    Returns:
        0 if all is well, 1 if a check found bad files.

    Raises:
        LightningFacesError: In one sentence, if something cannot be done.
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
    convert.add_argument(
        "images", type=Path, metavar="FOLDER", help="folder of the pictures, which becomes the data set's"
    )
    convert.add_argument(
        "points", type=Path, metavar="POINTS", help="folder with X.txt, X.csv or X.pts for each picture X"
    )
    convert.add_argument("--one-based", action="store_true", help="the top-left pixel is (1, 1), as in MATLAB and .pts")
    convert.add_argument(
        "--missing",
        type=float,
        metavar="NUMBER",
        help="points whose x and y are both this are not annotated, such as -1",
    )
    render = commands.add_parser("render", help="render scans in the poses of Florence, and write annotations.npz")
    render.add_argument("folder", type=Path, metavar="FOLDER", help="folder of scans, which becomes the data set's")
    render.add_argument("--pitch", type=float, nargs="+", default=PITCHES, help="degrees (default: -15 -20 -25)")
    render.add_argument("--yaw", type=float, nargs="+", default=YAWS, help="degrees (default: -80 -40 0 40 80)")
    render.add_argument("--size", type=int, default=450, help="side of a picture in pixels (default: 450)")
    options = parser.parse_args(list(arguments))
    if options.command == "render":
        print(f"wrote {render_scans(options.folder, options.pitch, options.yaw, options.size)}")
        return 0
    if options.command == "check":
        return check_data_set(options.name, options.path)
    if options.command == "convert":
        return write_table(options.name, Path(options.images), Path(options.points), options.one_based, options.missing)
    list_data_sets(options.root)
    return 0


def write_table(name: str, images: Path, points: Path, one_based: bool, missing: float | None) -> int:
    """Write the table of a folder of pictures, and say how to use it."""
    kind = DATA_SETS[name][0]
    schemes = OWN_SCHEMES if kind is OwnTable else (str(kind.scheme),)  # type: ignore[attr-defined]
    written, scheme = convert_points(
        {num_landmarks(scheme): scheme for scheme in schemes}, images, points, one_based, missing
    )
    print(f"wrote {written}")
    if kind is OwnTable:
        option = "" if scheme == "68" else f" --data.landmark_scheme {scheme}"
        print(f"use it with --data Table --data.root {images}{option}")
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
        module.configure(dataset, split)
        dataset.augmentation = None
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
