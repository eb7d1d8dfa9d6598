"""What makes a rendered face look like a photograph: backgrounds, things in the way, and a camera's faults.

All of it is batched torch on images ``[B, 3, H, W]``; all random numbers come in with the look. Colours here are
display values (gamma-encoded) in [0, 1].
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_faces.errors import DataError
from lightning_faces.rendering.noise import NoiseBank

BACKGROUND_SHAPES = 6
OCCLUDERS = 2
LINES = 2
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Quantisation tables of JPEG (ITU-T T.81, annex K), luminance and chrominance.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, *(99,) * 32,
)  # fmt: skip


def _column(value: Tensor) -> Tensor:
    """``[B, C]`` to ``[B, C, 1, 1]``."""
    return value[..., None, None]


class Photograph(nn.Module):
    """Background, occluders and degradation for square pictures.

    Args:
        image_size: Side in pixels.
        bank: Noise.
        background_folder: Folder of photographs without faces to use as backgrounds half of the time, or None.
    """

    grid: Tensor
    half_grid: Tensor
    dct: Tensor
    luma: Tensor
    chroma: Tensor

    def __init__(self, image_size: int, bank: NoiseBank, background_folder: str | None = None) -> None:
        super().__init__()
        self.size = image_size
        self.bank = bank
        self.folder = background_folder
        for name, side in (("grid", image_size), ("half_grid", (image_size + 1) // 2)):
            steps = (torch.arange(side) + 0.5) / side * 2.0 - 1.0
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            self.register_buffer(name, torch.stack((x, y)), persistent=False)
        k = torch.arange(8, dtype=torch.float64)
        dct = 0.5 * torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16)
        dct[0] *= 0.5**0.5
        self.register_buffer("dct", dct.float(), persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA).reshape(8, 8) / 255.0, persistent=False)
        self.register_buffer("chroma", torch.tensor(_CHROMA).reshape(8, 8) / 255.0, persistent=False)

    def background(self, look: dict[str, Tensor]) -> Tensor:
        """Gradients, noise and soft shapes at half resolution, or the user's photographs; ``[B, 3, H, W]``."""
        x, y = self.half_grid
        side = x.shape[0]
        direction = look["bg_direction"]
        ramp = torch.sigmoid(
            2.0 * (_column(direction[:, :1])[:, 0] * x + _column(direction[:, 1:2])[:, 0] * y)[:, None]
        )
        image = torch.lerp(_column(look["bg_first"]), _column(look["bg_second"]), ramp)
        p = look["bg_shapes"].reshape(-1, BACKGROUND_SHAPES, 8)[..., None, None]
        cosine, sine = p[:, :, 2].cos(), p[:, :, 2].sin()
        dx, dy = x - p[:, :, 0], y - p[:, :, 1]
        u, v = (dx * cosine + dy * sine) / p[:, :, 3], (dy * cosine - dx * sine) / p[:, :, 4]
        distance = torch.where(p[:, :, 5] > 0.5, torch.maximum(u.abs(), v.abs()), (u * u + v * v).sqrt())
        cover = torch.sigmoid((1.0 - distance) * p[:, :, 6]) * p[:, :, 7]
        for k in range(BACKGROUND_SHAPES):
            image = torch.lerp(image, _column(look["bg_colours"][:, 3 * k : 3 * k + 3]), cover[:, k : k + 1])
        batch = image.shape[0]
        place = look["bg_noise_scale"][..., None, None] * self.half_grid + look["bg_noise_offset"][..., None, None]
        noise = self.bank.sample(place[:, 0].reshape(-1), place[:, 1].reshape(-1))
        noise = noise.reshape(batch, side, side, 8).permute(0, 3, 1, 2)
        coarse = noise[:, 0:3] * _column(look["bg_noise"][:, 0:3]) + noise[:, 3:4] * _column(look["bg_noise"][:, 3:4])
        fine = noise[:, 4:5] * _column(look["bg_noise"][:, 4:5]) + noise[:, 6:7] * _column(look["bg_noise"][:, 5:6])
        image = (image + coarse + fine).clamp(0.0, 1.0)
        image = nn.functional.interpolate(image, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if self.folder is not None:
            image = torch.where(_column(look["bg_photo"]) > 0.5, self._photographs(look).to(image), image)
        return image

    def _photographs(self, look: dict[str, Tensor]) -> Tensor:
        paths = _image_paths(str(self.folder))
        pictures = []
        for which, top, left, zoom, mirrored in look["bg_photo_crop"].tolist():
            picture = _read_image(paths[int(which * len(paths)) % len(paths)])
            height, width = picture.shape[1:]
            side = max(8, int(min(height, width) * (0.3 + 0.7 * zoom)))
            y0, x0 = int(top * (height - side + 1)), int(left * (width - side + 1))
            part = picture[None, :, y0 : y0 + side, x0 : x0 + side].float() / 255.0
            part = nn.functional.interpolate(
                part, size=(self.size, self.size), mode="area" if side > self.size else "bilinear"
            )
            pictures.append(part.flip(-1) if mirrored > 0.5 else part)
        return torch.cat(pictures)

    def occlude(self, image: Tensor, look: dict[str, Tensor]) -> Tensor:
        """Draw ellipses, bars and lines over the picture, and cut off its edges."""
        x, y = self.grid
        for k in range(OCCLUDERS):
            p = look["occluders"][:, 8 * k : 8 * k + 8]
            if not bool((p[:, 7] > 0.0).any()):
                continue
            cosine, sine = (_column(f(p[:, 2:3]))[:, 0] for f in (torch.cos, torch.sin))
            dx, dy = x - _column(p[:, :1])[:, 0], y - _column(p[:, 1:2])[:, 0]
            u = (dx * cosine + dy * sine) / _column(p[:, 3:4])[:, 0]
            v = (dy * cosine - dx * sine) / _column(p[:, 4:5])[:, 0]
            power = _column(p[:, 5:6])[:, 0]
            distance = (u.abs().clamp_min(1e-4) ** power + v.abs().clamp_min(1e-4) ** power) ** (1.0 / power)
            cover = torch.sigmoid((1.0 - distance) * _column(p[:, 6:7])[:, 0]) * _column(p[:, 7:8])[:, 0]
            colour = _column(look["occluder_colours"][:, 3 * k : 3 * k + 3])
            shade = 1.0 - 0.35 * (u * 0.6 + v * 0.8 + distance.square() * 0.5)[:, None].clamp(-0.8, 1.2)
            texture = self.bank.grain_image(look["grain_offset"], self.size)[:, :1] * 0.04
            image = torch.lerp(image, (colour * shade + texture).clamp(0.0, 1.0), cover[:, None])
        for k in range(LINES):
            p = look["lines"][:, 7 * k : 7 * k + 7]
            if not bool((p[:, 6] > 0.0).any()):
                continue
            angle, bend = p[:, 0:1], _column(p[:, 2:3])[:, 0]
            across = x * _column(angle.sin())[:, 0] - y * _column(angle.cos())[:, 0]
            along = x * _column(angle.cos())[:, 0] + y * _column(angle.sin())[:, 0]
            distance = (across - _column(p[:, 1:2])[:, 0] - bend * along.square()).abs()
            cover = torch.sigmoid((_column(p[:, 3:4])[:, 0] - distance) * self.size * 0.7) * _column(p[:, 6:7])[:, 0]
            colour = torch.cat((p[:, 4:5], p[:, 5:6], p[:, 4:5]), dim=1)
            image = torch.lerp(image, _column(colour), cover[:, None])
        edge = look["cut"]
        cut = (x < _column(edge[:, 0:1])[:, 0]) | (x > _column(edge[:, 1:2])[:, 0]) | (y > _column(edge[:, 2:3])[:, 0])
        return torch.where(cut[:, None], _column(edge[:, 3:4]), image)

    def degrade(self, image: Tensor, look: dict[str, Tensor]) -> Tensor:
        """Blur, colour cast, contrast, saturation, noise, JPEG and grey; in and out ``[B, 3, H, W]`` in [0, 1]."""
        image = self._blur(image, look["blur"])
        grey = (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        image = torch.lerp(grey, image, _column(look["saturation"]))
        image = image * _column(look["cast"])
        middle = _column(look["middle"])
        image = (image - middle) * _column(look["contrast"]) + middle + _column(look["brightness"])
        image = image.clamp_min(1e-4) ** _column(look["gamma"])
        grain = self.bank.grain_image(look["grain_offset"], self.size)
        level = (0.35 + image.clamp(0.0, 1.0)).sqrt()
        image = image + level * (grain[:, :1] * _column(look["noise_luma"]) + grain * _column(look["noise_chroma"]))
        image = image.clamp(0.0, 1.0)
        compressed = look["jpeg"][:, 0] > 0.0
        if bool(compressed.any()):
            lossy = self._jpeg(image, look["jpeg"])
            image = torch.where(_column(compressed[:, None]), lossy, image)
        return image.clamp(0.0, 1.0)

    @staticmethod
    def _blur(image: Tensor, sigma: Tensor) -> Tensor:
        """Gaussian blur of each image by its own ``sigma`` ``[B, 2]`` (x, y) in pixels."""
        radius = max(1, math.ceil(2.5 * float(sigma.max())))
        steps = torch.arange(radius + 1, device=image.device)
        kernels = torch.exp(-0.5 * (steps / sigma.clamp_min(0.05)[..., None]).square())
        # Each picture's kernel ends at its own radius, whatever the batch.
        kernels = kernels * (steps <= (2.5 * sigma).ceil().clamp_min(1.0)[..., None])
        kernels = kernels / (2.0 * kernels.sum(-1, keepdim=True) - kernels[..., :1])
        for axis, dim in ((0, -1), (1, -2)):
            size = image.shape[dim]
            padded = nn.functional.pad(
                image, (radius, radius, 0, 0) if axis == 0 else (0, 0, radius, radius), "replicate"
            )
            image = image * _column(kernels[:, axis, :1])
            for k in range(1, radius + 1):
                pair = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
                image = image + pair * _column(kernels[:, axis, k : k + 1])
        return image

    def _jpeg(self, image: Tensor, scale: Tensor) -> Tensor:
        """Quantise the 8x8 block DCT of luminance and (at half size) chrominance; scale ``[B, 1]`` as in libjpeg."""
        r, g, b = image.unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = torch.stack((0.564 * (b - luma), 0.713 * (r - luma)), dim=1)
        small = nn.functional.avg_pool2d(chroma, 2, ceil_mode=True, count_include_pad=False)
        luma = self._quantise(luma[:, None], _column(scale)[..., None, None] * self.luma)[:, 0]
        small = self._quantise(small, _column(scale)[..., None, None] * self.chroma)
        cb, cr = nn.functional.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False).unbind(1)
        r, b = luma + cr / 0.713, luma + cb / 0.564
        return torch.stack((r, (luma - 0.299 * r - 0.114 * b) / 0.587, b), dim=1)

    def _quantise(self, planes: Tensor, table: Tensor) -> Tensor:
        batch, channels, height, width = planes.shape
        down, right = -height % 8, -width % 8
        padded = nn.functional.pad(planes, (0, right, 0, down), mode="replicate")
        rows, columns = (height + down) // 8, (width + right) // 8
        blocks = padded.reshape(batch, channels, rows, 8, columns, 8).permute(0, 1, 2, 4, 3, 5)
        coefficients = self.dct @ blocks @ self.dct.T
        coefficients = torch.round(coefficients / table) * table
        blocks = self.dct.T @ coefficients @ self.dct
        padded = blocks.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, height + down, width + right)
        return padded[:, :, :height, :width]


@lru_cache(maxsize=8)
def _image_paths(folder: str) -> tuple[Path, ...]:
    paths = tuple(sorted(p for p in Path(folder).expanduser().rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES))
    if not paths:
        raise DataError(
            f"Background folder {folder!r} holds no images ({', '.join(IMAGE_SUFFIXES)}): give one that does."
        )
    return paths


@lru_cache(maxsize=256)
def _read_image(path: Path) -> Tensor:
    """An image as uint8 ``[3, H, W]``, at most 512 pixels on its longer side."""
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (512, 512))
            picture = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"Background {str(path)!r} cannot be read as an image ({error}): remove it.") from error
    picture.thumbnail((512, 512))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
