"""Samplers count each sample once and start again where they stopped."""

from __future__ import annotations

import pytest
import torch

from datamodules.components.sampling import EvaluationSampler, TrainSampler, WholePassSampler


class Sized(torch.utils.data.Dataset[object]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_sample_once(world: int) -> None:
    seen = [index for rank in range(world) for index, _ in EvaluationSampler(Sized(37), world, rank)]
    assert sorted(seen) == list(range(37))
    assert sum(len(EvaluationSampler(Sized(37), world, rank)) for rank in range(world)) == 37


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_order_is_a_new_permutation_each_epoch_shared_by_ranks(world: int) -> None:
    orders = []
    for epoch in (0, 1):
        ranks = []
        for rank in range(world):
            sampler = TrainSampler(Sized(37), world, rank, seed=5)
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len(keys) == len(sampler) == 37 // world
            assert {draw for _, draw in keys} == {epoch}
            ranks.append([index for index, _ in keys])
        seen = [index for rank_order in ranks for index in rank_order]
        assert len(set(seen)) == len(seen) == 37 // world * world
        # Interleaved, the ranks' orders are the one permutation of any world size.
        orders.append([index for step in zip(*ranks) for index in step])
    assert orders[0] != orders[1]
    single = TrainSampler(Sized(37), 1, 0, seed=5)
    assert orders[0] == [index for index, _ in single][: len(orders[0])]


def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole() -> None:
    whole = list(TrainSampler(Sized(20), 2, 1, seed=1))
    resumed = TrainSampler(Sized(20), 2, 1, seed=1, skip=4, skip_epoch=0)
    assert list(resumed) == whole[4:]
    resumed.set_epoch(1)
    assert len(list(resumed)) == 10


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_a_whole_pass_has_each_sample_once_in_as_many_batches_on_every_rank(world: int, batch_size: int) -> None:
    orders = []
    for epoch in (0, 1):
        ranks = []
        for rank in range(world):
            sampler = WholePassSampler(Sized(37), world, rank, batch_size, seed=5)
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert {draw for batch in batches for _, draw in batch} == {epoch}
            ranks.append([[index for index, _ in batch] for batch in batches])
        assert len({len(batches) for batches in ranks}) == 1
        sizes = {len(batch) for batches in ranks for batch in batches}
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(batch_size, 2)
        assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(37))
        orders.append(ranks)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_resumed_pass_goes_on_with_the_next_batch_and_the_next_is_whole(world: int) -> None:
    seen = []
    for rank in range(world):
        whole = list(WholePassSampler(Sized(37), world, rank, 4, seed=1))
        resumed = WholePassSampler(Sized(37), world, rank, 4, seed=1, skip=2, skip_epoch=0)
        assert list(resumed) == whole[2:]
        seen += [index for batch in whole[:2] + whole[2:] for index, _ in batch]
        resumed.set_epoch(1)
        assert len(list(resumed)) == len(whole)
    assert sorted(seen) == list(range(37))
