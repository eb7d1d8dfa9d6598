"""AFLW2000-3D: 2 000 photographs with 68 projected 3D landmarks and fitted 3DMM parameters; for tests only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.base import FaceDataset
from datamodules.crop import RawFace
from datamodules.files import FileFaceDataModule, FileFaceDataset, OnError, inside, square_box, tight_box
from datamodules.images import read_image
from datamodules.matfile import read_mat
from lightning_faces.errors import DataError


@dataclass(frozen=True)
class FittedPose:
    """``Pose_Para`` of 300W-LP and AFLW2000-3D in this platform's frames.

    Attributes:
        pose: Scale px/mm, pitch, yaw, roll in radians, tx, ty in 0-based pixels of the file, y down. It places the
            Basel Face Model (millimetres, its own origin). None where the file's scale is not positive.
        yaw: Degrees, as in the file.
        angles: Pitch, yaw, roll in degrees, as in the file.
    """

    pose: NDArray[np.float32] | None
    yaw: float
    angles: NDArray[np.float64]


def convert_pose(pose_para: NDArray[np.float64], height: int) -> FittedPose:
    """Convert ``Pose_Para`` (pitch, yaw, roll, tx, ty, tz, f).

    The file projects micrometres by ``V = f R S + t`` with ``x = Vx``, ``y = height + 1 - Vy`` in 1-based pixels
    (300W-LP ``main_show_with_BFM.m``); 0-based that is ``(Vx - 1, height - Vy)``.

    Args:
        pose_para: ``[7]``.
        height: Height of the image in pixels.
    """
    pitch, yaw, roll, tx, ty, _, f = (float(value) for value in pose_para)
    pose = None
    if f > 0:  # one sample of AFLW2000-3D has a negative scale: a point reflection, which is no pose
        pose = np.array([f * 1000, pitch, yaw, roll, tx - 1, height - ty], dtype=np.float32)
    return FittedPose(pose, float(np.degrees(yaw)), np.degrees([pitch, yaw, roll]))


class AFLW20003DDataset(FileFaceDataset):
    """The photographs of a folder with their .mat files.

    Args:
        folder: Folder with ``imageNNNNN.jpg`` and ``imageNNNNN.mat``.
        targets: Target keys to give.
        box: How the crop's box follows from the 68 points; see :class:`AFLW20003D`.
        on_error: What to do at a bad file.
        max_angle: Leave out samples with a fitted angle beyond it, degrees.
        yaw_list: Yaw of every photograph in degrees, in the order of the names, in place of the fitted one.
    """

    name = "AFLW2000-3D"

    def __init__(
        self,
        folder: Path,
        targets: frozenset[str],
        box: Literal["tight", "square"] = "tight",
        on_error: OnError = "raise",
        max_angle: float | None = None,
        yaw_list: Path | None = None,
    ) -> None:
        self.folder, self.targets, self.box, self.on_error = folder, targets, box, on_error
        # A photograph or a .mat file that is alone is a sample too: reading it says what is missing.
        stems = {path.stem for suffix in ("jpg", "mat") for path in folder.glob(f"*.{suffix}") if path.name[0] != "."}
        self.images = [folder / f"{stem}.jpg" for stem in sorted(stems)]
        self.yaw: dict[str, float] = {}
        if yaw_list is not None:
            self.yaw = self._read_yaw_list(yaw_list)
        if max_angle is not None:
            self.images = [path for path in self.images if np.abs(self._angles(path)).max() <= max_angle]

    def _angles(self, image: Path) -> NDArray[np.float64]:
        return np.degrees(read_mat(image.with_suffix(".mat"), {"Pose_Para": (1, 7)})["Pose_Para"][0, :3])

    def _read_yaw_list(self, path: Path) -> dict[str, float]:
        try:
            yaw = np.load(path, allow_pickle=False).astype(np.float64).reshape(-1)
        except (OSError, ValueError) as error:
            raise DataError(f"The yaw list {path} cannot be read ({error}): give AFLW2000-3D-new.pose.npy.") from error
        if len(yaw) != len(self.images):
            raise DataError(
                f"The yaw list {path} has {len(yaw)} values for {len(self.images)} photographs in {self.folder}: use "
                "the whole data set, or leave yaw_list out."
            )
        fitted = np.array([self._angles(image)[1] for image in self.images])
        usual = np.abs(fitted) <= 90
        if np.abs(np.abs(yaw) - np.abs(fitted))[usual].mean() > 15:
            raise DataError(f"The yaw list {path} does not belong to these photographs in this order.")
        return {image.name: float(value) for image, value in zip(self.images, yaw)}

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> tuple[Path, ...]:
        """Photograph and .mat file."""
        image = self.images[index]
        return image, image.with_suffix(".mat")

    def read(self, index: int) -> RawFace:
        """One photograph; ``pt3d_68`` is 1-based with y down, so 0-based is one less; its depth is kept."""
        path, label = (inside(self.folder, file) for file in self.files(index))
        fields = read_mat(label, {"pt3d_68": (3, 68), "Pose_Para": (1, 7)})
        landmarks = fields["pt3d_68"].T - (1.0, 1.0, 0.0)
        box = tight_box(landmarks, label)
        image = read_image(path)
        fitted = convert_pose(fields["Pose_Para"][0], image.shape[0])
        targets = {
            "landmarks": landmarks.astype(np.float32),
            "landmark_mask": np.ones((68, 3), dtype=bool),
            "face_size": np.zeros((), dtype=np.float32),  # filled in by the crop from the landmarks it moves
            "yaw": np.float32(self.yaw.get(path.name, fitted.yaw)),
        }
        if fitted.pose is not None:
            targets["pose"] = fitted.pose
        return RawFace(
            image=image,
            sample_id=self.sample_id(index),
            box=box if self.box == "tight" else square_box(box),
            targets={key: np.asarray(value) for key, value in targets.items() if key in self.targets},
        )


class AFLW20003D(FileFaceDataModule):
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
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
    """

    folders = ("aflw2000_3d", "AFLW2000", "AFLW2000-3D")
    source = (
        "Get AFLW2000-3D (research only) from the 3DDFA project page, "
        "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm."
    )
    available_targets = frozenset({"landmarks", "landmark_mask", "face_size", "yaw", "pose"})

    def __init__(
        self,
        root: str | None = None,
        box: Literal["tight", "square"] = "tight",
        max_angle: float | None = None,
        yaw_list: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
    ) -> None:
        super().__init__(root, on_error, image_size, batch_size, num_workers, margin)
        self.box, self.max_angle, self.yaw_list = box, max_angle, yaw_list

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """The photographs, to test or to predict on; there is nothing to train on."""
        if split not in ("test", "predict"):
            return None
        folder = self.find()
        yaw_list = None if self.yaw_list is None else Path(self.yaw_list).expanduser()
        dataset = AFLW20003DDataset(folder, targets, self.box, self.on_error, self.max_angle, yaw_list)
        if not len(dataset):
            raise DataError(f"There are no photographs imageNNNNN.jpg in {folder}: {self.source}")
        return dataset
