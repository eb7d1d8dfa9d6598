"""Several data sets at once in given proportions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.base import FaceDataModule, FaceDataset
from datamodules.components.options import check_number
from datamodules.components.sampling import SampleKey
from datamodules.components.transform import RawFace
from lightning_faces.batch import FaceSpec
from lightning_faces.errors import ConfigurationError


class JoinedDataset(FaceDataset):
    """Data sets one after the other, each sample once; each keeps its own crop and augmentation.

    Args:
        parts: The data sets.
    """

    name = "Mixed"

    def __init__(self, parts: Sequence[FaceDataset]) -> None:
        self.parts = list(parts)
        self.targets = frozenset().union(*(part.targets for part in parts))
        self.starts = [0, *accumulate(len(part) for part in parts)]
        lengths = [getattr(part, "sequence_lengths", None) for part in parts]
        self.sequence_lengths: list[int] | None = None
        if any(lengths):
            # A sample of a part without sequences is one of its own.
            self.sequence_lengths = [n for part, own in zip(parts, lengths) for n in own or [1] * len(part)]

    def __len__(self) -> int:
        return self.starts[-1]

    def fingerprint(self) -> str:
        """Hash of the parts' own."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]

    def share(self) -> None:
        """Let the parts make what their loader processes share."""
        for part in self.parts:
            part.share()

    def locate(self, key: SampleKey) -> tuple[int, SampleKey]:
        """Part, and (index, draw) in it, that an (index, draw) pair stands for."""
        part = int(np.searchsorted(self.starts, key[0], side="right")) - 1
        return part, (key[0] - self.starts[part], key[1])

    def read(self, index: int) -> RawFace:
        """A sample of the data set that the index falls into."""
        part, (place, _) = self.locate((index, 0))
        return self.parts[part].read(place)

    def samples(self, keys: Sequence[int | SampleKey]) -> list[dict[str, Any]]:
        """Samples in order; each part reads its own together. ``index`` counts over the parts, one after the other."""
        places = [self.locate((key, 0) if isinstance(key, int) else key) for key in keys]
        found: list[tuple[int, dict[str, Any]]] = []
        for number, part in enumerate(self.parts):
            mine = [i for i, (owner, _) in enumerate(places) if owner == number]
            # A part may leave out bad samples, so each goes back to its place by its index.
            order = {places[i][1][0]: i for i in mine}
            found += [
                (order[sample["index"]], {**sample, "index": self.starts[number] + sample["index"]})
                for sample in part.samples([places[i][1] for i in mine])
            ]
        return [sample for _, sample in sorted(found, key=lambda item: item[0])]


class MixedDataset(JoinedDataset):
    """An epoch of given length with a fixed number of samples of each part.

    A part is gone through in a new random order each time it is exhausted, over the epochs: all its samples are seen
    equally often, to one.

    Args:
        parts: The data sets.
        counts: Samples of each in an epoch.
        seed: Seed of the orders.
    """

    def __init__(self, parts: Sequence[FaceDataset], counts: Sequence[int], seed: int) -> None:
        super().__init__(parts)
        self.counts, self.order_seed = list(counts), seed
        self.ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, key: SampleKey) -> tuple[int, SampleKey]:
        """Part, sample in it and how often it was seen before, for position ``index`` of epoch ``draw``."""
        index, epoch = key
        part = int(np.searchsorted(self.ends, index, side="right"))
        position = epoch * self.counts[part] + index - (self.ends[part] - self.counts[part])
        cycle, place = divmod(position, len(self.parts[part]))
        return part, (int(_order(self.order_seed, part, cycle, len(self.parts[part]))[place]), cycle)


@lru_cache(maxsize=16)
def _order(seed: int, part: int, cycle: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, part, cycle)).permutation(size)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportion of the weights that add up to ``total`` (largest remainders)."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[i] += 1
    return [int(count) for count in counts]


class Mixed(FaceDataModule):
    """Several data modules at once; each sample carries the targets that its data set has, and ``has`` says which.

    Margin, augmentation and seed are those of the members; batch size and workers are the mixture's. All must have the
    same image size, and a member with another landmark scheme must be told to give this one's. Validation and test join
    the members' own splits, every sample once.

    Args:
        members: The data modules.
        weights: Proportion of each in training; None takes them in proportion to their sizes.
        epoch_size: Training samples of an epoch; None takes the sum of the members' sizes.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        seed: Seed of sample order.
    """

    def __init__(
        self,
        members: list[FaceDataModule],
        weights: list[float] | None = None,
        epoch_size: int | None = None,
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, seed=seed)
        if not members:
            raise ConfigurationError("Mixed option members is empty: name at least one data module.")
        if weights is not None and (len(weights) != len(members) or not all(0 < w < math.inf for w in weights)):
            raise ConfigurationError(
                f"Mixed option weights is {weights} for {len(members)} members: give one positive number for each."
            )
        if epoch_size is not None:
            check_number("Mixed option epoch_size", epoch_size, 1)
        self.members, self.weights, self.epoch_size = members, weights, epoch_size
        self.available_targets = frozenset().union(*(member.available_targets for member in members))
        self.landmark_scheme = members[0].landmark_scheme
        for member in members:
            if member.image_size != image_size:
                raise ConfigurationError(
                    f"Mixed has image_size {image_size} and {member.name} has {member.image_size}: set both alike."
                )
            if member.landmark_scheme != self.landmark_scheme:
                raise ConfigurationError(
                    f"Mixed has {members[0].name} with {self.landmark_scheme} landmarks and {member.name} with "
                    f"{member.landmark_scheme}: set option landmark_scheme of both to the same."
                )

    def data_spec(self) -> FaceSpec:
        """What the members agree on."""
        merged: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for member in self.members:
            spec = member.data_spec()
            for field in fields(spec):
                value = getattr(spec, field.name)
                if value is None:
                    continue
                if merged.setdefault(field.name, value) != value:
                    raise ConfigurationError(
                        f"Mixed has {owner[field.name]} with {field.name} {merged[field.name]!r} and {member.name} "
                        f"with {value!r}: give both the same, or leave out one's face model."
                    )
                owner.setdefault(field.name, member.name)
        return FaceSpec(**merged)

    def setup(self, stage: str) -> None:
        """Set up the members' data sets and join them."""
        self.data_spec()  # refuses two face models before a face is read
        for member in self.members:
            member.trainer = self.trainer
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        """Let the members say what they skipped."""
        for member in self.members:
            member.teardown(stage)

    def trainable(self, requires: frozenset[str]) -> frozenset[str]:
        """What the samples of any member can have."""
        return frozenset().union(*(member.trainable(requires) for member in self.members))

    def configure(self, dataset: FaceDataset, split: str) -> None:
        """The members' data sets have their own crops; the joined one only says which.

        Raises:
            ConfigurationError: If members that are tested together have different crops, as no record could say which.
        """
        assert isinstance(dataset, JoinedDataset)
        margins = sorted({part.margin for part in dataset.parts})
        if split == "test" and len(margins) > 1:
            raise ConfigurationError(
                f"Mixed tests its members together, but their crops have margins {', '.join(map(str, margins))}: set "
                "option margin of all to the same, or test them one by one."
            )
        dataset.image_size, dataset.margin, dataset.seed = self.image_size, margins[-1], self.seed

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """Training samples in proportion, or all samples of the members' other splits."""
        parts: list[FaceDataset] = []
        for number, member in enumerate(self.members):
            part = member.make_dataset(split, targets & member.available_targets)
            if part is None:
                if split == "train" and self.weights is not None:
                    raise ConfigurationError(
                        f"{member.name} (member {number}) has no train split: take it and its weight out of Mixed."
                    )
                continue
            member.configure(part, split)
            member.datasets[split] = part
            parts.append(part)
        if not parts:
            return None
        if split != "train":
            return JoinedDataset(parts)
        sizes = [len(part) for part in parts]
        counts = shares(self.weights or sizes, self.epoch_size or sum(sizes))
        if not all(counts):
            raise ConfigurationError(
                f"Mixed option epoch_size {self.epoch_size} leaves a member without a sample: make it larger."
            )
        method = getattr(self.trainer, "lightning_module", None)
        if counts != sizes and getattr(method, "every_sample_once", False):
            raise ConfigurationError(
                f"{type(method).__name__} must see each sample once in a pass, but Mixed has options weights or "
                "epoch_size: leave them out."
            )
        return MixedDataset(parts, counts, self.seed)
