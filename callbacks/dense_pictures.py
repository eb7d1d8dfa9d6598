"""Pictures of dense faces: surfaces, their errors, and the maps that a method learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.pictures import MARGIN, ContactSheet
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.rendering.drawing import caption_text, colours

MAPS = ("position_map", "pncc", "offsets")
WORST = 0.1
"""Error, over the face size, that is drawn red."""


def scatter(picture: NDArray[np.uint8], points: Tensor, colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw points as squares of two pixels over a picture, the nearest to the viewer last.

    Args:
        picture: ``[T, T, 3]``.
        points: ``[V, 3]`` in the picture's pixels.
        colour: ``[V, 3]``.

    Returns:
        A new picture.
    """
    drawn: NDArray[np.uint8] = picture.copy()
    side = len(picture)
    order = points[:, 2].argsort()
    corner = points[order, :2].floor().long().numpy()
    colour = colour[order.numpy()]
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            drawn[y[inside], x[inside]] = colour[inside]
    return drawn


@dataclass
class DenseFace:
    """A face to draw: image, vertices and maps as in ``FaceBatch`` and ``FacePrediction``, on the CPU."""

    image: Tensor
    predicted: Tensor | None
    true: Tensor | None
    face_size: float
    maps: dict[str, Tensor]
    caption: str


def tiles_of(face: DenseFace, tile: int) -> dict[str, NDArray[np.uint8]]:
    """The pictures of a face, by name: its image, surfaces by depth, their distance, and its maps."""
    scale = tile / face.image.shape[-1]

    def resized(image: Tensor) -> NDArray[np.uint8]:
        pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()
        return np.asarray(Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BILINEAR))

    def on_tile(points: Tensor) -> Tensor:
        moved = points.clone()
        moved[:, :2] = (points[:, :2] + 0.5) * scale - 0.5
        return moved

    def by_depth(points: Tensor) -> NDArray[np.uint8]:
        points = points[points.isfinite().all(dim=1)]
        if len(points) == 0:
            return photo
        low, high = points[:, 2].min(), points[:, 2].max()
        return scatter(photo, on_tile(points), colours((points[:, 2] - low) / (high - low).clamp(min=1e-6)))

    photo = resized(face.image)
    tiles = {"image": photo}
    if face.predicted is not None:
        tiles["predicted depth"] = by_depth(face.predicted)
    if face.true is not None:
        tiles["true depth"] = by_depth(face.true)
    if face.predicted is not None and face.true is not None and face.predicted.shape == face.true.shape:
        # Depth has no origin of its own: what is compared has the same mean.
        moved = face.predicted - face.true
        moved[:, 2] -= moved[:, 2].mean()
        error = (moved.norm(dim=-1) / face.face_size).nan_to_num(nan=1.0)
        tiles[f"error, 0 to {100 * WORST:.0f}%"] = scatter(photo, on_tile(face.true), colours(error / WORST))
    for name, given in face.maps.items():
        value = given.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        low, high = value.amin(dim=(1, 2), keepdim=True), value.amax(dim=(1, 2), keepdim=True)
        tiles[name] = resized((value - low) / (high - low).clamp(min=1e-6))
    return tiles


class DenseSheet(ContactSheet):
    """Draws, for a few faces, the surface by depth, its error, and true and predicted maps, a row per face.

    It draws nothing where neither the method nor the data has surfaces or maps. Errors are distances after moving the
    prediction to the true mean depth, over the face size.

    Args:
        every_n_epochs: Epochs between two sheets.
        num_faces: Faces on a sheet: the first of the split.
    """

    kind = "dense"

    def __init__(self, every_n_epochs: int = 10, num_faces: int = 4) -> None:
        super().__init__(every_n_epochs, num_faces)

    def take(self, batch: FaceBatch, prediction: FacePrediction, most: int) -> list[DenseFace]:
        """Copy surfaces and maps."""
        has = batch["has"]
        faces = []
        for i in range(min(most, len(batch["index"]))):
            valid = prediction.valid is None or bool(prediction.valid[i])
            maps = {key: batch[key][i].float().cpu() for key in MAPS if key in batch and bool(has[key][i])}  # type: ignore[literal-required]
            if valid:
                drawn = {key: image[i].detach().float().cpu() for key, image in prediction.dense.items()}
                maps |= {f"predicted {key}": image for key, image in drawn.items() if image.shape[0] in (1, 3)}
            true = batch["vertices"][i].float().cpu() if "vertices" in batch and bool(has["vertices"][i]) else None
            predicted = (
                prediction.vertices[i].detach().float().cpu() if prediction.vertices is not None and valid else None
            )
            if true is not None and prediction.vertex_ids is not None:
                true = true[prediction.vertex_ids.cpu()]
            if not maps and true is None and predicted is None:
                continue
            size = float(batch["face_size"][i]) if "face_size" in batch and bool(has["face_size"][i]) else 0.0
            size = size or float(batch["image"].shape[-1])
            faces.append(DenseFace(batch["image"][i].float().cpu(), predicted, true, size, maps, batch["sample_id"][i]))
        return faces

    def draw(self, faces: list[DenseFace]) -> Image.Image:
        """A row of tiles per face, with headings."""
        tile, line = 192, 14
        rows = [tiles_of(face, tile) for face in faces]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        size = (len(columns) * (tile + MARGIN) + MARGIN, line + MARGIN + len(rows) * (tile + line + MARGIN))
        sheet = Image.new("RGB", size, (24, 24, 28))
        draw = ImageDraw.Draw(sheet)
        for column, name in enumerate(columns):
            x = MARGIN + column * (tile + MARGIN)
            draw.text((x, 2), name, fill=(210, 210, 210))
            for number, row in enumerate(rows):
                y = line + MARGIN + number * (tile + line + MARGIN)
                if name in row:
                    sheet.paste(Image.fromarray(row[name]), (x, y))
                if column == 0:
                    draw.text(
                        (x, y + tile + 1), caption_text(faces[number].caption, 2 * tile // 6), fill=(170, 170, 170)
                    )
        return sheet
