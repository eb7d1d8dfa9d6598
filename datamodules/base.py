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
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset

from datamodules.components.options import check_number
from datamodules.components.sampling import EvaluationSampler, SampleKey, TrainSampler, WholePassSampler
from datamodules.components.transform import Augmentation, RawFace, crop_face
from lightning_faces.batch import FaceBatch, FaceSpec, check_compatible, collate_faces
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.targets import CHEAP_TARGETS, MODEL_TARGETS, target_shapes


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


class WholeBatches(Dataset[list[dict[str, Any]]]):
    """A data set whose items are batches, for samplers that decide how large each batch is.

    Args:
        source: Gives samples for keys, with ``__getitems__``.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, keys: Sequence[SampleKey]) -> Any:
        return self.source.__getitems__(keys)


class Sealed:
    """A batch on its way to the device that Lightning does not look into.

    Where the network has half precision, Lightning rounds every number of a batch, the truth too, and errors would be
    measured against rounded labels.

    Args:
        batch: What the loader made.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def pin_memory(self) -> Sealed:
        """The batch in memory that a GPU can read; called by the loader."""
        return Sealed(apply_to_collection(self.batch, torch.Tensor, torch.Tensor.pin_memory))


def _collate_sealed(samples: Any, collate: Callable[[Any], Any]) -> Sealed:
    return Sealed(collate(samples))


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
        check_number("data option image_size", image_size, 8, 4096)
        check_number("data option batch_size", batch_size, 1)
        check_number("data option num_workers", num_workers, 0, 512)
        check_number("data option margin", margin, 0.1, 100)
        check_number("data option seed", seed, 0, 2**32 - 1)
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
            self.configure(dataset, split)
            self.datasets[split] = dataset

    def configure(self, dataset: FaceDataset, split: str) -> None:
        """Give a data set of a split this module's crop, and training faces their augmentation."""
        dataset.image_size, dataset.margin, dataset.seed = self.image_size, self.margin, self.seed
        dataset.augmentation = self.augmentation if split == "train" else None

    def check_reflection(self, requires: frozenset[str], method: str) -> None:
        """Refuse a training in which reflections leave nothing to train on; else, mirrored samples lack some targets.

        Raises:
            ConfigurationError: If every sample is mirrored and none of the required targets can be.
        """
        if requires and not self.trainable(requires):
            raise ConfigurationError(
                f"data option augmentation.flip is 1, but a reflected face has no {', '.join(sorted(requires))}, and "
                f"{method} trains on nothing else: set it below 1."
            )

    def trainable(self, requires: frozenset[str]) -> frozenset[str]:
        """Those of the required targets that some training sample can have."""
        always_mirrored = self.augmentation is not None and self.augmentation.flip >= 1
        return (requires & self.available_targets) - (MODEL_TARGETS if always_mirrored else frozenset())

    def _dataset(self, split: str) -> FaceDataset:
        if split not in self.datasets:
            raise ConfigurationError(f"{self.name} has no {split} split: choose another data set for this command.")
        return self.datasets[split]

    def _loader(self, split: str) -> DataLoader[FaceBatch]:
        dataset = self._dataset(split)
        world = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        if len(dataset) < world:
            raise ConfigurationError(
                f"The {split} split of {self.name} has {len(dataset)} samples for {world} processes: use fewer devices."
            )
        sampler: TrainSampler | WholePassSampler | EvaluationSampler
        epoch, done = self._resume["epoch"], self._resume["batches"]
        if split != "train":
            sampler = EvaluationSampler(dataset, world, rank)
        elif getattr(getattr(self.trainer, "lightning_module", None), "every_sample_once", False):
            sampler = WholePassSampler(dataset, world, rank, self.batch_size, self.seed, done, epoch)
        elif len(dataset) < self.batch_size * world:
            raise ConfigurationError(
                f"The train split of {self.name} has {len(dataset)} samples, fewer than one batch of "
                f"{self.batch_size} on each of {world} process(es): set data option batch_size to at most "
                f"{len(dataset) // world}."
            )
        else:
            sampler = TrainSampler(dataset, world, rank, self.seed, self._resume["samples"] // world, epoch)
        dataset.share()
        source, collate = self.loader_parts(split)
        if self._rounds_batches():
            collate = partial(_collate_sealed, collate=collate)
        whole = isinstance(sampler, WholePassSampler)
        return DataLoader(
            WholeBatches(source) if whole else source,
            batch_size=None if whole else self.batch_size,
            sampler=sampler,
            drop_last=split == "train" and not whole,
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
        return dataset, partial(collate_faces, shapes=target_shapes(dataset.targets, self.spec))

    def _rounds_batches(self) -> bool:
        """Whether Lightning would give batches less than single precision before they reach the method."""
        if self.trainer is None:
            return False
        return torch.finfo(self.trainer.precision_plugin.convert_input(torch.zeros(1)).dtype).bits < 32

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send a batch to the device, in the precision that the loader gave it."""
        if isinstance(batch, Sealed):
            batch = batch.batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Give the image the precision that the network takes; the truth keeps its own."""
        if self.trainer is None:
            return batch
        return {**batch, "image": self.trainer.precision_plugin.convert_input(batch["image"])}

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
