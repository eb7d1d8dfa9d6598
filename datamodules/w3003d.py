"""300W-3D: the 3 837 photographs of 300W with fitted 3DMM parameters, before 300W-LP rotates them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.components.files import OnError
from datamodules.components.fitted import (
    SOURCE,
    Box,
    Fields,
    FittedFaceDataModule,
    FittedFaceDataset,
    LabelledFaceDataset,
    Landmarks,
    photograph_pairs,
)
from datamodules.components.splits import check_fraction, hold_out
from datamodules.components.transform import Augmentation
from lightning_faces.errors import ConfigurationError

TRAIN_SUBSETS = ("AFW", "HELEN", "LFPW")
TEST_SUBSETS = ("IBUG",)


class W3003DDataset(LabelledFaceDataset):
    """Photographs of some subsets; for arguments, see the base class and :class:`W3003D`."""

    name = "300W-3D"
    fields = {"pt2d": (2, 68)}

    def labels(self, index: int, fields: Fields) -> NDArray[np.float64]:
        """``pt2d``, which here is the label of the photograph itself."""
        return fields["pt2d"].T

    def check_model(self, count: int = 8) -> None:
        """Nothing to compare with: the labelled contour follows the silhouette, and the model's does not."""


class W3003D(FittedFaceDataModule):
    """300W-3D as distributed: ``{AFW,HELEN,IBUG,LFPW}/X.jpg`` with ``X.mat``.

    Here ``pt2d`` is the label of the photograph itself. IBUG, the challenging set of 300W, is the test split.

    Args:
        root: The folder, or a parent of ``300W-3D``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        landmarks: "2d": iBUG's points ``pt2d``, without depth. "3d": the fixed points of the face model, which must be
            given.
        val_fraction: Share of the AFW, HELEN and LFPW photographs that is held out for validation.
        box: Box that the crop is ``margin`` times as large as: "tight" around the 68 points, or "square" of side
            (w + h) / 2 on the same centre (PRNet, with margin 1.6).
        face_model: Path of the Basel Face Model 2009 that the parameters belong to, imported; for dense targets.
        position_map_size: Side of the position map.
        cache_dir: Folder where rendered dense targets are kept; None renders them each time.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    folders = ("300W-3D", "300W_3D", "300w_3d")
    source = f"Get 300W-3D {SOURCE}"

    def __init__(
        self,
        root: str | None = None,
        landmarks: Landmarks = "2d",
        val_fraction: float = 0.05,
        box: Box = "tight",
        face_model: str | None = None,
        position_map_size: int = 256,
        cache_dir: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root, box, face_model, position_map_size, cache_dir, on_error,
            image_size, batch_size, num_workers, margin, augmentation, seed,
        )  # fmt: skip
        if landmarks == "3d" and face_model is None:
            raise ConfigurationError(
                'W3003D option landmarks is "3d", which needs the face model: give option face_model, or use "2d".'
            )
        self.landmarks, self.val_fraction = landmarks, check_fraction(self.name, val_fraction)

    def make_dataset(self, split: str, targets: frozenset[str]) -> FittedFaceDataset | None:
        """Training, validation or (IBUG) test photographs."""
        if split not in ("train", "val", "test"):
            return None
        folder = self.find()
        samples = []
        for name in TEST_SUBSETS if split == "test" else TRAIN_SUBSETS:
            samples += photograph_pairs(folder / name)
        found = len(samples)
        if split != "test":
            held = hold_out([photograph.stem for photograph, _ in samples], self.val_fraction) == (split == "val")
            samples = [samples[i] for i in np.nonzero(held)[0]]
        if split == "val" and found and not samples:
            return None
        dataset = W3003DDataset(folder, samples, targets, self.landmarks, self.box, self.on_error, self.dense(targets))
        return self.checked(dataset, f"{split} photographs")
