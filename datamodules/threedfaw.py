"""3DFAW: the 66-point 3D face alignment challenge (Zhao 2016, section 6)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.components.annotations import Annotations
from datamodules.components.files import OnError
from datamodules.components.options import check_number
from datamodules.components.tables import TableFaceDataModule
from datamodules.components.transform import Augmentation
from lightning_faces.errors import ConfigurationError, DataError


class ThreeDFAW(TableFaceDataModule):
    """3DFAW in this platform's import layout (``datamodules/table.py``); its own file format is gated.

    18 694 training photographs with 66 points (the 68 without the inner mouth corners), depth with zero mean.
    Participants did not get the labels of the 4 912 test photographs. Where the table has no column split, 5 000 of
    the training photographs are drawn for testing and the other 13 694 are for training (the numbers are those of Zhao
    2016, the draw is this platform's own). ``subject`` and ``view`` are needed for the cross-view error.

    Args:
        root: The folder, or a parent of ``3DFAW``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        landmark_scheme: "66", or "68" with the two inner mouth corners masked.
        test_size: Photographs drawn for testing where the table has no split.
        val_fraction: Share of the training subjects (or photographs) held out for validation.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of the split, sample order and augmentation.
    """

    folders = ("3DFAW", "3dfaw", "3DFAW_train")
    source = (
        "Ask the organisers of the 3D Face Alignment in the Wild challenge (ECCV 2016) for 3DFAW, then bring it into "
        "the import layout with `lightning-faces datasets convert`."
    )
    scheme = "66"

    def __init__(
        self,
        root: str | None = None,
        landmark_scheme: Literal["66", "68"] = "66",
        test_size: int = 5000,
        val_fraction: float = 0.02,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, val_fraction, on_error, image_size, batch_size, num_workers, margin, augmentation, seed)
        if landmark_scheme not in ("66", "68"):
            raise ConfigurationError(f"ThreeDFAW option landmark_scheme is {landmark_scheme!r}: use '66' or '68'.")
        check_number("ThreeDFAW option test_size", test_size, 0)
        self.landmark_scheme, self.test_size = landmark_scheme, test_size

    def test_rows(self, table: Annotations) -> NDArray[np.int64]:
        """A seeded draw of ``test_size`` rows."""
        if len(table.file) <= self.test_size:
            raise DataError(
                f"{table.path} has {len(table.file)} faces and no column split, so no {self.test_size} can be drawn "
                "for testing: add the column, or set option test_size."
            )
        drawn = np.random.default_rng((self.seed, 66)).permutation(len(table.file))[: self.test_size]
        return np.sort(drawn)
