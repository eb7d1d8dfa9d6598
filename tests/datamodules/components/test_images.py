"""Photographs of all kinds become 8-bit RGB, and what is no photograph is named."""

from __future__ import annotations

import os
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.components.images import read_image
from lightning_faces.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(12, 20, 3), dtype=np.uint8)


def test_rgb_is_unchanged_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "Gesicht nº 1 – 顔.png"
    Image.fromarray(PIXELS).save(path)
    assert np.array_equal(read_image(path), PIXELS)


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    deep = grey.astype(np.uint16) * 257
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"deep.{suffix}"), np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 1], np.where(grey > 127, 255, 0))


def test_cmyk_is_converted_not_inverted(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - (200, 30, 30)).max() < 12


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    layers = np.dstack((PIXELS, np.full(PIXELS.shape[:2], 255, dtype=np.uint8)))
    layers[:, 10:, 3] = 0
    Image.fromarray(layers).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert np.array_equal(image[:, :10], PIXELS[:, :10])
    assert not image[:, 10:].any()
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=0)
    transparent = np.asarray(palette) == 0
    assert transparent.any()
    assert not read_image(tmp_path / "palette.png")[transparent].any()


def test_exif_orientation_only_where_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), PIXELS)
    assert np.array_equal(read_image(tmp_path / "turned.png", orient=True), np.rot90(PIXELS, k=-1))


def test_sizes_from_one_pixel_to_sixty_four_million(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").tolist() == [[[1, 2, 3]]]
    Image.new("L", (8000, 8000), 7).save(tmp_path / "large.png", compress_level=1)
    assert read_image(tmp_path / "large.png").shape == (8000, 8000, 3)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png", compress_level=1)
    with pytest.raises(DataError, match=r"bomb\.png is too large"):
        read_image(tmp_path / "bomb.png")


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(PIXELS.repeat(20, axis=0).repeat(20, axis=1)).save(whole, quality=90)
    data = whole.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("cut", "empty", "text", "folder", "absent"):
        with pytest.raises(DataError, match=rf"{name}\.jpg"):
            read_image(tmp_path / f"{name}.jpg")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "float.tif")
    whole.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # root may read everything, nobody may not
        with pytest.raises(DataError, match=r"whole\.jpg may not be read: change its permissions"):
            read_image(whole)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_damaged_bytes_give_an_image_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for suffix in ("png", "jpg", "tif", "bmp"):
        Image.fromarray(PIXELS).save(tmp_path / f"source.{suffix}")
        source = np.frombuffer((tmp_path / f"source.{suffix}").read_bytes(), dtype=np.uint8)
        for _ in range(60):
            damaged = source.copy()
            damaged[rng.integers(0, len(source), size=8)] = rng.integers(0, 256, size=8)
            path.write_bytes(damaged.tobytes())
            try:
                image = read_image(path)
            except DataError as error:
                assert "damaged" in str(error)
            else:
                assert image.dtype == np.uint8
                assert image.shape[2] == 3


def test_a_size_that_the_file_cannot_hold_is_refused_before_decoding(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "claims.bmp")
    content = bytearray((tmp_path / "claims.bmp").read_bytes())
    content[18:26] = struct.pack("<ii", 9000, 9000)
    (tmp_path / "claims.bmp").write_bytes(content)
    start = time.process_time()
    with pytest.raises(DataError, match=r"claims\.bmp is not a whole image \(it claims 9000 x 9000 pixels in"):
        read_image(tmp_path / "claims.bmp")
    assert time.process_time() - start < 1


def test_larger_images_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("L", (12_000, 9_000), 3).save(tmp_path / "large.png", compress_level=1)
    with pytest.raises(DataError, match=r"large\.png is too large: it has 12000 x 9000 pixels, .* 100 million"):
        read_image(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "large.png", max_pixels=10**9)[8_999, 11_999].tolist() == [3, 3, 3]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_other_formats_are_not_tried(tmp_path: Path) -> None:
    """Pillow would hand an EPS file to Ghostscript, whatever it is called."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.jpg is not a whole image"):
        read_image(tmp_path / "a.jpg")
    Image.fromarray(PIXELS).save(tmp_path / "b.ppm")
    (tmp_path / "b.ppm").rename(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is not a whole image"):
        read_image(tmp_path / "b.png")


def test_strips_are_the_whole(tmp_path: Path) -> None:
    """Images with more rows than are converted together."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(1300, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    over = Image.alpha_composite(Image.new("RGBA", (30, 1300), (0, 0, 0, 255)), Image.fromarray(pixels)).convert("RGB")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(over))
