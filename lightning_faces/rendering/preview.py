"""``lightning-faces preview``: a contact sheet of the synthetic faces that a configuration gives, targets on top."""

from __future__ import annotations

import argparse
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.records import write_atomic
from lightning_faces.rendering.synthesis import FaceSynthesizer, SynthesisOptions

ZOOM = 2
SEEN, HIDDEN = (0, 255, 0), (255, 60, 60)
MAPS = ("pncc", "offsets", "face_mask", "normals", "position_map", "shading", "geometry_mask")


def read_options(path: str | None) -> SynthesisOptions:
    """Synthesis options from a YAML file: a mapping of option names, alone or as ``data.init_args.synthesis``.

    Raises:
        ConfigurationError: If the file cannot be read or names an option that does not exist.
    """
    if path is None:
        return SynthesisOptions()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Cannot read the configuration {path}: {' '.join(str(error).split())}.") from error
    for key in ("data", "init_args", "synthesis"):
        if isinstance(values, dict) and key in values:
            values = values[key] or {}
    if isinstance(values, dict) and "class_path" in values:
        values = values.get("init_args", {})
    if values is None:
        values = {}
    known = [field.name for field in fields(SynthesisOptions)]
    unknown = sorted(set(values) - set(known)) if isinstance(values, dict) else [str(values)]
    if unknown:
        raise ConfigurationError(
            f"{path} sets {', '.join(map(str, unknown))}, which synthetic faces do not have: choose from "
            f"{', '.join(known)}."
        )
    return SynthesisOptions(**values)


def draw_points(image: NDArray[np.uint8], points: Tensor, seen: Tensor, zoom: int) -> None:
    """Mark landmarks ``[L, >=2]`` (pixels of the image before zooming) in place, hidden ones in red."""
    centres = ((points[:, :2] + 0.5) * zoom - 0.5).round().long().tolist()
    height, width = image.shape[:2]
    for (x, y), visible in zip(centres, seen.tolist()):
        if 0 <= x < width - 1 and 0 <= y < height - 1:
            image[y : y + 2, x : x + 2] = SEEN if visible else HIDDEN


def contact_sheet(tiles: list[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Tiles of one size ``[H, W, 3]`` in rows of ``columns``; empty places are black."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + height, x : x + width] = tile
    return sheet


def _picture(image: Tensor, size: int) -> NDArray[np.uint8]:
    pixels = (image.expand(3, -1, -1).clamp(0.0, 1.0) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    zoomed = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
    return np.array(zoomed)


def _map_tiles(rendered: dict[str, Tensor], index: int, size: int, side: int) -> list[NDArray[np.uint8]]:
    pncc = rendered["pncc"][index]
    low, high = pncc.flatten(1).amin(1), pncc.flatten(1).amax(1)
    views: dict[str, Tensor] = {
        "pncc": (pncc - low[:, None, None]) / (high - low)[:, None, None] * rendered["face_mask"][index],
        "offsets": rendered["offsets"][index] / 50.0 + 0.5,
        "face_mask": rendered["face_mask"][index],
        "normals": rendered["normals"][index] * 0.5 + 0.5,
        "position_map": rendered["position_map"][index] / side,
        "shading": rendered["shading"][index],
        "geometry_mask": rendered["geometry_mask"][index] * rendered["image"][index],
    }
    return [_picture(views[key], size) for key in MAPS]


def preview(
    options: SynthesisOptions, count: int, size: int, face_model: str = "embedded", maps: bool = False, seed: int = 0
) -> NDArray[np.uint8]:
    """Draw a sheet.

    Args:
        options: What the faces look like.
        count: Number of faces.
        size: Side of a rendered picture in pixels (drawn twice as large).
        face_model: Name or path of a face model.
        maps: Also show each face's target maps, one face per row.
        seed: Seed of the first face.

    Returns:
        RGB ``[H, W, 3]``.
    """
    synthesizer = FaceSynthesizer(MorphableModel.load(face_model), size, options, position_map_size=size)
    tiles: list[NDArray[np.uint8]] = []
    with torch.no_grad():
        for index in range(count):
            rendered: dict[str, Any] = synthesizer.render(synthesizer.sample([seed + index]), MAPS if maps else ())
            tile = _picture(rendered["image"][0], ZOOM * size)
            tiles.append(tile.copy())
            draw_points(tile, rendered["landmarks"][0], rendered["visible"][0], ZOOM)
            tiles.append(tile)
            if maps:
                tiles += _map_tiles(rendered, 0, ZOOM * size, size)
    return contact_sheet(tiles, 2 + len(MAPS) if maps else 8)


def main_preview(args: list[str]) -> int:
    """``lightning-faces preview``: write a contact sheet; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lightning-faces preview", description="Draw synthetic faces, plain and with landmarks (hidden ones red)."
    )
    parser.add_argument("--config", help="YAML of synthesis options, or of an experiment with data.init_args.synthesis")
    parser.add_argument("--count", type=int, default=16, help="number of faces")
    parser.add_argument("--size", type=int, default=136, help="side of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first face")
    parser.add_argument("--face-model", default="embedded", help="name or path of a face model")
    parser.add_argument("--maps", action="store_true", help="show the target maps too, one face per row")
    parser.add_argument("--out", default="sheet.png", help="picture to write")
    given = parser.parse_args(args)
    if given.count < 1:
        raise ConfigurationError(f"--count is {given.count}; it must be at least 1.")
    sheet = preview(read_options(given.config), given.count, given.size, given.face_model, given.maps, given.seed)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    write_atomic(Path(given.out), buffer.getvalue())
    print(f"{given.out}: {given.count} faces")
    return 0
