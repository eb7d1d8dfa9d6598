"""Random numbers for pictures: drawn on the CPU from seeds alone, and a fixed bank of noise to look them up in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

UNIFORM_DRAWS = 512
NORMAL_DRAWS = 640
BANK_SIDE = 256
GRAIN_SIDE = 768
BANK_SEED = 20160325


class Draws:
    """Named use of a fixed budget of random numbers per seed: row i depends on ``seeds[i]`` alone.

    numpy's SeedSequence takes the whole seed (torch's CPU generator keeps the low 32 bits of it).

    Args:
        seeds: Non-negative integers of any size.
        stream: Which of several independent streams of a seed.
    """

    def __init__(self, seeds: Sequence[int], stream: int) -> None:
        uniform = np.empty((len(seeds), UNIFORM_DRAWS), dtype=np.float64)
        normal = np.empty((len(seeds), NORMAL_DRAWS), dtype=np.float64)
        for row, seed in enumerate(seeds):
            generator = np.random.Generator(np.random.PCG64([int(seed), stream]))
            uniform[row] = generator.random(UNIFORM_DRAWS, dtype=np.float64)
            normal[row] = generator.standard_normal(NORMAL_DRAWS, dtype=np.float64)
        self._uniform, self._normal = torch.from_numpy(uniform), torch.from_numpy(normal)
        self._next_uniform = self._next_normal = 0

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int = 1) -> Tensor:
        """``[B, count]`` uniform in [low, high)."""
        start, self._next_uniform = self._next_uniform, self._next_uniform + count
        if self._next_uniform > UNIFORM_DRAWS:
            raise IndexError(f"More than {UNIFORM_DRAWS} uniform numbers drawn for a face.")
        return low + (high - low) * self._uniform[:, start : self._next_uniform]

    def normal(self, mean: float = 0.0, std: float = 1.0, count: int = 1) -> Tensor:
        """``[B, count]`` normal, cut off at three standard deviations."""
        start, self._next_normal = self._next_normal, self._next_normal + count
        if self._next_normal > NORMAL_DRAWS:
            raise IndexError(f"More than {NORMAL_DRAWS} normal numbers drawn for a face.")
        return mean + std * self._normal[:, start : self._next_normal].clamp(-3.0, 3.0)

    def happens(self, probability: float | Tensor) -> Tensor:
        """``[B, 1]`` of 0 and 1."""
        return (self.uniform() < probability).double()


def _smooth_noise(generator: torch.Generator, cells: int, count: int) -> Tensor:
    """Periodic noise ``[count, BANK_SIDE, BANK_SIDE]`` of unit variance with about ``cells`` bumps along a side."""
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    padded = nn.functional.pad(coarse, (2, 2, 2, 2), mode="circular")
    scale = BANK_SIDE // cells
    fine = nn.functional.interpolate(padded, scale_factor=float(scale), mode="bicubic", align_corners=False)[:, 0]
    fine = fine[:, 2 * scale : 2 * scale + BANK_SIDE, 2 * scale : 2 * scale + BANK_SIDE]
    flat = fine.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).reshape(fine.shape)


class NoiseBank(nn.Module):
    """Periodic textures that every picture samples at its own random places; the bank itself never changes.

    Channels: 0-3 coarse fractal noise (4 cells and finer), 4-5 medium (32 cells and finer), 6-7 white.
    """

    texels: Tensor
    grain: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(BANK_SEED)
        coarse = sum(2.0**-k * _smooth_noise(generator, 4 << k, 4) for k in range(5))
        medium = sum(1.5**-k * _smooth_noise(generator, 32 << k, 2) for k in range(3))
        white = torch.randn(2, BANK_SIDE, BANK_SIDE, generator=generator)
        channels = torch.cat([torch.as_tensor(part) for part in (coarse, medium, white)])
        channels = channels / channels.std(dim=(1, 2), keepdim=True)
        self.register_buffer("texels", channels.permute(1, 2, 0).reshape(-1, 8).contiguous(), persistent=False)
        grain = torch.randn(3, GRAIN_SIDE, GRAIN_SIDE, generator=generator)
        self.register_buffer("grain", grain, persistent=False)

    def sample(self, u: Tensor, v: Tensor) -> Tensor:
        """All channels at places ``[P]`` each, where 1 is one period: bilinear, ``[P, 8]``."""
        x, y = u * BANK_SIDE, v * BANK_SIDE
        left, top = x.floor(), y.floor()
        fx, fy = x - left, y - top
        mask = BANK_SIDE - 1
        x0, y0 = left.long() & mask, (top.long() & mask) * BANK_SIDE
        x1, y1 = (x0 + 1) & mask, (y0 + BANK_SIDE) & (mask * BANK_SIDE)
        corners = torch.stack((y0 + x0, y0 + x1, y1 + x0, y1 + x1), dim=1)
        gx, gy = 1 - fx, 1 - fy
        weights = torch.stack((gx * gy, fx * gy, gx * fy, fx * fy), dim=1)
        return nn.functional.embedding_bag(corners, self.texels, per_sample_weights=weights, mode="sum")

    def grain_image(self, offset: Tensor, size: int) -> Tensor:
        """White noise ``[B, 3, size, size]`` cut out of the bank at offsets ``[B, 2]`` in [0, 1)."""
        side = self.grain.shape[-1]
        start = (offset * side).long()
        if offset.shape[0] == 1 and offset.device.type == "cpu":
            row, column = start[0].tolist()
            if row + size <= side and column + size <= side:
                return self.grain[None, :, row : row + size, column : column + size]
        steps = torch.arange(size, device=start.device)
        rows = (start[:, :1] + steps) % side
        columns = (start[:, 1:] + steps) % side
        return self.grain[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
