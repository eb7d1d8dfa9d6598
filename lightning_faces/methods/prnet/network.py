"""The encoder of PRNet (Feng et al. 2018, section 3.2 and its published network, "resfcn256")."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_faces.heads import Features, FeatureShape
from lightning_faces.heads.position_map import norm_relu


class SameConv2d(nn.Conv2d):
    """Convolution with kernel 4, no bias and TensorFlow's SAME padding: (1, 2) at stride 1, (1, 1) at stride 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride, padding=2 if stride == 1 else 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``, H and W even at stride 2."""
        y = super().forward(x)
        # Padded by (2, 2); without the first row and column that is (1, 2). Batch norm is slow on a view.
        return y[..., 1:, 1:].contiguous() if self.stride == (1, 1) else y


class ResidualBlock(nn.Module):
    """Bottleneck of half the width: 1x1, 4x4 with stride, 1x1; norm and ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, half, 1, bias=False),
            *norm_relu(half),
            SameConv2d(half, half, stride),
            *norm_relu(half),
            nn.Conv2d(half, out_channels, 1, bias=False),
        )
        self.after = nn.Sequential(*norm_relu(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``."""
        return self.after(self.residual(x) + self.shortcut(x))  # type: ignore[no-any-return]


class PaperBackbone(nn.Module):
    """One convolution and 10 residual blocks, ``[B, 3, S, S]`` to one map ``[B, 32 width, S / 32, S / 32]``.

    With the decoder of :class:`.PositionMapHead` it has 13.35 million parameters, as published: every layer but the
    last is followed by batch norm and ReLU, even those of 3 channels, and no convolution has a bias.

    Args:
        image_size: Side S of the image in pixels, a multiple of 32.
        width: Channels of the first layer, 16 in the paper.
    """

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [SameConv2d(3, width, 1), *norm_relu(width)]
        for level in range(5):
            out = width * 2 ** (level + 1)
            layers += [ResidualBlock(out // 2, out, 2), ResidualBlock(out, out, 1)]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.shape = FeatureShape(image_size, 0, (32 * width,), (image_size // 32,))

    def extract(self, image: Tensor) -> Features:
        """Features of images ``[B, 3, S, S]`` in [0, 1]."""
        return Features(maps=(self.layers(image.to(next(self.parameters()).dtype)),))
