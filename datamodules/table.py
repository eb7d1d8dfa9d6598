"""Your own labels, and the import layout of data sets whose own format is gated or unpublished.

A folder with ``annotations.csv`` or ``annotations.npz`` and the pictures that it names. One row is one face:

========================  =====================================================================================
column (CSV)              meaning
========================  =====================================================================================
``file``                  Path of the photograph or video below the folder. The only column that must be there.
``x0 y0 z0 x1 y1 ...``    Landmarks in pixels of the file, 0-based: the centre of the top-left pixel is (0, 0), y
                          points down; z is in pixels too, larger towards the viewer. An empty cell is a coordinate
                          that is not annotated.
``visible0 visible1 ...`` 1 where the landmark is visible, else 0.
``box_x0 ... box_y1``     Face box in pixels; else the tight box of the annotated landmarks.
``yaw``                   Degrees, positive with the nose towards the image left.
``scale pitch yaw_rad roll tx ty``  Weak-perspective pose: px/mm, radians, pixels.
``subject view sequence frame``  Whole numbers; ``frame`` is 0-based and needed for videos.
``split``                 "train", "val" or "test".
``scan``                  Path of the face's 3D scan (OBJ or PLY) below the folder.
========================  =====================================================================================

The NPZ has one array per column group: ``files`` ``[N]``, ``landmarks`` ``[N, L, 3]`` (NaN: not annotated), ``visible``
``[N, L]``, ``box`` ``[N, 4]``, ``yaw`` ``[N]``, ``pose`` ``[N, 6]``, ``subject`` and so on ``[N]``, ``split`` ``[N]``,
``scan`` ``[N]``. ``lightning-faces datasets convert`` writes it from one text file of points per picture.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from datamodules.components.annotations import Annotations
from datamodules.components.files import OnError
from datamodules.components.images import MAX_PIXELS
from datamodules.components.options import check_number
from datamodules.components.tables import TableFaceDataModule
from datamodules.components.transform import Augmentation
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.landmarks import SCHEMES

OWN_SCHEMES = tuple(name for name, scheme in SCHEMES.items() if scheme.groups is not None)


class Table(TableFaceDataModule):
    """Your own labels: a folder of pictures with ``annotations.csv`` or ``annotations.npz``.

    Without the column split, a share of the photographs (of the subjects, where the table has them) is held out for
    testing and another for validation, each at least one; which ones follows from their names alone.

    Args:
        root: The folder.
        landmark_scheme: Scheme of the table's points: "68" (iBUG), "66", "51", "49" or "21".
        missing: Points whose x and y are both this number (such as -1) are not annotated; else their cells are empty.
        test_fraction: Share held out for testing, where the table has no split; 1 takes all rows for testing.
        val_fraction: Share of the others held out for validation, where the table has none.
        max_megapixels: Pictures of more million pixels are refused before they are decoded.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    folders = ()
    source = "Write annotations.csv, or let `lightning-faces datasets convert Table FOLDER POINTS` write the table."

    def __init__(
        self,
        root: str,
        landmark_scheme: str = "68",
        missing: float | None = None,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        max_megapixels: float = MAX_PIXELS / 1e6,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, val_fraction, on_error, image_size, batch_size, num_workers, margin, augmentation, seed)
        if landmark_scheme not in OWN_SCHEMES:
            raise ConfigurationError(
                f"Table option landmark_scheme is {landmark_scheme!r}: use one of {', '.join(OWN_SCHEMES)}."
            )
        check_number("Table option test_fraction", test_fraction, 0, 1)
        check_number("Table option max_megapixels", max_megapixels, 0.001)
        self.landmark_scheme, self.missing, self.test_fraction = landmark_scheme, missing, test_fraction
        self.max_pixels = int(max_megapixels * 1e6)

    @property
    def scheme(self) -> str:
        """The table's points are those of the batch."""
        return self.landmark_scheme

    def rows(self, split: str, table: Annotations) -> NDArray[np.int64]:
        """Rows of a split: the table's own, or shares of the subjects (or photographs) by a hash of their names."""
        if table.split is not None:
            return super().rows(split, table)
        subject = table.numbers.get("subject")
        named = table.file if subject is None else [name if s < 0 else str(s) for name, s in zip(table.file, subject)]
        groups = sorted(set(named), key=lambda name: hashlib.sha256(name.encode()).digest())
        test = _share(self.test_fraction, len(groups))
        val = _share(self.val_fraction, len(groups) - test)
        chosen = {"test": groups[:test], "val": groups[test : test + val], "train": groups[test + val :]}[split]
        return np.nonzero(np.isin(named, chosen))[0]


def _share(fraction: float, count: int) -> int:
    """A share of so many, at least one where any is wanted."""
    return min(count, max(1, round(fraction * count))) if fraction > 0 else 0
