"""Gradients of a loss by autograd and by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def gradients(
    loss: Callable[[dict[str, Tensor]], Tensor], start: dict[str, Tensor], steps: dict[str, float]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each named input: its name, its gradient by autograd, and by central differences of its step."""
    leaves = {key: value.clone().requires_grad_(True) for key, value in start.items()}
    loss(leaves).backward()
    for key, value in start.items():
        numeric = torch.zeros_like(value)
        for i in range(value.numel()):
            step = torch.zeros_like(value)
            step[i] = steps[key]
            up, down = loss({**start, key: value + step}), loss({**start, key: value - step})
            numeric[i] = (up - down) / (2 * steps[key])
        analytic = leaves[key].grad
        assert analytic is not None
        yield key, analytic, numeric
