"""300W-LP: 61 225 photographs of 300W and copies of them rotated in depth, with fitted 3DMM parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.components.dense import DenseTargets
from datamodules.components.files import OnError, any_case, inside
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
from datamodules.components.matfile import read_mat
from datamodules.components.splits import check_fraction, hold_out
from datamodules.components.transform import Augmentation
from lightning_faces.errors import ConfigurationError, DataError

SUBSETS = ("AFW", "HELEN", "IBUG", "LFPW")


class W300LPDataset(LabelledFaceDataset):
    """Photographs of some subsets; for arguments, see :class:`W300LP`.

    Args:
        folder: The data set's folder.
        samples: Photograph and .mat file of each sample.
        subjects: Number of the original photograph of each sample.
        targets: Target keys to give.
        landmarks: "3d" or "2d".
        box: "tight" or "square".
        on_error: "raise" or "skip".
        dense: Makes dense targets.
    """

    name = "300W-LP"

    def __init__(
        self,
        folder: Path,
        samples: list[tuple[Path, Path]],
        subjects: Sequence[int],
        targets: frozenset[str],
        landmarks: Landmarks = "3d",
        box: Box = "tight",
        on_error: OnError = "raise",
        dense: DenseTargets | None = None,
    ) -> None:
        super().__init__(folder, samples, targets, landmarks, box, on_error, dense)
        self.subjects = subjects
        self.labelled = (folder / "landmarks").is_dir()

    def numbers(self, index: int) -> dict[str, int]:
        """The original photograph and the number of its rotated copy."""
        view = self.pairs[index][0].stem.rpartition("_")[2]
        return {"subject": self.subjects[index], "view": int(view) if view.isdigit() else -1}

    def labels(self, index: int, fields: Fields) -> NDArray[np.float64]:
        """``pts_3d`` or ``pts_2d`` of the label file."""
        key = f"pts_{self.scheme}"
        return read_mat(inside(self.folder, self._label_file(index)), {key: (68, 2)})[key]

    def labelled_by(self, index: int) -> Path:
        """The label file, where the points are its."""
        modelled = self.scheme == "3d" and self.dense is not None
        return super().labelled_by(index) if modelled else self._label_file(index)

    def _label_file(self, index: int) -> Path:
        photograph = self.pairs[index][0]
        return any_case(self.folder / "landmarks" / photograph.parent.name / f"{photograph.stem}_pts.mat")

    def check_model(self, count: int = 8) -> None:
        """Compare the face model with the labels where there are labels of the same points."""
        if self.labelled and self.scheme == "3d":
            super().check_model(count)


class W300LP(FittedFaceDataModule):
    """300W-LP as distributed: ``{AFW,HELEN,IBUG,LFPW}[_Flip]/X.jpg`` with ``X.mat``, ``landmarks/SET/X_pts.mat``.

    The field ``pt2d`` of ``X.mat`` is the label of the photograph before it was rotated, the same in all its copies; it
    is not used. Validation photographs are held out together with all their copies.

    Args:
        root: The folder, or a parent of ``300W_LP`` or ``300w_lp``; None takes the environment's
            ``LIGHTNING_FACES_DATA``.
        subsets: Which of AFW, HELEN, IBUG and LFPW.
        include_flips: Take the ``_Flip`` folders too; the augmentation's reflection does the same.
        landmarks: "3d": the fixed points of the face model, as in AFLW2000-3D: all three coordinates from the face
            model where it is given, else x and y from ``pts_3d``. "2d": iBUG's, whose contour follows the silhouette
            (``pts_2d``).
        val_fraction: Share of the original photographs that is held out for validation.
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

    folders = ("300W_LP", "300w_lp", "300W-LP")
    source = f"Get 300W-LP {SOURCE}"

    def __init__(
        self,
        root: str | None = None,
        subsets: Sequence[str] = SUBSETS,
        include_flips: bool = False,
        landmarks: Landmarks = "3d",
        val_fraction: float = 0.02,
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
        unknown = sorted(set(subsets) - set(SUBSETS))
        if unknown:
            raise ConfigurationError(f"W300LP has no subset {unknown[0]!r}: choose among {', '.join(SUBSETS)}.")
        if not subsets:
            raise ConfigurationError(f"W300LP option subsets is empty: choose among {', '.join(SUBSETS)}.")
        self.subsets, self.include_flips = tuple(subsets), include_flips
        self.landmarks, self.val_fraction = landmarks, check_fraction(self.name, val_fraction)

    def make_dataset(self, split: str, targets: frozenset[str]) -> FittedFaceDataset | None:
        """Training or validation photographs; the published test set of this kind is AFLW2000-3D."""
        if split not in ("train", "val"):
            return None
        folder = self.find()
        dense = self.dense(targets)
        if not (folder / "landmarks").is_dir() and (dense is None or self.landmarks == "2d"):
            raise DataError(
                f"{folder} has no folder landmarks, and pt2d in the .mat files is the label before rotation: put the "
                "archive's landmarks folder there, or give option face_model to project the landmarks."
            )
        samples = []
        for subset in self.subsets:
            for name in (subset, f"{subset}_Flip") if self.include_flips else (subset,):
                samples += photograph_pairs(folder / name)
        originals = [photograph.stem.rpartition("_")[0] for photograph, _ in samples]
        number = {name: i for i, name in enumerate(sorted(set(originals)))}
        held = hold_out(originals, self.val_fraction) == (split == "val")
        chosen = np.nonzero(held)[0].tolist()
        dataset = W300LPDataset(
            folder,
            [samples[i] for i in chosen],
            [number[originals[i]] for i in chosen],
            targets,
            self.landmarks,
            self.box,
            self.on_error,
            dense,
        )
        if split == "val" and samples and not len(dataset):
            return None
        return self.checked(dataset, f"photographs in {', '.join(self.subsets)}")
