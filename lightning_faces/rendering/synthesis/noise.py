"""Random numbers for pictures: drawn on the CPU from seeds alone, and a fixed bank of noise to look them up in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_faces.rendering.synthesis.texture import Texture

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


# Runs of channels that are looked up together, in the order that _CHANNELS gives them.
SURFACE, CLOTH, STRANDS, BACKGROUND = slice(0, 6), slice(2, 6), slice(4, 7), slice(2, 8)
_CHANNELS = (5, 7, 0, 1, 4, 6, 2, 3)


class NoiseBank(nn.Module):
    """Periodic textures that every picture samples at its own random places; the bank itself never changes.

    Three kinds: a-d coarse fractal noise (4 cells and finer), a-b medium (32 cells and finer), a-b white. Channels:
    medium b, white b, coarse a, coarse b, medium a, white a, coarse c, coarse d.
    """

    grain: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(BANK_SEED)
        coarse = sum(2.0**-k * _smooth_noise(generator, 4 << k, 4) for k in range(5))
        medium = sum(1.5**-k * _smooth_noise(generator, 32 << k, 2) for k in range(3))
        white = torch.randn(2, BANK_SIDE, BANK_SIDE, generator=generator)
        channels = torch.cat([torch.as_tensor(part) for part in (coarse, medium, white)])
        channels = (channels / channels.std(dim=(1, 2), keepdim=True))[list(_CHANNELS)]
        # The first row and column once more at the end, so that looking up never has to wrap.
        texels = nn.functional.pad(channels[None], (0, 1, 0, 1), mode="circular")
        self.texture = Texture(texels[0])
        grain = torch.randn(3, GRAIN_SIDE, GRAIN_SIDE, generator=generator)
        self.register_buffer("grain", grain, persistent=False)

    def sample(self, u: Tensor, v: Tensor, channels: slice) -> Tensor:
        """Some channels at places ``[P]`` each, where 1 is one period: bilinear, ``[C, P]``."""
        x, y = ((place - place.floor()) * BANK_SIDE for place in (u, v))
        return self.texture(x, y, channels.start, channels.stop)

    def grain_image(self, offset: Tensor, size: int) -> Tensor:
        """White noise ``[B, 3, size, size]`` cut out of the bank at offsets ``[B, 2]`` in [0, 1)."""
        side = self.grain.shape[-1]
        start = (offset * side).long()
        if offset.shape[0] == 1 and offset.device.type == "cpu" and size <= side:
            row, column = start[0].tolist()
            return _window(_window(self.grain, 1, row, size), 2, column, size)[None]
        steps = torch.arange(size, device=start.device)
        rows = (start[:, :1] + steps) % side
        columns = (start[:, 1:] + steps) % side
        return self.grain[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _window(values: Tensor, dim: int, start: int, size: int) -> Tensor:
    """Part of a dimension, going on at its beginning after its end."""
    over = start + size - values.shape[dim]
    if over <= 0:
        return values.narrow(dim, start, size)
    return torch.cat((values.narrow(dim, start, size - over), values.narrow(dim, 0, over)), dim=dim)
