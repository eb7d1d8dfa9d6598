"""A data module without files or rendering: noise images with landmarks, for tests of everything around the data."""

from __future__ import annotations

import numpy as np

from datamodules.base import FaceDataModule, FaceDataset
from datamodules.components.transform import Augmentation, RawFace


class NoiseDataset(FaceDataset):
    """Face i depends on its split and i alone."""

    name = "NoiseFaces"

    def __init__(self, size: int, stream: int, targets: frozenset[str]) -> None:
        self.size, self.stream, self.targets = size, stream, targets

    def __len__(self) -> int:
        return self.size

    def fingerprint(self) -> str:
        return f"noise-{self.size}-{self.stream}"

    def read(self, index: int) -> RawFace:
        rng = np.random.default_rng((self.stream, index))
        landmarks = (rng.uniform(10, 38, size=(68, 3)) * [1, 1, 0.5]).astype(np.float32)
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        return RawFace(
            image=rng.integers(0, 255, size=(48, 48, 3), dtype=np.uint8),
            sample_id=f"noise-{index}",
            box=np.concatenate((low, high)).astype(np.float64),
            targets={
                "landmarks": landmarks,
                "landmark_mask": np.ones((68, 3), dtype=bool),
                "visible": np.ones(68, dtype=bool),
                "face_size": np.zeros((), dtype=np.float32),
                "yaw": np.float32(rng.uniform(-90, 90)),
            },
            numbers={"subject": index // 2, "view": index % 2},
        )


class NoiseFaces(FaceDataModule):
    """Noise faces.

    Args:
        train_size: Training faces.
        val_size: Validation faces.
        test_size: Test faces.
        image_size: Side of the crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes.
        margin: Side of the crop over the box.
        augmentation: Random changes.
        seed: Seed.
    """

    available_targets = frozenset({"landmarks", "landmark_mask", "visible", "face_size", "yaw"})

    def __init__(
        self,
        train_size: int = 16,
        val_size: int = 7,
        test_size: int = 13,
        image_size: int = 32,
        batch_size: int = 4,
        num_workers: int = 0,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, margin, augmentation, seed)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        if split not in self.sizes:
            return None
        return NoiseDataset(self.sizes[split], list(self.sizes).index(split), targets)
