"""AFLW-LFPA: 1 299 photographs with 34 points, for alignment at large poses (PRNet, section 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.components.annotations import Annotations
from datamodules.components.files import OnError
from datamodules.components.tables import TableFaceDataModule


class AFLWLFPA(TableFaceDataModule):
    """AFLW-LFPA in this platform's import layout (``datamodules/table.py``), a test set.

    The table holds the 34 points (21 of AFLW and 13 more) and which are visible; the error is measured on visible ones.
    How they match the 68 is not published, so ``mapping.json`` of the folder must say it. Points that average several
    of the 68 are masked. The columns box_x0 to box_y1 should hold the face box of the benchmark: the box of the visible
    points alone is too small at large poses.

    Args:
        root: The folder, or a parent of ``AFLW-LFPA``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
    """

    folders = ("AFLW-LFPA", "AFLW_LFPA", "aflw_lfpa")
    source = (
        "Get AFLW-LFPA from its authors (Jourabloo and Liu, Michigan State University) and AFLW for its photographs, "
        "then bring it into the import layout with `lightning-faces datasets convert` and write mapping.json."
    )
    scheme = "34"

    def __init__(
        self,
        root: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
    ) -> None:
        super().__init__(root, 0.0, on_error, image_size, batch_size, num_workers, margin)

    def rows(self, split: str, table: Annotations) -> NDArray[np.int64]:
        """All rows are for testing."""
        return np.arange(len(table.file)) if split == "test" else np.zeros(0, dtype=np.int64)
