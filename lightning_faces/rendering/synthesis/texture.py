"""Images that are read at points between their pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ROW = 256
"""OpenCV looks points up in the shape of an image, at most 32767 to a side: rows of this many."""


class Texture(nn.Module):
    """Bilinear look-up in images, clamped to the outermost pixels.

    On the CPU, where no gradient is asked for, OpenCV does it three times faster than ``grid_sample``; some of its
    versions round places to 1/32 pixel.

    Args:
        texels: ``[C, H, W]``.
    """

    texels: Tensor

    def __init__(self, texels: Tensor) -> None:
        super().__init__()
        self.register_buffer("texels", texels[None].contiguous(), persistent=False)
        self._tables: dict[tuple[int, int], NDArray[Any]] = {}

    def forward(self, x: Tensor, y: Tensor, first: int, end: int) -> Tensor:
        """Channels ``first`` to ``end`` at points ``[P]`` in pixels, centres at integers: ``[C, P]``."""
        if x.device.type == "cpu" and not (x.requires_grad or y.requires_grad):
            return self._remap(x.numpy(), y.numpy(), first, end)
        height, width = self.texels.shape[-2:]
        grid = torch.stack((x * (2.0 / (width - 1)) - 1.0, y * (2.0 / (height - 1)) - 1.0)).T[None, None]
        texels = self.texels[:, first:end]
        return nn.functional.grid_sample(texels, grid, padding_mode="border", align_corners=True)[0, :, 0]

    def _remap(self, x: NDArray[Any], y: NDArray[Any], first: int, end: int) -> Tensor:
        count = x.shape[0]
        places = np.zeros((2, -(-count // _ROW), _ROW), dtype=np.float32)
        places.reshape(2, -1)[:, :count] = x, y
        if not count:
            return self.texels.new_zeros(end - first, 0)
        if (first, end) not in self._tables:
            self._tables[first, end] = self.texels[0, first:end].permute(1, 2, 0).contiguous().numpy()
        table = self._tables[first, end]
        values = cv2.remap(table, places[0], places[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return torch.from_numpy(cv2.transpose(values.reshape(-1, end - first)))[:, :count]
