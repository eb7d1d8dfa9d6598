"""What data sets of files share: finding the folder, naming bad files, skipping them where that is wanted."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import FaceDataModule, FaceDataset
from datamodules.components.sampling import SampleKey
from datamodules.components.transform import Augmentation
from lightning_faces.errors import DataError

DATA_VARIABLE = "LIGHTNING_FACES_DATA"
"""Environment variable with the folder that is searched for data sets where no root is given."""
OnError = Literal["raise", "skip"]


def find_folder(root: str | None, folders: Sequence[str], what: str, source: str) -> Path:
    """The folder of a data set: the root itself where it is called so or has the content, or a folder in it.

    Args:
        root: Folder of the data set or of several data sets; None takes the environment's ``LIGHTNING_FACES_DATA``.
        folders: Names that the data set's folder may have.
        what: Name of the data set.
        source: Where to get it.

    Returns:
        The resolved folder: a child of the root with one of the names, else the root itself.

    Raises:
        DataError: If there is no root.
    """
    if root is None:
        root = os.environ.get(DATA_VARIABLE)
        if not root:
            raise DataError(
                f"{what} has no root and {DATA_VARIABLE} is not set: give data option root, or set it. {source}"
            )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"The data folder {base} of {what} does not exist: {source}")
    for name in folders:
        if (base / name).is_dir():
            return (base / name).resolve()
    return base.resolve()


def walk_files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files below a folder with any of the suffixes (lower case), sorted; links to folders are not followed."""
    for current, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield Path(current) / name


OTHER_PICTURES = frozenset(
    {
        ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".gif", ".apng", ".tga", ".ppm", ".pgm",
        ".pbm", ".pnm", ".psd", ".xcf", ".exr", ".hdr", ".ico", ".svg", ".eps", ".dng", ".raw", ".cr2", ".cr3", ".nef",
        ".arw", ".orf", ".rw2", ".raf", ".pcx", ".dib", ".jps", ".mpo", ".insp", ".bpg", ".qoi", ".wdp", ".jxr",
    }
)  # fmt: skip
"""Endings of pictures that are not read."""
OTHER_VIDEOS = frozenset(
    {
        ".wmv", ".flv", ".mpg", ".mpeg", ".mpe", ".m2v", ".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".ogv", ".vob", ".asf",
        ".qt", ".mxf", ".f4v", ".y4m", ".mjpeg", ".mjpg", ".h264", ".hevc",
    }
)  # fmt: skip


def warn_left_out(folder: Path, used: frozenset[str], what: str) -> None:
    """Say which pictures and videos of a folder :func:`walk_files` leaves out, by number and ending.

    Args:
        folder: The folder.
        used: Endings of the files that are used.
        what: What uses them, for the message.
    """
    others: dict[str, list[Path]] = defaultdict(list)
    for current, folders, names in os.walk(folder):
        others["links to folders"] += [Path(current) / name for name in folders if (Path(current) / name).is_symlink()]
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in (OTHER_PICTURES | OTHER_VIDEOS) - used and not name.startswith("."):
                others[suffix].append(Path(current) / name)
            elif not suffix and not name.startswith(".") and name.upper() not in ("README", "LICENSE", "MAKEFILE"):
                others["without an ending"].append(Path(current) / name)
    counts = {kind: sorted(paths) for kind, paths in sorted(others.items()) if paths}
    if counts:
        total = sum(map(len, counts.values()))
        kinds = ", ".join(f"{len(paths)} {kind} ({paths[0].relative_to(folder)})" for kind, paths in counts.items())
        warnings.warn(
            f"{what} leaves out {total} file(s) of {folder}: {kinds}, ... Convert them to {', '.join(sorted(used))}.",
            stacklevel=2,
        )


def any_case(path: Path) -> Path:
    """The path, or the one beside it whose name differs in upper and lower case alone; itself without such a one."""
    if path.exists() or not path.parent.is_dir():
        return path
    same = [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower()]
    return same[0] if len(same) == 1 else path


def inside(folder: Path, path: Path) -> Path:
    """The path, after a check that it is no link out of the data set's folder.

    Raises:
        DataError: If it is: what is read would not be the data set.
    """
    if path.is_symlink() and not path.resolve().is_relative_to(folder):
        raise DataError(f"{path} is a link out of {folder}: put the file itself there.")
    return path


def tight_box(points: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Box (x0, y0, x1, y1) of points ``[L, >=2]``.

    Raises:
        DataError: If it has no area or is not finite.
    """
    if not len(points):
        raise DataError(f"{path} has no landmark whose place is known: replace or remove the file.")
    box = np.concatenate((points[:, :2].min(axis=0), points[:, :2].max(axis=0))).astype(np.float64)
    if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        raise DataError(f"{path} has landmarks whose box {box.tolist()} is empty: replace or remove the file.")
    return box


def square_box(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square of side ``(w + h) / 2`` around the centre of a box: PRNet's crop is 1.6 times it (its ``api.py``)."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).mean() / 2
    return np.concatenate((centre - half, centre + half))


class FileFaceDataset(FaceDataset):
    """Faces in files.

    Attributes:
        folder: Resolved folder of the data set; nothing outside is read.
        on_error: "raise" stops at a bad file; "skip" leaves the sample out of its batch, warns once, and counts it.
    """

    folder: Path
    on_error: OnError = "raise"
    _bad: torch.Tensor | None = None

    @abstractmethod
    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample, image first."""

    def sample_id(self, index: int) -> str:
        """Name of a sample: the image's path in the data set, without its suffix."""
        return self.files(index)[0].relative_to(self.folder).with_suffix("").as_posix()

    def fingerprint(self) -> str:
        """Hash of the names and sizes of all files and, up to 10 000 samples, of the content of all label files."""
        digest = hashlib.sha256(self.name.encode())
        for index in range(len(self)):
            image, *labels = self.files(index)
            digest.update(f"{image.relative_to(self.folder).as_posix()}:{_size(image)}\n".encode())
            for label in labels:
                whole = len(self) <= 10_000 and label.exists()
                digest.update(label.read_bytes() if whole else str(_size(label)).encode())
        return digest.hexdigest()[:16]

    def share(self) -> None:
        """Make the marks of bad samples, in shared memory so that what loader processes mark is seen here."""
        if self._bad is None:
            self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def skipped(self) -> int:
        """Number of samples that were left out because of bad files, over all loader processes."""
        return 0 if self._bad is None else int(self._bad.sum())

    def samples(self, keys: Sequence[int | SampleKey]) -> list[dict[str, Any]]:
        """Samples for keys; with ``on_error="skip"`` only those whose files are good."""
        if self.on_error == "raise":
            return super().samples(keys)
        self.share()
        assert self._bad is not None
        samples: list[dict[str, Any]] = []
        for key in keys:
            index = key if isinstance(key, int) else key[0]
            try:
                samples.extend(super().samples([key]))
            except DataError as error:
                if not self._bad[index]:
                    self._bad[index] = True
                    warnings.warn(f"{self.name} skips a sample: {error}", stacklevel=2)
        return samples


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


class FileFaceDataModule(FaceDataModule):
    """A data module whose faces are files below a root folder.

    Args:
        root: The data set's folder or a parent of it; None takes the environment's ``LIGHTNING_FACES_DATA``.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the face box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    folders: ClassVar[tuple[str, ...]]
    """Names that the data set's folder may have below the root."""
    source: ClassVar[str]
    """Where to get the data set, and under which terms."""

    def __init__(
        self,
        root: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, margin, augmentation, seed)
        self.root, self.on_error = root, on_error

    def find(self) -> Path:
        """The data set's folder."""
        return find_folder(self.root, self.folders, self.name, self.source)

    def teardown(self, stage: str) -> None:
        """Say how many samples were left out."""
        for split, dataset in self.datasets.items():
            if isinstance(dataset, FileFaceDataset) and dataset.skipped:
                warnings.warn(
                    f"{dataset.skipped} of {len(dataset)} {split} samples of {self.name} were skipped because of bad "
                    f"files: `lightning-faces datasets check {self.name} {dataset.folder}` lists them.",
                    stacklevel=2,
                )
