"""The base of all data sets and data modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.crop import UNMIRRORED_TARGETS, Augmentation, RawFace, crop_face
from datamodules.sampling import EvaluationSampler, SampleKey, TrainSampler
from lightning_faces.batch import FaceBatch, FaceSpec, check_compatible, collate_faces
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.landmarks import num_landmarks

CHEAP_TARGETS = frozenset({"landmarks", "landmark_mask", "visible", "face_size", "yaw", "pose", "coefficients"})
"""Targets that are given whenever the data set has them; the others only when the method requires them."""


class FaceDataset(Dataset[dict[str, Any]], ABC):
    """Faces by index. A subclass says how to read one; cropping and augmentation are the same for all.

    Attributes:
        name: Name of the data set in records and tables.
        targets: Target keys that ``read`` gives; ``FaceDataModule`` narrows them to those that are wanted.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the face box.
        augmentation: Random changes, for training only.
        seed: Seed of the random changes.
    """

    name: str
    targets: frozenset[str]
    image_size: int
    margin: float
    augmentation: Augmentation | None = None
    seed: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> RawFace:
        """Face number ``index`` in the frame of its file, with the targets in ``self.targets`` that it has."""

    def fingerprint(self) -> str:
        """Hash of what the data set contains, for records: changes when, and only when, its samples do."""
        raise ConfigurationError(f"{self.name} has no content fingerprint.")

    def read_many(self, indices: Sequence[int]) -> list[RawFace]:
        """Several faces; a subclass that is faster at many overrides it."""
        return [self.read(index) for index in indices]

    def share(self) -> None:
        """Called before loader processes start: make what they share with this one."""

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[dict[str, Any]]:
        """Samples for indices, or for (index, draw) pairs whose draw seeds the augmentation.

        Raises:
            DataError: If none of the samples can be used, where bad ones are left out.
        """
        samples = self.samples(keys)
        if not samples:
            raise DataError(f"All {len(keys)} samples of a batch of {self.name} are bad: the warnings say why.")
        return samples

    def samples(self, keys: Sequence[int | SampleKey]) -> list[dict[str, Any]]:
        """Samples for keys; a data set of files may leave out those that are bad."""
        pairs = [(key, 0) if isinstance(key, int) else key for key in keys]
        samples = []
        for (index, draw), raw in zip(pairs, self.read_many([index for index, _ in pairs])):
            rng = np.random.default_rng((self.seed, draw, index))
            sample = crop_face(raw, self.image_size, self.margin, self.augmentation, rng)
            samples.append({"index": index, **sample})
        return samples


def start_worker(worker_id: int) -> None:
    """One thread per worker process: workers that share cores stall on each other's threads."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


class FaceDataModule(LightningDataModule, ABC):
    """Loaders, samplers and the check that a method and its data fit.

    A subclass implements ``make_dataset``, and ``data_spec`` where it has dense targets.

    Args:
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank; 0 loads in the training process.
        margin: Side of the crop over the longer side of the face box.
        augmentation: Random changes of training samples.
        seed: Seed of sample order and augmentation.
    """

    available_targets: frozenset[str] = CHEAP_TARGETS
    """Target keys that the data module can give."""
    landmark_scheme = "68"

    def __init__(
        self,
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least_values = (("image_size", image_size, 8), ("batch_size", batch_size, 1), ("margin", margin, 0.1))
        for name, value, least in least_values:
            if value < least:
                raise ConfigurationError(f"data option {name} is {value}; it must be at least {least}.")
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.margin, self.augmentation, self.seed = margin, augmentation, seed
        self.datasets: dict[str, FaceDataset] = {}
        self._resume: dict[str, int] = {"epoch": 0, "batches": 0, "samples": 0}

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning's own is a plain attribute that nothing sets
        """Name in messages, records and tables."""
        return type(self).__name__

    @property
    def spec(self) -> FaceSpec:
        """What the batches are like; see :class:`FaceSpec`."""
        return replace(self.data_spec(), image_size=self.image_size, landmark_scheme=self.landmark_scheme)

    def data_spec(self) -> FaceSpec:
        """The part of ``spec`` that belongs to the face model of the data; nothing by default."""
        return FaceSpec()

    @abstractmethod
    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """The data set of a split ("train", "val", "test" or "predict") giving ``targets``; None if there is none."""

    def setup(self, stage: str) -> None:
        """Check that method and data fit, then make the data sets of a stage (fit, validate, test or predict)."""
        requires: frozenset[str] = frozenset()
        method = getattr(self.trainer, "lightning_module", None)
        if method is not None:
            requires = frozenset(method.requires)
            needed = requires if stage == "fit" else frozenset()
            check_compatible(type(method).__name__, method.spec, needed, self.name, self.spec, self.available_targets)
        scored = frozenset(method.scores) if method is not None and stage == "test" else frozenset()
        targets = (CHEAP_TARGETS | requires | scored) & self.available_targets
        if stage == "fit":
            self.check_reflection(requires, type(method).__name__)
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in splits:
            dataset = self.make_dataset(split, targets)
            if dataset is None:
                continue
            dataset.image_size, dataset.margin, dataset.seed = self.image_size, self.margin, self.seed
            dataset.augmentation = self.augmentation if split == "train" else None
            self.datasets[split] = dataset

    def check_reflection(self, requires: frozenset[str], method: str) -> None:
        """Refuse an augmentation that loses what the method trains on; other targets are dropped where mirrored.

        Raises:
            ConfigurationError: If a reflection would lose a required target.
        """
        lost = sorted(requires & frozenset(UNMIRRORED_TARGETS))
        if self.augmentation is not None and self.augmentation.flip > 0 and lost:
            raise ConfigurationError(
                f"data option augmentation.flip is {self.augmentation.flip}, but a reflected face has no "
                f"{', '.join(lost)}, which {method} trains on: set it to 0."
            )

    def target_shapes(self, targets: frozenset[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of targets without the batch dimension."""
        spec = self.spec
        size = self.image_size
        landmarks = num_landmarks(self.landmark_scheme)
        coefficients = (spec.num_identity or 0) + (spec.num_expression or 0)
        side = spec.position_map_size or 0
        shapes: dict[str, tuple[int, ...]] = {
            "landmarks": (landmarks, 3),
            "landmark_mask": (landmarks, 3),
            "visible": (landmarks,),
            "face_size": (),
            "yaw": (),
            "pose": (6,),
            "coefficients": (coefficients,),
            "previous_coefficients": (coefficients,),
            "vertices": (spec.num_vertices or 0, 3),
            "position_map": (3, side, side),
            "pncc": (3, size, size),
            "offsets": (3, size, size),
            "face_mask": (1, size, size),
            "shading": (1, size, size),
            "geometry_mask": (1, size, size),
        }
        return {key: shapes[key] for key in shapes if key in targets}

    def _dataset(self, split: str) -> FaceDataset:
        if split not in self.datasets:
            raise ConfigurationError(f"{self.name} has no {split} split: choose another data set for this command.")
        return self.datasets[split]

    def _loader(self, split: str) -> DataLoader[FaceBatch]:
        dataset = self._dataset(split)
        world = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        sampler: TrainSampler | EvaluationSampler
        if len(dataset) < world:
            raise ConfigurationError(
                f"The {split} split of {self.name} has {len(dataset)} samples for {world} processes: use fewer devices."
            )
        if split == "train":
            if len(dataset) < self.batch_size * world:
                raise ConfigurationError(
                    f"The train split of {self.name} has {len(dataset)} samples, fewer than one batch of "
                    f"{self.batch_size} on each of {world} process(es): set data option batch_size to at most "
                    f"{len(dataset) // world}."
                )
            skip = self._resume["samples"] // world
            sampler = TrainSampler(dataset, world, rank, self.seed, skip, self._resume["epoch"])
        else:
            sampler = EvaluationSampler(dataset, world, rank)
        dataset.share()
        source, collate = self.loader_parts(split)
        return DataLoader(
            source,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and split in ("train", "val"),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            collate_fn=collate,
        )

    def loader_parts(self, split: str) -> tuple[Any, Callable[[Any], Any]]:
        """What loader processes read, with the indices of the split's data set, and how they make it a batch.

        A subclass that completes its batches on the device, in ``on_after_batch_transfer``, overrides it.
        """
        dataset = self._dataset(split)
        return dataset, partial(collate_faces, shapes=self.target_shapes(dataset.targets))

    def train_dataloader(self) -> DataLoader[FaceBatch]:
        """Shuffled, augmented training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[FaceBatch]:
        """Validation batches, each sample once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[FaceBatch]:
        """Test batches, each sample once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[FaceBatch]:
        """Batches without targets."""
        return self._loader("predict")

    def state_dict(self) -> dict[str, int]:
        """Position in the training data, so that a resumed run sees what an uninterrupted one would."""
        if self.trainer is None:
            return dict(self._resume)
        loop: Any = self.trainer.fit_loop
        # "processed", because a checkpoint is saved before its batch counts as completed; and epochs that were begun,
        # because the end of an epoch is counted before its checkpoint.
        epoch = max(loop.epoch_progress.current.ready - 1, 0)
        done = loop.epoch_loop.batch_progress.current.processed
        if done >= self.trainer.num_training_batches:
            return {"epoch": epoch + 1, "batches": 0, "samples": 0}
        # Samples beside batches: a training may be continued with batches of another size.
        before = self._resume if epoch == self._resume["epoch"] else {"batches": 0, "samples": 0}
        samples = before["samples"] + (done - before["batches"]) * self.batch_size * self.trainer.world_size
        return {"epoch": epoch, "batches": done, "samples": samples}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at the position of ``state_dict``."""
        world = self.trainer.world_size if self.trainer is not None else 1
        batches = int(state_dict["batches"])
        samples = int(state_dict.get("samples", batches * self.batch_size * world))
        self._resume = {"epoch": int(state_dict["epoch"]), "batches": batches, "samples": samples}
