"""A contact sheet of the synthetic faces that a configuration gives, targets on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
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
from lightning_faces.rendering.synthesis import FaceSynthesizer, SynthesisOptions

ZOOM = 2
SEEN, HIDDEN = (0, 255, 0), (255, 60, 60)
CONFIG_SECTIONS = frozenset({"trainer", "model", "seed_everything", "experiment", "name", "ckpt_path"})
"""Keys of configurations that say nothing of faces."""
MAPS = ("pncc", "offsets", "face_mask", "normals", "position_map")


@dataclass(frozen=True)
class PreviewOptions:
    """What decides how the faces of a configuration look; names and defaults are those of ``SyntheticFaces``.

    Attributes:
        synthesis: Looks and poses.
        face_model: Name or path of a face model.
        image_size: Side of the crops that training sees, pixels.
        canvas: Side of the rendered pictures, which crops are cut from, over ``image_size``.
    """

    synthesis: SynthesisOptions = field(default_factory=SynthesisOptions)
    face_model: str = "embedded"
    image_size: int = 96
    canvas: float = 1.5

    @property
    def size(self) -> int:
        """Side of the rendered pictures in pixels."""
        return round(self.canvas * self.image_size)


def read_config(paths: Sequence[str]) -> PreviewOptions:
    """What configurations, the later over the earlier, say of synthetic faces; other sections are not looked at.

    Args:
        paths: YAML files as ``fit`` takes them, whose ``data`` is SyntheticFaces; or mappings of synthesis options.

    Raises:
        ConfigurationError: If a file cannot be read, or no file has such data, or a value cannot be used.
    """
    data: dict[str, Any] = {}
    found = ""
    for path in paths:
        part = _read_data(path)
        if part is not None:
            found = path
            synthesis = {**data.get("synthesis", {}), **_init_args(part.get("synthesis"), path)}
            data = {**data, **part, "synthesis": synthesis}
    if not found:
        raise ConfigurationError(
            f"{' and '.join(paths)} names no data: add a configuration whose data is SyntheticFaces, such as "
            "configs/data/synthetic_64.yaml."
        )
    synthesis, face_model = data["synthesis"], data.get("face_model", PreviewOptions.face_model)
    types = {option.name: option.type for option in fields(SynthesisOptions)}
    unknown = sorted(str(key) for key in set(synthesis) - set(types))
    if unknown:
        raise ConfigurationError(
            f"{found} sets {', '.join(unknown)}, which synthetic faces do not have: choose from {', '.join(types)}."
        )
    sizes = {name: data.get(name, getattr(PreviewOptions, name)) for name in ("image_size", "canvas")}
    for name, value in sizes.items():
        kinds, wanted = (int, "a whole number") if name == "image_size" else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kinds) or not 1 <= value < math.inf:
            raise ConfigurationError(f"{found} sets {name} to {value!r}; it must be {wanted} of at least 1.")
    if not isinstance(face_model, str):
        raise ConfigurationError(f"{found} sets face_model to {face_model!r}; it must be a name or a path.")
    options = SynthesisOptions(
        **{key: _number(value) if types[key] == "float" else value for key, value in synthesis.items()}
    )
    return PreviewOptions(options, face_model, **sizes)


def _read_data(path: str) -> dict[str, Any] | None:
    """``data.init_args`` of a file; None where it has no ``data`` but other sections of a configuration."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Cannot read the configuration {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} holds {values!r}; a configuration is a mapping of names to values.")
    if "data" not in values:
        return None if values.keys() & CONFIG_SECTIONS else {"synthesis": values}
    data = values["data"]
    name = data if isinstance(data, str) else data.get("class_path") if isinstance(data, dict) else None
    if name is not None and str(name).rsplit(".", 1)[-1] != "SyntheticFaces":
        raise ConfigurationError(
            f"The data of {path} is {name}, but preview draws SyntheticFaces: give a configuration of these."
        )
    return {} if isinstance(data, str) else _init_args(data, path)


def _init_args(values: object, path: str) -> dict[str, Any]:
    """Arguments written as a mapping, or as one with ``class_path`` and ``init_args``."""
    if isinstance(values, dict) and values.keys() & {"class_path", "init_args"}:
        values = values.get("init_args")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} has {values!r} in the place of options: write them as a mapping.")
    return values


def _number(value: Any) -> Any:
    """A number that YAML 1.1 takes for text, such as 1e-3, as the command line reads it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def draw_points(image: NDArray[np.uint8], points: Tensor, seen: Tensor, zoom: int) -> None:
    """Mark landmarks ``[L, >=2]`` (pixels of the image before zooming) in place, hidden ones in red."""
    # A mark is 2 by 2 pixels; the first of them lies half a pixel before the point.
    corners = ((points[:, :2] + 0.5) * zoom - 1.0).round().long().tolist()
    height, width = image.shape[:2]
    for (x, y), visible in zip(corners, seen.tolist()):
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
    return contact_sheet(tiles, 2 + len(MAPS) if maps else min(8, len(tiles)))
