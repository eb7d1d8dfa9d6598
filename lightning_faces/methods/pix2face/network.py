"""The encoder of Pix2face's U-Net (section 3.1.1; layers of its published code)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.base import Features, FeatureShape


class UNetEncoder(nn.Module):
    """Convolutions 4x4 with stride 2, instance norms without weights, leaky ReLU: a map of half the side each.

    Args:
        image_size: Side of the image in pixels, a multiple of ``2 ** depth``.
        width: Channels of the first map, 64 in the paper's code; they double up to 8 times as many.
        depth: Number of maps, 8 there, which leaves one pixel of 256.

    Attributes:
        shape: Widths and sides of the maps.

    Raises:
        ConfigurationError: If the image cannot be halved so often.
    """

    def __init__(self, image_size: int, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        if depth < 1 or width < 1 or image_size % 2**depth:
            raise ConfigurationError(
                f"Pix2Face options image_size {image_size}, depth {depth} and width {width} do not fit: depth and "
                "width must be at least 1, and image_size a multiple of 2 ** depth."
            )
        channels = tuple(width * min(2**level, 8) for level in range(depth))
        sides = tuple(image_size // 2 ** (level + 1) for level in range(depth))
        self.shape = FeatureShape(image_size, channels=channels, sides=sides)
        self.levels = nn.ModuleList()
        before = 3
        for level, (out, side) in enumerate(zip(channels, sides)):
            layers: list[nn.Module] = [nn.Conv2d(before, out, 4, stride=2, padding=1)]
            # As in pix2pix, whose code this is: none on the first map, nor on a single pixel.
            if level > 0 and side > 1:
                layers.append(nn.InstanceNorm2d(out))
            self.levels.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
            before = out

    def extract(self, image: Tensor) -> Features:
        """Maps of images ``[B, 3, S, S]`` in [0, 1], from the finest to the coarsest."""
        maps = []
        values = image - 0.5
        for level in self.levels:
            values = level(values)
            maps.append(values)
        return Features(maps=tuple(maps))
