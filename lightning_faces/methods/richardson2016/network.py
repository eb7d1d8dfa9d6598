"""The network of Richardson et al. (2016): figure 4, and the linear layer of section 5.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_faces.heads.terms import full_precision

BLIND = 0.25
"""``1 - E[t] / E[t^2 + (1 - t)^2]`` of a uniform share t: the least squares correction without the picture."""


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, the building block of ResNet (He et al. 2016)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, values: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``."""
        result: Tensor = torch.relu(self.layers(values) + self.shortcut(values))
        return result


class PaperNetwork(nn.Sequential):
    """Figure 4: a convolution and eight blocks, a map for each coefficient, and its mean.

    Args:
        coefficients: Number of coefficients K, 284 in the paper.
        width: Channels of the first convolution, 32 in the paper; the blocks have 1, 2, 4 and 8 times as many.
    """

    def __init__(self, coefficients: int, width: int = 32) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(2, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        before = width
        for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
            layers += [Block(before, factor * width, stride), Block(factor * width, factor * width, 1)]
            before = factor * width
        layers += [nn.Conv2d(before, coefficients, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)


class Correction(nn.Module):
    """The linear layer on the network's output and the previous coefficients, 568 to 284 in the paper (section 5.1).

    Args:
        features: Width of the network's output.
        coefficients: Number of coefficients K.
    """

    def __init__(self, features: int, coefficients: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features + coefficients, coefficients)
        # A present geometry of training, uniform between a random and the true one, is best corrected towards the mean
        # face by a quarter where nothing else is known: from there on, the network's output counts from the first step.
        nn.init.zeros_(self.layer.bias)
        with torch.no_grad():
            own = torch.eye(coefficients)
            self.layer.weight[:, features:] = -BLIND * own
            if features == coefficients:
                self.layer.weight[:, :features] = BLIND * own

    def forward(self, output: Tensor, previous: Tensor) -> Tensor:
        """Output ``[B, F]`` and coefficients ``[B, K]`` to their correction ``[B, K]``, in standard deviations."""
        # bfloat16 would round coefficients to hundredths.
        with torch.autocast(output.device.type, enabled=False):
            joined = torch.cat((output.to(self.layer.weight.dtype), previous.to(self.layer.weight.dtype)), dim=1)
            return full_precision(self.layer(joined))
