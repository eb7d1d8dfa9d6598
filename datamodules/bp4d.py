"""BP4D-S: the 1 100 photographs of Zhao 2016's test across data sets (section 6.1)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.components.annotations import Annotations
from datamodules.components.files import OnError
from datamodules.components.splits import draw_by_yaw
from datamodules.components.tables import TableFaceDataModule
from lightning_faces.errors import ConfigurationError, DataError

PROTOCOL = ((0.0, 10.0, 100), (10.0, 20.0, 500), (20.0, 30.0, 500))
"""Yaw ranges in degrees and photographs drawn from each (Zhao 2016, section 6.1)."""


class BP4D(TableFaceDataModule):
    """BP4D-S in this platform's import layout (``datamodules/table.py``), a test set; its own format is gated.

    The table holds the 45 points that BP4D-S shares with 3DFAW. Which they are is not published, so ``mapping.json`` of
    the folder must say it. Points that the 68 lack, or that average several, are masked.

    Args:
        root: The folder, or a parent of ``BP4D`` or ``BP4D-S``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        protocol: "paper" draws 100 photographs with a yaw of up to 10 degrees, 500 of 10-20 and 500 of 20-30 (needs the
            column yaw); "all" takes every row.
        landmark_scheme: Scheme that the points are put into, what it has beyond them masked: "68", or "66" for methods
            trained on 3DFAW.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        seed: Number of the draw; the paper's own is not published.
    """

    folders = ("BP4D-S", "BP4D", "bp4d")
    source = (
        "Ask Binghamton University for BP4D-Spontaneous, then bring it into the import layout with "
        "`lightning-faces datasets convert` and write mapping.json."
    )
    scheme = "45"

    def __init__(
        self,
        root: str | None = None,
        protocol: Literal["paper", "all"] = "paper",
        landmark_scheme: Literal["66", "68"] = "68",
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        seed: int = 0,
    ) -> None:
        super().__init__(root, 0.0, on_error, image_size, batch_size, num_workers, margin, seed=seed)
        if landmark_scheme not in ("66", "68"):
            raise ConfigurationError(f"BP4D option landmark_scheme is {landmark_scheme!r}: use '66' or '68'.")
        self.protocol, self.landmark_scheme = protocol, landmark_scheme

    def rows(self, split: str, table: Annotations) -> NDArray[np.int64]:
        """The draw of the paper, or all rows; there is nothing to train on."""
        if split != "test":
            return np.zeros(0, dtype=np.int64)
        if self.protocol == "all":
            return np.arange(len(table.file))
        if table.yaw is None:
            raise DataError(
                f"{table.path} has no column yaw, which the paper's draw needs: add it, or use protocol all."
            )
        return draw_by_yaw(np.nan_to_num(table.yaw, nan=np.inf), PROTOCOL, self.seed)
