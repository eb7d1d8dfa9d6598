"""Decoding photographs of any kind to 8-bit RGB, with errors that name the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lightning_faces.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
"""What is looked for in a file, whatever its name; Pillow's other formats are never tried (some start programs)."""
MAX_PIXELS = 100_000_000
PIXELS_PER_BYTE = 10_000
"""No photograph is compressed as far; a damaged header may claim any size."""
SMALL = 1_000_000
"""Pixels that any file may claim."""
STRIP = 512
"""Rows that are converted together, so that an image is not in memory several times over."""
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError,
    NotImplementedError, RuntimeError, MemoryError, ZeroDivisionError, struct.error,
)  # fmt: skip
"""What Pillow raises for files that are not images, or not whole ones."""


def read_image(path: Path, orient: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file.

    Greyscale is repeated over the channels, 16-bit values lose their low byte, CMYK is converted, and transparent
    pixels are laid over black.

    Args:
        path: JPEG, PNG, BMP, TIFF, WebP or GIF.
        orient: Whether to apply the EXIF orientation. Labels refer to the stored pixels, so it is for photographs
            without labels.
        max_pixels: An image of more is refused before it is decoded.

    Returns:
        Uint8 RGB ``[H, W, 3]``.

    Raises:
        DataError: If the file cannot be read, is no image, is cut off or is too large.
    """
    try:
        with _own_limit(), Image.open(path, formats=FORMATS) as image:
            _check_size(image, path, max_pixels)
            _check_claim(image, path)
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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a whole image ({reason}): replace or remove it.") from error


def read_opened(image: Image.Image, orient: bool = True, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of an image that the caller opened or made, as :func:`read_image` gives those of a file.

    Args:
        image: It stays as it is.
        orient: Whether to apply the EXIF orientation.
        max_pixels: An image of more is refused before it is decoded.

    Returns:
        Uint8 RGB ``[H, W, 3]``.

    Raises:
        DataError: If it cannot be decoded or is too large.

    Example:
        >>> read_opened(Image.new("CMYK", (2, 1), (255, 0, 0, 0))).tolist()
        [[[0, 255, 255], [0, 255, 255]]]
    """
    name = Path(getattr(image, "filename", "") or "The image")
    _check_size(image, name, max_pixels)
    try:
        # Not in place: the image is the caller's.
        return _to_rgb(ImageOps.exif_transpose(image) if orient else image, name)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{name} is not a whole image ({' '.join(str(error).split())}): open another one.") from error


@contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow warns of large images, and refuses larger ones, whatever the limit here is."""
    Image.init()
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _check_size(image: Image.Image, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{path} is too large: it has {width} x {height} pixels, and at most {max_pixels / 1e6:g} million are "
            "read. Make it smaller, or set data option max_megapixels (of ImageFolder and Table)."
        )


def _check_claim(image: Image.Image, path: Path) -> None:
    (width, height), size = image.size, path.stat().st_size
    if width * height > SMALL + PIXELS_PER_BYTE * size:
        raise DataError(
            f"{path} is not a whole image (it claims {width} x {height} pixels in {size} bytes): replace or remove it."
        )


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point values of unknown range: save it with 8 or 16 bits.")
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        pixels[top : top + STRIP] = _strip_to_rgb(strip, path)
    return pixels


def _strip_to_rgb(strip: Image.Image, path: Path) -> NDArray[np.uint8]:
    if strip.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it to white
        values = np.asarray(strip).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"{path} holds values of more than 16 bits: save it with 8 or 16 bits.")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if strip.has_transparency_data:
        layers = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), layers)
    return np.asarray(strip.convert("RGB"))
