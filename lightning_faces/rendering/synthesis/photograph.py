"""What makes a rendered face look like a photograph: backgrounds, things in the way, and a camera's faults.

All of it is batched torch on images ``[B, 3, H, W]``; all random numbers come in with the look. Colours here are
display values (gamma-encoded) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_faces.errors import DataError
from lightning_faces.rendering.synthesis.noise import BACKGROUND, NoiseBank
from lightning_faces.rendering.synthesis.scene import Background, Exposure, Occlusion
from lightning_faces.rendering.synthesis.situation import BACKGROUND_SHAPES, LINES, OCCLUDERS

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

    steps: Tensor
    half_steps: Tensor
    dct: Tensor
    luma: Tensor
    chroma: Tensor

    def __init__(self, image_size: int, bank: NoiseBank, background_folder: str | None = None) -> None:
        super().__init__()
        self.size = image_size
        self.bank = bank
        self.folder = background_folder
        for name, side in (("steps", image_size), ("half_steps", (image_size + 1) // 2)):
            self.register_buffer(name, (torch.arange(side) + 0.5) / side * 2.0 - 1.0, persistent=False)
        k = torch.arange(8, dtype=torch.float64)
        dct = 0.5 * torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16)
        dct[0] *= 0.5**0.5
        # Of a block's 64 pixels as one vector.
        self.register_buffer("dct", torch.kron(dct, dct).float(), persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA) / 255.0, persistent=False)
        self.register_buffer("chroma", torch.tensor(_CHROMA) / 255.0, persistent=False)

    def background(self, behind: Background) -> Tensor:
        """Gradients, noise and soft shapes at half resolution, or the user's photographs; ``[B, 3, H, W]``."""
        steps, side = self.half_steps, self.half_steps.shape[0]
        ramp = torch.sigmoid(2.0 * _plane(steps, behind.direction))
        image = torch.lerp(_column(behind.first), _column(behind.second), ramp)
        shapes = behind.shapes.reshape(-1, BACKGROUND_SHAPES, 8)
        kind, sharpness, cover = (_column(shapes[..., k : k + 1]) for k in (5, 6, 7))
        colours = _column(behind.colours.reshape(-1, BACKGROUND_SHAPES, 3))
        for k, (u, v) in _drawn(steps, shapes):
            distance = torch.where(kind[:, k] > 0.5, torch.maximum(u.abs(), v.abs()), (u * u + v * v).sqrt())
            image = torch.lerp(image, colours[:, k], torch.sigmoid((1.0 - distance) * sharpness[:, k]) * cover[:, k])
        batch = image.shape[0]
        place = behind.noise_scale[..., None] * steps + behind.noise_place[..., None]
        u, v = place[:, 0, None, :].expand(-1, side, -1), place[:, 1, :, None].expand(-1, -1, side)
        noise = self.bank.sample(u.reshape(-1), v.reshape(-1), BACKGROUND).reshape(6, batch, side * side)
        # Of red, green and blue, how much there is of the channels coarse a, coarse b, medium a, white a, coarse c, d.
        strength = behind.noise
        red, green, blue = torch.diag_embed(strength[:, :3]).unbind(-1)
        rest = (strength[:, k, None].expand(-1, 3) for k in (3, 4, 5))
        common, medium, white = rest
        mixing = torch.stack((red, green, medium, white, blue, common), dim=-1)
        image = image + (mixing @ noise.transpose(0, 1)).reshape(batch, 3, side, side)
        image = _resize(image.clamp(0.0, 1.0), self.size)
        if self.folder is not None:
            image = torch.where(
                _column(behind.photograph) > 0.5, self._photographs(behind.photograph_crop).to(image), image
            )
        return image

    def _photographs(self, crops: Tensor) -> Tensor:
        paths = _image_paths(str(self.folder))
        pictures = []
        for which, top, left, zoom, mirrored in crops.tolist():
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

    def take(self, image: Tensor, front: Occlusion, taken: Exposure) -> Tensor:
        """The photograph of what is to be seen, ``[B, 3, H, W]``; on the CPU one by one, which stays in its caches."""
        if image.device.type != "cpu":
            return self.degrade(self.occlude(image, front, taken.grain_place), taken)
        pictures = []
        for row in range(image.shape[0]):
            one = partial(torch.narrow, dim=0, start=row, length=1)
            single = taken.map(one)
            pictures.append(self.degrade(self.occlude(one(image), front.map(one), single.grain_place), single))
        return torch.cat(pictures)

    def occlude(self, image: Tensor, front: Occlusion, grain_place: Tensor) -> Tensor:
        """Draw ellipses, bars and lines over the picture, and cut off its edges."""
        x, y = self.steps, self.steps[:, None]
        shapes = front.shapes.reshape(-1, OCCLUDERS, 8)
        exponents, sharpness, covers = (_column(shapes[..., k : k + 1]) for k in (5, 6, 7))
        colours = _column(front.colours.reshape(-1, OCCLUDERS, 3))
        for k, (u, v) in _drawn(self.steps, shapes):
            exponent = exponents[:, k]
            total = power(u.abs().clamp_min(1e-4), exponent) + power(v.abs().clamp_min(1e-4), exponent)
            distance = power(total, 1.0 / exponent)
            cover = torch.sigmoid((1.0 - distance) * sharpness[:, k]) * covers[:, k]
            shade = 1.0 - 0.35 * (u * 0.6 + v * 0.8 + distance.square() * 0.5).clamp(-0.8, 1.2)
            texture = self.bank.grain_image(grain_place, self.size)[:, :1] * 0.04
            image = torch.lerp(image, (colours[:, k] * shade + texture).clamp(0.0, 1.0), cover)
        for k in range(LINES):
            p = front.lines[:, 7 * k : 7 * k + 7]
            if _nowhere(p[:, 6]):
                continue
            cosine, sine = p[:, 0:1].cos(), p[:, 0:1].sin()
            across, along = (_plane(self.steps, torch.cat(d, dim=1)) for d in ((sine, -cosine), (cosine, sine)))
            distance = (across - _column(p[:, 1:2]) - _column(p[:, 2:3]) * along.square()).abs()
            cover = torch.sigmoid((_column(p[:, 3:4]) - distance) * (self.size * 0.7)) * _column(p[:, 6:7])
            colour = torch.cat((p[:, 4:5], p[:, 5:6], p[:, 4:5]), dim=1)
            image = torch.lerp(image, _column(colour), cover)
        left, right, below = (_column(front.cut[:, k : k + 1]) for k in range(3))
        if _nowhere(torch.cat((left + 1.0, 1.0 - right, 1.0 - below))):
            return image
        cut = (x < left) | (x > right) | (y > below)
        return torch.where(cut, _column(front.cut[:, 3:4]), image)

    def degrade(self, image: Tensor, taken: Exposure) -> Tensor:
        """Blur, colour cast, contrast, saturation, noise, JPEG and grey; in and out ``[B, 3, H, W]`` in [0, 1]."""
        image = gaussian_blur(image, taken.blur)
        # Saturation, cast, contrast and brightness are one linear map of the colour.
        saturation, contrast = taken.saturation, taken.contrast
        grey = image.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
        mixing = torch.lerp(grey, torch.eye(3, device=image.device), saturation[..., None])
        mixing = mixing * (taken.cast * contrast)[..., None]
        offset = taken.middle * (1.0 - contrast) + taken.brightness
        image = torch.baddbmm(offset[..., None], mixing, image.flatten(2)).reshape(image.shape)
        image = power(image.clamp_min(1e-4), _column(taken.gamma))
        grain = self.bank.grain_image(taken.grain_place, self.size)
        noise = torch.addcmul(grain * _column(taken.chroma_noise), grain[:, :1], _column(taken.luma_noise))
        image = torch.addcmul(image, image.clamp(0.0, 1.0).add_(0.35).sqrt_(), noise).clamp_(0.0, 1.0)
        if _nowhere(taken.jpeg):
            return image
        lossy = self._jpeg(image, taken.jpeg).clamp(0.0, 1.0)
        return torch.where(_column(taken.jpeg) > 0.0, lossy, image)

    def _jpeg(self, image: Tensor, scale: Tensor) -> Tensor:
        """Quantise the 8x8 block DCT of luminance and (at half size) chrominance; scale ``[B, 1]`` as in libjpeg."""
        r, g, b = image.unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = torch.stack((0.564 * (b - luma), 0.713 * (r - luma)), dim=1)
        small = nn.functional.avg_pool2d(chroma, 2, ceil_mode=True, count_include_pad=False)
        luma = self._quantise(luma[:, None], _column(scale) * self.luma)[:, 0]
        small = self._quantise(small, _column(scale) * self.chroma)
        cb, cr = _resize(small, image.shape[-1]).unbind(1)
        r, b = luma + cr / 0.713, luma + cb / 0.564
        return torch.stack((r, (luma - 0.299 * r - 0.114 * b) / 0.587, b), dim=1)

    def _quantise(self, planes: Tensor, table: Tensor) -> Tensor:
        """Round the DCT of each block to multiples of a table ``[B, 1, 1, 64]``."""
        batch, channels, height, width = planes.shape
        down, right = -height % 8, -width % 8
        padded = nn.functional.pad(planes, (0, right, 0, down), mode="replicate")
        rows, columns = (height + down) // 8, (width + right) // 8
        blocks = padded.reshape(batch, channels, rows, 8, columns, 8).transpose(3, 4)
        coefficients = blocks.reshape(batch, channels, rows * columns, 64) @ self.dct.T
        blocks = (torch.round(coefficients / table) * table) @ self.dct
        padded = blocks.reshape(batch, channels, rows, columns, 8, 8).transpose(3, 4)
        return padded.reshape(batch, channels, height + down, width + right)[:, :, :height, :width]


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image by its own ``sigma`` ``[B, 2]`` (x, y) in pixels."""
    radius = max(1, math.ceil(2.5 * float(sigma.max())))
    steps = torch.arange(-radius, radius + 1, device=image.device).abs()
    kernels = torch.exp(-0.5 * (steps / sigma.clamp_min(0.05)[..., None]).square())
    # Each picture's kernel ends at its own radius, whatever the batch.
    kernels = kernels * (steps <= (2.5 * sigma).ceil().clamp_min(1.0)[..., None])
    kernels = kernels / kernels.sum(-1, keepdim=True)
    if _is_plain(image) and not kernels.requires_grad:
        blurred = torch.empty_like(image)
        for picture, filtered, (x, y) in zip(image.numpy(), blurred.numpy(), kernels.numpy()):
            for plane, out in zip(picture, filtered):
                cv2.sepFilter2D(plane, cv2.CV_32F, x, y, dst=out, borderType=cv2.BORDER_REPLICATE)
        return blurred
    channels = image.transpose(0, 1)
    for axis, pad in ((0, (radius, radius, 0, 0)), (1, (0, 0, radius, radius))):
        kernel = kernels[:, axis].reshape(-1, 1, 2 * radius + 1, 1).transpose(2, 3 - axis)
        padded = nn.functional.pad(channels, pad, mode="replicate")
        channels = nn.functional.conv2d(padded, kernel, groups=kernel.shape[0])
    return channels.transpose(0, 1)


def _is_plain(image: Tensor) -> bool:
    """Whether OpenCV can take over, which is faster: on the CPU, with no gradient to keep."""
    return image.device.type == "cpu" and not image.requires_grad


def _nowhere(amount: Tensor) -> bool:
    """Whether no picture on the CPU has something, which then need not be drawn (asking a GPU would stall it)."""
    return amount.device.type == "cpu" and float(amount.max()) <= 0.0


def _plane(steps: Tensor, direction: Tensor) -> Tensor:
    """Images ``[B, 1, S, S]`` of x times the first plus y times the second of two numbers ``[B, 2]``."""
    slopes = direction[:, :, None] * steps
    return (slopes[:, 0, None, :] + slopes[:, 1, :, None])[:, None]


def _drawn(steps: Tensor, shapes: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Of shapes ``[B, K, 8]`` those that some picture has: k, and coordinates ``[B, 1, S, S]`` in the frame of each.

    Parameters are centre x and y, angle, half sizes along u and v, two that are the caller's, and how much it covers.
    """
    x, y, angle, wide, high = shapes[..., :5].unbind(-1)
    cosine, sine = angle.cos(), angle.sin()
    across = torch.stack((cosine / wide, -sine / high), dim=-1)[..., None]
    down = torch.stack((sine / wide, cosine / high), dim=-1)[..., None]
    rows = down * (steps - y[..., None, None])
    columns = across * (steps - x[..., None, None])
    for k in range(shapes.shape[1]):
        if not _nowhere(shapes[:, k, 7]):
            frame = rows[:, k, :, :, None] + columns[:, k, :, None]
            yield k, (frame[:, :1], frame[:, 1:])


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """``base ** exponent`` of images ``[B, ...]`` for positive bases, faster than ``pow`` on the CPU."""
    if _is_plain(base) and not exponent.requires_grad:
        logarithm = torch.from_numpy(cv2.log(base.reshape(1, -1).numpy())).reshape(base.shape)
        return logarithm.mul_(exponent * math.log2(math.e)).exp2_()
    return torch.exp2(torch.log2(base) * exponent)


def _resize(image: Tensor, size: int) -> Tensor:
    """Bilinear, pixel centres at halves."""
    if _is_plain(image):
        resized = image.new_empty(*image.shape[:2], size, size)
        for plane, out in zip(image.flatten(0, 1).numpy(), resized.flatten(0, 1).numpy()):
            cv2.resize(plane, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
        return resized
    return nn.functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)


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
