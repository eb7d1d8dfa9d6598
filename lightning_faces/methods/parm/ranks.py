"""What a fit that is spread over processes needs of them: their number, and sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes of a training.

    Attributes:
        rank: This process.
        size: Number of processes.
        reduce: Sums a tensor over them, and gives all of them the sum.
    """

    rank: int = 0
    size: int = 1
    reduce: Callable[[Tensor], Tensor] = lambda values: values

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes; of bytes, bool and integers it must fit into their type."""
        if self.size == 1:
            return values
        # Not all backends know 16-bit integers and bool.
        known = values.to(torch.int32) if values.dtype in (torch.int16, torch.bool) else values.clone()
        return self.reduce(known).to(values.dtype)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes ``[N, ...]``, one process after the other; each may have another number."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        counts = self.sum(counts)
        start = int(counts[: self.rank].sum())
        everything = rows.new_zeros((int(counts.sum()), *rows.shape[1:]))
        everything[start : start + len(rows)] = rows
        return self.sum(everything)
