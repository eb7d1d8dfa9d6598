"""AFLW2000-3D: 2 000 photographs with 68 projected 3D landmarks and fitted 3DMM parameters; for tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.components.dense import DenseTargets
from datamodules.components.files import OnError
from datamodules.components.fitted import (
    SOURCE,
    Box,
    Fields,
    FittedFaceDataModule,
    FittedFaceDataset,
    FittedPose,
    photograph_pairs,
)
from datamodules.components.matfile import read_mat
from datamodules.components.options import check_number
from lightning_faces.errors import DataError
from lightning_faces.files.npz import read_npy
from lightning_faces.yaw_bins import balanced_draw


class AFLW20003DDataset(FittedFaceDataset):
    """The photographs of a folder with their .mat files; for arguments, see the base class and :class:`AFLW20003D`."""

    name = "AFLW2000-3D"
    fields = {"pt3d_68": (3, 68)}

    def __init__(
        self,
        folder: Path,
        targets: frozenset[str],
        box: Box = "tight",
        on_error: OnError = "raise",
        dense: DenseTargets | None = None,
        max_angle: float | None = None,
        yaw_list: Path | None = None,
        balanced_seed: int | None = None,
    ) -> None:
        super().__init__(folder, photograph_pairs(folder), targets, box, on_error, dense)
        self.listed_yaw = None if yaw_list is None else self._read_yaw_list(yaw_list)
        if max_angle is not None:
            self._keep([i for i, (_, label) in enumerate(self.pairs) if _angles(label).max() <= max_angle])
        if balanced_seed is not None:
            yaw = self.listed_yaw
            if yaw is None:
                yaw = np.array([_angles(label)[1] for _, label in self.pairs])
            self._keep(balanced_draw(np.abs(yaw), balanced_seed).tolist())

    def _keep(self, kept: list[int]) -> None:
        self.pairs = [self.pairs[i] for i in kept]
        if self.listed_yaw is not None:
            self.listed_yaw = self.listed_yaw[kept]

    def _read_yaw_list(self, path: Path) -> NDArray[np.float64]:
        try:
            yaw: NDArray[np.float64] = read_npy(path).astype(np.float64).reshape(-1)
        except (DataError, ValueError, TypeError) as error:
            raise DataError(f"The yaw list {path} cannot be read ({error}): give AFLW2000-3D-new.pose.npy.") from error
        if not np.isfinite(yaw).all():
            raise DataError(f"The yaw list {path} has values that are not finite: give AFLW2000-3D-new.pose.npy.")
        if len(yaw) != len(self.pairs):
            raise DataError(
                f"The yaw list {path} has {len(yaw)} values for {len(self.pairs)} photographs in {self.folder}: use "
                "the whole data set, or leave yaw_list out."
            )
        fitted = np.array([_angles(label)[1] for _, label in self.pairs])
        usual = fitted <= 90
        if np.abs(np.abs(yaw) - fitted)[usual].mean() > 15:
            raise DataError(f"The yaw list {path} does not belong to these photographs in this order.")
        return yaw

    def landmarks(
        self, index: int, fields: Fields, dense: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """``pt3d_68`` is 1-based with y down, so 0-based is one less; its depth is kept."""
        return fields["pt3d_68"].T - (1.0, 1.0, 0.0), np.ones((68, 3), dtype=bool)

    def yaw(self, index: int, fitted: FittedPose) -> float:
        """The listed yaw where there is a list."""
        return fitted.yaw if self.listed_yaw is None else float(self.listed_yaw[index])


def _angles(label: Path) -> NDArray[np.float64]:
    """Absolute pitch, yaw and roll of a label file, degrees ``[3]``."""
    return np.abs(np.degrees(read_mat(label, {"Pose_Para": (1, 7)})["Pose_Para"][0, :3]))


class AFLW20003D(FittedFaceDataModule):
    """AFLW2000-3D as distributed: ``imageNNNNN.jpg`` (450 x 450) beside ``imageNNNNN.mat``; a test set.

    Landmarks are the model's points ``pt3d_68``, whose contour stays on the jaw when the head turns. ``pose`` places
    the Basel Face Model. 31 of the 2 000 fits have an angle beyond 99 degrees, and they are kept unless ``max_angle``
    says otherwise; head-pose papers use 99 and count 1 969.

    Args:
        root: The folder, or a parent of ``aflw2000_3d``, ``AFLW2000`` or ``AFLW2000-3D``; None takes the environment's
            ``LIGHTNING_FACES_DATA``.
        box: Box that the crop is ``margin`` times as large as: "tight" around the 68 points, or "square" of side
            (w + h) / 2 on the same centre (PRNet, with margin 1.6).
        max_angle: Leave out samples with a fitted pitch, yaw or roll beyond it, degrees.
        yaw_list: The published list of AFLW's own yaw angles, ``AFLW2000-3D-new.pose.npy``, for the yaw bins; the
            fitted yaw where it is not given.
        balanced_seed: Take only 232 photographs of each yaw bin, the draw of that number: papers report on such 696,
            and their list is not published. Several draws show how far the choice matters.
        face_model: Path of the Basel Face Model 2009 that the parameters belong to, imported; for dense targets.
        position_map_size: Side of the position map.
        cache_dir: Folder where rendered dense targets are kept; None renders them each time.
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
    """

    folders = ("aflw2000_3d", "AFLW2000", "AFLW2000-3D")
    source = f"Get AFLW2000-3D {SOURCE}"

    def __init__(
        self,
        root: str | None = None,
        box: Box = "tight",
        max_angle: float | None = None,
        yaw_list: str | None = None,
        balanced_seed: int | None = None,
        face_model: str | None = None,
        position_map_size: int = 256,
        cache_dir: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
    ) -> None:
        super().__init__(
            root, box, face_model, position_map_size, cache_dir, on_error, image_size, batch_size, num_workers, margin
        )
        if max_angle is not None:
            check_number("AFLW20003D option max_angle", max_angle, 1e-3)
        if balanced_seed is not None:
            check_number("AFLW20003D option balanced_seed", balanced_seed, 0)
        self.max_angle, self.yaw_list, self.balanced_seed = max_angle, yaw_list, balanced_seed

    def make_dataset(self, split: str, targets: frozenset[str]) -> FittedFaceDataset | None:
        """The photographs, to test or to predict on; there is nothing to train on."""
        if split not in ("test", "predict"):
            return None
        dataset = AFLW20003DDataset(
            self.find(),
            targets,
            self.box,
            self.on_error,
            self.dense(targets),
            self.max_angle,
            None if self.yaw_list is None else Path(self.yaw_list).expanduser(),
            self.balanced_seed,
        )
        return self.checked(dataset, "photographs imageNNNNN.jpg")
