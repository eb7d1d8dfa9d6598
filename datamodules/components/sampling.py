"""Samplers whose order depends on the seed and the epoch alone: not on workers, ranks or interruptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from lightning_faces.errors import ConfigurationError

SampleKey = tuple[int, int]
"""(index of the sample, number of the draw): the draw seeds the augmentation, so each epoch sees new ones."""


class TrainSampler(DistributedSampler[SampleKey]):
    """A new permutation each epoch, sharded over ranks, that can start in the middle of an epoch.

    Yields (index, epoch) pairs. The last ``n % num_replicas`` samples of a permutation are left out, so that all
    ranks take the same number of steps. It subclasses ``DistributedSampler`` because Lightning replaces others.

    Args:
        dataset: Anything with a length.
        num_replicas: Number of ranks.
        rank: This rank.
        seed: Seed of the order.
        skip: Samples per rank to leave out at the start of epoch ``skip_epoch`` (they were seen before a resume).
        skip_epoch: The epoch that ``skip`` belongs to.
    """

    def __init__(
        self, dataset: Dataset[object], num_replicas: int, rank: int, seed: int, skip: int = 0, skip_epoch: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.skip, self.skip_epoch = skip, skip_epoch

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.dataset))  # type: ignore[arg-type]
        mine = order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        start = self.skip if self.epoch == self.skip_epoch else 0
        return iter([(int(index), self.epoch) for index in mine[start:]])


class WholePassSampler(DistributedSampler[list[SampleKey]]):
    """Batches of a pass in which each sample comes exactly once over all ranks, in a new random order each time.

    All ranks take the same number of batches, none of them empty. Their sizes differ by one at most, over steps and
    ranks; they are ``batch_size`` or a little less, or one more where otherwise a rank would have none.

    Args:
        dataset: Anything with a length, of at least ``num_replicas``.
        num_replicas: Number of ranks.
        rank: This rank.
        batch_size: Samples per step and rank.
        seed: Seed of the order.
        skip: Batches to leave out at the start of pass ``skip_epoch`` (they were seen before a resume).
        skip_epoch: The pass that ``skip`` belongs to.
    """

    def __init__(
        self,
        dataset: Dataset[object],
        num_replicas: int,
        rank: int,
        batch_size: int,
        seed: int,
        skip: int = 0,
        skip_epoch: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=False)
        self.size = len(dataset)  # type: ignore[arg-type]
        self.steps = min(-(-self.size // (num_replicas * batch_size)), self.size // num_replicas)
        self.skip, self.skip_epoch = skip, skip_epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        start = self.skip if self.epoch == self.skip_epoch else 0
        for step in range(start, self.steps):
            together = order[self.size * step // self.steps : self.size * (step + 1) // self.steps]
            yield [(int(index), self.epoch) for index in together[self.rank :: self.num_replicas]]


class EvaluationSampler(DistributedSampler[SampleKey]):
    """Each sample exactly once over all ranks, in order and without padding.

    Lightning's default repeats samples so that ranks have equal counts, which counts some of them twice. A data set
    with ``sequence_lengths`` (samples in a row that belong together) has each sequence whole on one rank.

    Raises:
        ConfigurationError: If there are fewer sequences than ranks.
    """

    def __init__(self, dataset: Dataset[object], num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        lengths: Sequence[int] | None = getattr(dataset, "sequence_lengths", None)
        self.indices: Sequence[int] = range(rank, len(dataset), num_replicas)  # type: ignore[arg-type]
        if lengths is not None and num_replicas > 1:
            self.indices = _whole_sequences(lengths, num_replicas)[rank]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleKey]:
        return iter([(index, 0) for index in self.indices])


def _whole_sequences(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of each rank: sequences from the longest to the shortest, each to the rank with the fewest samples."""
    if len(lengths) < ranks:
        raise ConfigurationError(
            f"There are {len(lengths)} sequences, which are kept whole, for {ranks} processes: use fewer devices."
        )
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    shards: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        min(shards, key=len).extend(range(starts[number], starts[number] + lengths[number]))
    return [sorted(shard) for shard in shards]
