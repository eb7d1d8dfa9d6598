"""Processes that are threads, for tests of fits that are spread over processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lightning_faces.methods.parm.ranks import Ranks

Result = TypeVar("Result")


def on_ranks(size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What ``work`` gives on each of ``size`` processes that can sum tensors."""
    barrier = threading.Barrier(size)
    given: list[Tensor | None] = [None] * size

    def run(rank: int) -> Result:
        def reduce(values: Tensor) -> Tensor:
            given[rank] = values
            barrier.wait(60)
            total = torch.stack([part for part in given if part is not None]).sum(dim=0).to(values.dtype)
            barrier.wait(60)
            return total

        return work(Ranks(rank, size, reduce))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
