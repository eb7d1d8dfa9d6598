"""Decoding photographs of any kind to 8-bit RGB, with errors that name the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lightning_faces.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are not images, or not whole ones."""


def read_image(path: Path, orient: bool = False) -> NDArray[np.uint8]:
    """Decode an image file.

    Greyscale is repeated over the channels, 16-bit values lose their low byte, CMYK is converted, and transparent
    pixels are laid over black.

    Args:
        path: JPEG, PNG, BMP, TIFF or WebP.
        orient: Whether to apply the EXIF orientation. Labels refer to the stored pixels, so it is for photographs
            without labels.

    Returns:
        Uint8 RGB ``[H, W, 3]``.

    Raises:
        DataError: If the file cannot be read, is no image, or is cut off.
    """
    try:
        with Image.open(path) as image:
            if orient:
                # A copy of the same size where there is no orientation, so only where there is one.
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"Image {path} does not exist.") from None
    except PermissionError:
        raise DataError(f"Image {path} may not be read: change its permissions.") from None
    except _BROKEN as error:
        reason = "is too large" if isinstance(error, Image.DecompressionBombError) else "is not a whole image"
        raise DataError(f"{path} {reason} ({error}): replace or remove it.") from error


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point values of unknown range: save it with 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it to white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"{path} holds values of more than 16 bits: save it with 8 or 16 bits.")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, layers)
    return np.asarray(image.convert("RGB"))
