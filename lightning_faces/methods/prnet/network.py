"""The encoder-decoder of PRNet (Feng et al. 2018, section 3.2 and its published network, "resfcn256")."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.timm_models import TimmModel

SIGMOID_RANGE = 1.1
"""The published network multiplies its sigmoid by 281.6 = 1.1 * 256: it reaches 0 to 1.1 image sides."""
_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """Convolution with kernel 4, no bias and TensorFlow's SAME padding: (1, 2) at stride 1, (1, 1) at stride 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride, padding=2 if stride == 1 else 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``, H and W even at stride 2."""
        y = super().forward(x)
        # Padded by (2, 2); without the first row and column that is (1, 2). Batch norm is slow on a view.
        return y[..., 1:, 1:].contiguous() if self.stride == (1, 1) else y


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with kernel 4 and SAME padding: of the whole result, (1, 2) or at stride 2 (1, 1) go."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride, padding=1, bias=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', stride H, stride W]``."""
        y = super().forward(x, output_size)
        return y[..., :-1, :-1].contiguous() if self.stride == (1, 1) else y


def norm_relu(channels: int) -> list[nn.Module]:
    """Batch norm and ReLU. Its running averages follow torch's 0.1, not TensorFlow's 0.001, which takes many epochs."""
    return [nn.BatchNorm2d(channels, eps=_EPSILON), nn.ReLU(inplace=True)]


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


def paper_encoder(width: int) -> nn.Sequential:
    """One convolution and 10 residual blocks, ``[B, 3, S, S]`` to ``[B, 32 width, S / 32, S / 32]``."""
    layers: list[nn.Module] = [SameConv2d(3, width, 1), *norm_relu(width)]
    for level in range(5):
        out = width * 2 ** (level + 1)
        layers += [ResidualBlock(out // 2, out, 2), ResidualBlock(out, out, 1)]
    return nn.Sequential(*layers)


class TimmEncoder(TimmModel):
    """The last feature map of a timm network.

    Attributes:
        channels: Channels of the feature map.
        reduction: Side of the image over the side of the feature map.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__(
            "PRNet option encoder", "resfcn", name, pretrained=pretrained, features_only=True, out_indices=(-1,)
        )
        self.channels = int(self.network.feature_info.channels()[-1])
        self.reduction = int(self.network.feature_info.reduction()[-1])

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` in [0, 1] to ``[B, channels, S / reduction, S / reduction]``."""
        return super().forward(image)[-1]  # type: ignore[no-any-return]


def decoder(in_channels: int, width: int, doublings: int, output: Literal["linear", "sigmoid"]) -> nn.Sequential:
    """Transposed convolutions that double the side ``doublings`` times; five make the paper's 17.

    Args:
        in_channels: Channels of the encoder's feature map.
        width: Channels at full size; the first layer has 32 times as many.
        doublings: How often the side is doubled, 1 to 5.
        output: "sigmoid" as published, or "linear": without it, the last batch norm gives the values.

    Returns:
        Layers from ``[B, in_channels, s, s]`` to ``[B, 3, s 2^doublings, s 2^doublings]``.
    """
    channels, strides = [32 * width], [1]
    for level in range(1, doublings + 1):
        repeats = 3 if level <= 3 else 2
        channels += [32 * width // 2**level] * repeats
        strides += [2] + [1] * (repeats - 1)
    channels, strides = [*channels, 3, 3, 3], [*strides, 1, 1, 1]
    layers: list[nn.Module] = []
    for number, (out, stride) in enumerate(zip(channels, strides)):
        last = number == len(channels) - 1
        layers.append(SameConvTranspose2d(in_channels, out, stride))
        if not last:
            layers += norm_relu(out)
        in_channels = out
    layers.append(nn.BatchNorm2d(3, eps=_EPSILON))
    if output == "sigmoid":
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)


class PositionMapNetwork(nn.Module):
    """Image to position map.

    With the defaults 13.35 million parameters, as published: every layer but the last is followed by batch norm and
    ReLU, even those of 3 channels, and no convolution has a bias.

    Args:
        image_size: Side of the image in pixels.
        map_size: Side of the map in texels: ``image_size / 32`` (the encoder's last feature map) doubled one to five
            times.
        width: Channels of the first and last full-size layers, 16 in the paper.
        encoder: "resfcn", the paper's, or the name of a timm model.
        pretrained: Whether a timm encoder starts from its published weights.
        output: "sigmoid", the paper's, reaches 0 to 1.1 image sides; "linear" reaches everything.
    """

    def __init__(
        self,
        image_size: int = 256,
        map_size: int = 256,
        width: int = 16,
        encoder: str = "resfcn",
        pretrained: bool = False,
        output: Literal["linear", "sigmoid"] = "sigmoid",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ConfigurationError(f"PRNet option width is {width}; it must be at least 1.")
        if encoder == "resfcn":
            self.encoder: nn.Module = paper_encoder(width)
            channels, reduction = 32 * width, 32
        else:
            self.encoder = TimmEncoder(encoder, pretrained)
            channels, reduction = self.encoder.channels, self.encoder.reduction
        if image_size < reduction or image_size % reduction:
            raise ConfigurationError(
                f"PRNet option image_size is {image_size}; encoder {encoder!r} needs a multiple of {reduction}."
            )
        side = image_size // reduction
        sizes = [side * 2**doublings for doublings in range(1, 6)]
        if map_size not in sizes:
            raise ConfigurationError(
                f"PRNet option map_size is {map_size}; at image_size {image_size} it can be "
                f"{', '.join(map(str, sizes))}."
            )
        self.decoder = decoder(channels, width, sizes.index(map_size) + 1, output)
        self.scale = SIGMOID_RANGE if output == "sigmoid" else 1.0
        parts = [self.decoder] if encoder != "resfcn" else [self.encoder, self.decoder]
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(module.weight)
        if output == "linear":
            # A face in the middle of the image, as the sigmoid starts with.
            nn.init.constant_(self.decoder[-1].bias, 0.5)  # type: ignore[arg-type]
            nn.init.constant_(self.decoder[-1].weight, 0.25)  # type: ignore[arg-type]
            # Three channels carry the three coordinates through two more ReLUs, which would cut off half of each: a
            # training begins far faster where they cut off little.
            for norm in [module for module in self.decoder if isinstance(module, nn.BatchNorm2d)][-3:-1]:
                nn.init.constant_(norm.bias, 2.0)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` in [0, 1] to position maps ``[B, 3, U, U]`` in units of the image's side."""
        return self.decoder(self.encoder(image)) * self.scale  # type: ignore[no-any-return]
