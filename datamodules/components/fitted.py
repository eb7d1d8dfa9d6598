"""Photographs with fitted 3DMM parameters beside them: what 300W-LP, 300W-3D and AFLW2000-3D share.

Their .mat files project a Basel Face Model of micrometres by ``V = f R S + t`` and place it in 1-based MATLAB pixels
at ``x = Vx``, ``y = height + 1 - Vy`` (300W-LP ``main_show_with_BFM.m``); 0-based that is ``(Vx - 1, height - Vy)``. A
depth is ``Vz`` as it is, larger nearer to the viewer.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.components.dense import DenseTargets
from datamodules.components.files import FileFaceDataModule, FileFaceDataset, OnError, inside, square_box, tight_box
from datamodules.components.images import IMAGE_SUFFIXES, read_image
from datamodules.components.matfile import read_mat
from datamodules.components.options import check_number
from datamodules.components.transform import Augmentation, RawFace
from lightning_faces.batch import FaceSpec
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.morphable import MorphableModel
from lightning_faces.targets import MODEL_TARGETS

Box = Literal["tight", "square"]
Landmarks = Literal["3d", "2d"]
Fields = dict[str, NDArray[np.float64]]
Shapes = dict[str, tuple[int | None, ...]]
SOURCE = (
    "(research only) from the 3DDFA project page, http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm."
)
MISSING = -1.0
"""Both coordinates of a label that is missing (FACTS on the fields of the .mat files)."""
PARAMETERS: Shapes = {"Shape_Para": (199, 1), "Exp_Para": (29, 1)}


@dataclass(frozen=True)
class FittedPose:
    """``Pose_Para`` in this platform's frames.

    Attributes:
        pose: Scale px/mm, pitch, yaw, roll in radians, tx, ty in 0-based pixels of the file, y down. It places the
            Basel Face Model (millimetres, its own origin). None where the file's scale is not positive.
        depth: Offset of the file's depths, pixels.
        yaw: Degrees, as in the file.
    """

    pose: NDArray[np.float32] | None
    depth: float
    yaw: float


def convert_pose(pose_para: NDArray[np.float64], height: int) -> FittedPose:
    """Convert ``Pose_Para`` ``[7]`` (pitch, yaw, roll, tx, ty, tz, f) of an image of that height in pixels."""
    pitch, yaw, roll, tx, ty, tz, f = (float(value) for value in pose_para)
    pose = None
    if f > 0:  # one sample of AFLW2000-3D has a negative scale: a point reflection, which is no pose
        pose = np.array([f * 1000, pitch, yaw, roll, tx - 1, height - ty], dtype=np.float32)
    return FittedPose(pose, tz, float(np.degrees(yaw)))


def flat_labels(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Labels ``[68, 2]``, 1-based pixels, as landmarks ``[68, 3]``, 0-based, and a mask that leaves out their depth."""
    mask = np.repeat([[True, True, False]], len(points), axis=0)
    mask[(points == MISSING).all(axis=1)] = False
    return np.concatenate((points - 1.0, np.zeros((len(points), 1))), axis=1), mask


def photograph_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Photographs ``X.jpg`` and label files ``X.mat`` of a folder, sorted.

    Other endings of pictures will do, and upper case; X.jpg comes first. One that is alone is a pair too: reading it
    says what is missing.
    """
    photographs: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    here = sorted(folder.iterdir(), key=lambda path: (path.suffix != ".jpg", path.name)) if folder.is_dir() else []
    for path in here:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == ".mat":
            labels.setdefault(path.stem, path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            photographs.setdefault(path.stem, path)
    return [
        (photographs.get(stem, folder / f"{stem}.jpg"), labels.get(stem, folder / f"{stem}.mat"))
        for stem in sorted(photographs.keys() | labels.keys())
    ]


class FittedFaceDataset(FileFaceDataset):
    """Pairs of a photograph and a .mat file.

    A subclass says which fields its landmarks come from and how.

    Args:
        folder: The data set's folder.
        samples: Photograph and label file of each sample.
        targets: Target keys to give.
        box: Box that the crop is ``margin`` times as large as: "tight" around the landmarks, or "square" of side
            (w + h) / 2 on the same centre (PRNet).
        on_error: What to do at a bad file.
        dense: Makes dense targets from the parameters, where there is the face model that they belong to.
    """

    fields: ClassVar[Shapes] = {}
    """Fields of the label file that :meth:`landmarks` uses."""

    def __init__(
        self,
        folder: Path,
        samples: list[tuple[Path, Path]],
        targets: frozenset[str],
        box: Box = "tight",
        on_error: OnError = "raise",
        dense: DenseTargets | None = None,
    ) -> None:
        self.folder, self.pairs, self.targets = folder, samples, targets
        self.box, self.on_error, self.dense = box, on_error, dense

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        """Photograph and label file."""
        return self.pairs[index]

    @abstractmethod
    def landmarks(
        self, index: int, fields: Fields, dense: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Landmarks of a sample ``[68, 3]`` in 0-based pixels of the file and which coordinates there are.

        Args:
            index: The sample.
            fields: The fields that were read, float64.
            dense: What the face model gives, ``landmarks`` among it; empty without a model.
        """

    def numbers(self, index: int) -> dict[str, int]:
        """Subject, view, sequence and frame of a sample, where known."""
        return {}

    def labelled_by(self, index: int) -> Path:
        """The file that a sample's landmarks come from."""
        return self.files(index)[1]

    def yaw(self, index: int, fitted: FittedPose) -> float:
        """Yaw of the head in degrees."""
        return fitted.yaw

    def read(self, index: int) -> RawFace:
        """One photograph with its targets."""
        path, label = (inside(self.folder, file) for file in self.files(index))
        fields = read_mat(label, {"Pose_Para": (1, 7), **self.fields, **(PARAMETERS if self.dense else {})})
        image = read_image(path)
        fitted = convert_pose(fields["Pose_Para"][0], image.shape[0])
        computed: dict[str, NDArray[Any]] = {}
        if self.dense is not None and fitted.pose is not None:
            computed = self.dense(
                fields["Shape_Para"][:, 0], fields["Exp_Para"][:, 0], fitted.pose, fitted.depth, image.shape[:2]
            )
        landmarks, mask = self.landmarks(index, fields, computed)
        source = self.labelled_by(index)
        box = tight_box(landmarks[mask[:, :2].all(axis=1)], source)
        targets: dict[str, Any] = {
            **computed,
            "landmarks": landmarks.astype(np.float32),
            "landmark_mask": mask,
            "face_size": np.float32(np.sqrt((box[2] - box[0]) * (box[3] - box[1]))),
            "yaw": np.float32(self.yaw(index, fitted)),
        }
        if fitted.pose is not None:
            targets["pose"] = fitted.pose
        return RawFace(
            image=image,
            sample_id=self.sample_id(index),
            box=box if self.box == "tight" else square_box(box),
            targets={key: np.asarray(value) for key, value in targets.items() if key in self.targets},
            numbers=self.numbers(index),
            source=source,
        )

    def check_model(self, count: int = 8) -> None:
        """Compare the face model's landmarks with the labelled 3D landmarks of the first samples.

        Raises:
            DataError: If they are further apart than 1.5 pixels, as with another face model or another order of it.
        """
        if self.dense is None:
            return
        distances = []
        for index in range(min(count, len(self))):
            path, label = self.files(index)
            fields = read_mat(label, {"Pose_Para": (1, 7), **self.fields, **PARAMETERS})
            size = read_image(path).shape[:2]
            fitted = convert_pose(fields["Pose_Para"][0], size[0])
            if fitted.pose is None:
                continue
            landmarks, mask = self.landmarks(index, fields, {})
            model = self.dense.landmarks(
                fields["Shape_Para"][:, 0], fields["Exp_Para"][:, 0], fitted.pose, fitted.depth
            )
            known = mask[:, :2].all(axis=1)
            distances.append(float(np.median(np.linalg.norm((model - landmarks)[known, :2], axis=1))))
        if distances and np.median(distances) > 1.5:
            raise DataError(
                f"Face model {self.dense.model.name!r} puts the landmarks of {self.folder} {np.median(distances):.1f} "
                "pixels away from the labels: give the Basel Face Model 2009 with FaceWarehouse expressions that the "
                "parameters belong to, imported with their own standard deviations."
            )


class LabelledFaceDataset(FittedFaceDataset):
    """Photographs of 300W, whose points are the face model's own or labels without depth.

    Args:
        folder: The data set's folder.
        samples: Photograph and label file of each sample.
        targets: Target keys to give.
        landmarks: "3d": the face model's fixed points where there is the model, else the labels of the same points
            where there are any. "2d": iBUG's labels, whose contour follows the silhouette.
        box: "tight" or "square".
        on_error: "raise" or "skip".
        dense: Makes dense targets.
    """

    def __init__(
        self,
        folder: Path,
        samples: list[tuple[Path, Path]],
        targets: frozenset[str],
        landmarks: Landmarks,
        box: Box = "tight",
        on_error: OnError = "raise",
        dense: DenseTargets | None = None,
    ) -> None:
        super().__init__(folder, samples, targets, box, on_error, dense)
        self.scheme = landmarks

    @abstractmethod
    def labels(self, index: int, fields: Fields) -> NDArray[np.float64]:
        """Labels of a sample ``[68, 2]``, 1-based pixels of the file."""

    def landmarks(
        self, index: int, fields: Fields, dense: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The model's own points where there is the model, else the labels, without depth."""
        if self.scheme == "3d" and "landmarks" in dense:
            return dense["landmarks"], np.ones((68, 3), dtype=bool)
        return flat_labels(self.labels(index, fields))


class FittedFaceDataModule(FileFaceDataModule):
    """A data module of photographs with fitted parameters; dense targets where the face model is given.

    Args:
        root: The data set's folder or a parent of it.
        box: Box that the crop is ``margin`` times as large as: "tight" or "square".
        face_model: Path of the face model that the parameters belong to; None gives no dense targets.
        position_map_size: Side of the position map.
        cache_dir: Folder where rendered dense targets are kept.
        on_error: "raise" or "skip".
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    cheap_targets: ClassVar[frozenset[str]] = frozenset({"landmarks", "landmark_mask", "face_size", "yaw", "pose"})
    """Target keys that need no face model."""

    def __init__(
        self,
        root: str | None,
        box: Box,
        face_model: str | None,
        position_map_size: int,
        cache_dir: str | None,
        on_error: OnError,
        image_size: int,
        batch_size: int,
        num_workers: int,
        margin: float,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, on_error, image_size, batch_size, num_workers, margin, augmentation, seed)
        check_number(f"{self.name} option position_map_size", position_map_size, 1, 4096)
        self.box, self.position_map_size = box, position_map_size
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.model = None if face_model is None else MorphableModel.load(face_model)
        self.available_targets = self.cheap_targets
        if self.model is not None:
            lacks_map = frozenset({"position_map"} if self.model.uv is None else ())
            self.available_targets = self.cheap_targets | (MODEL_TARGETS - lacks_map)

    def setup(self, stage: str) -> None:
        """Make the data sets of a stage.

        Raises:
            ConfigurationError: If the method trains on dense targets and there is no face model.
        """
        method = getattr(self.trainer, "lightning_module", None)
        dense = sorted(method.requires & MODEL_TARGETS) if method is not None and stage == "fit" else []
        if dense and self.model is None:
            raise ConfigurationError(
                f"{type(method).__name__} trains on {', '.join(dense)}, which {self.name} gives only with the Basel "
                "Face Model 2009 and its FaceWarehouse expressions: get them (https://faces.dmi.unibas.ch, and the "
                "3DDFA project page), run `lightning-faces import-model`, and give option face_model."
            )
        super().setup(stage)

    def data_spec(self) -> FaceSpec:
        """Sizes of the face model's targets."""
        if self.model is None:
            return FaceSpec()
        return FaceSpec(
            face_model=self.model.name,
            face_model_hash=self.model.hash,
            num_identity=self.model.num_identity,
            num_expression=self.model.num_expression,
            num_vertices=self.model.num_vertices,
            position_map_size=self.position_map_size,
        )

    def dense(self, targets: frozenset[str]) -> DenseTargets | None:
        """What makes the dense targets; None without a face model."""
        if self.model is None:
            return None
        return DenseTargets(self.model, targets, self.position_map_size, self.cache_dir)

    def checked(self, dataset: FittedFaceDataset, what: str) -> FittedFaceDataset:
        """The data set, after a check that it has samples and that the face model is theirs.

        Raises:
            DataError: If it has none, or the model is another.
        """
        if not len(dataset):
            raise DataError(f"There are no {what} in {dataset.folder}: {self.source}")
        dataset.check_model()
        return dataset
