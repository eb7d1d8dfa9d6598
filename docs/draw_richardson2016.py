"""Draw the figure of methods/richardson2016.md: pictures, passes, refinement and errors.

python docs/draw_richardson2016.py runs/richardson2016/default-seed1/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from callbacks.dense_pictures import colours
from datamodules import SyntheticFaces
from lightning_faces.geometry import Camera, apply_similarity, similarity_transform
from lightning_faces.geometry.camera import transform_pose
from lightning_faces.methods import Richardson2016
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.morphable.fit.result import shapes_of
from lightning_faces.refine import shape_from_shading
from lightning_faces.refine.shape_from_shading import normals_of_depth
from lightning_faces.rendering.geometry_view import geometry_view
from lightning_faces.rendering.renderer import rasterize_image
from lightning_faces.rendering.synthesis import SynthesisOptions

CLEAR = SynthesisOptions(occluders=False, degradation=False)
"""Pictures of people, who may have hair and glasses, without what a bad camera adds."""
SIZE, COUNT, FULL_RED = 200, 4, 10.0
"""Pixels of a picture, faces, and the error in mm that is drawn dark red."""


def grey(shading: Tensor) -> NDArray[np.uint8]:
    """Shading ``[1, S, S]`` as RGB."""
    pixels: NDArray[np.uint8] = (shading[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return np.repeat(pixels[..., None], 3, axis=2)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint of Richardson2016")
    parser.add_argument("--out", type=Path, default=Path("docs/methods/richardson2016.png"))
    options = parser.parse_args()
    method = load_method(options.checkpoint)
    assert isinstance(method, Richardson2016)
    model, small = method.face_model, method.image_size
    data = SyntheticFaces(image_size=SIZE, batch_size=40, num_workers=0, seed=3, synthesis=CLEAR)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    # Heads that are turned by less than 45 degrees, in light that the picture shows well.
    rows = ((batch["yaw"].abs() < 45) & (batch["image"].mean(dim=(1, 2, 3)) > 0.3)).nonzero()[:COUNT, 0]
    image, pose, true = batch["image"][rows], batch["pose"][rows], shapes_of(model, batch["coefficients"][rows])
    ratio = small / SIZE
    shrink = torch.tensor([[ratio, 0.0, (ratio - 1) / 2], [0.0, ratio, (ratio - 1) / 2]]).expand(len(rows), 2, 3)
    seen = nn.functional.interpolate(image, size=(small, small), mode="area")
    with torch.no_grad():
        passes = method.correct(seen, transform_pose(shrink, pose))
    columns = {"picture": [(x.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for x in image]}
    for name, coefficients in zip(("mean face", "pass 1", "pass 2", "pass 3"), (torch.zeros_like(passes[0]), *passes)):
        columns[name] = [grey(x) for x in geometry_view(model, coefficients, pose, SIZE)[1]]
    found = shapes_of(model, passes[-1])
    faces = model.faces if model.uv_face_ids is None else model.faces[model.uv_face_ids]
    projected = Camera.from_pose(pose).project(found)
    raster = rasterize_image(projected, faces, SIZE, cull_backfaces=True)
    depth = raster.to_image(raster.interpolate(projected[..., 2:], faces), 0.0)
    mask = raster.to_image(torch.ones(len(raster.face), 1), 0.0) > 0.5
    refined = shape_from_shading(image, depth, mask)
    columns["refined"] = [grey(x[2:]) for x in normals_of_depth(refined.depth, mask)]
    errors = (apply_similarity(found, *similarity_transform(found, true)) - true).norm(dim=2, keepdim=True)
    painted = raster.to_image(raster.interpolate(errors, faces), -1.0)
    columns[f"error, 0 to {FULL_RED:g} mm"] = [
        np.where((x[0] < 0).numpy()[..., None], 0, colours(x[0] / FULL_RED)).astype(np.uint8) for x in painted
    ]
    tile, line = 150, 14
    sheet = Image.new("RGB", (tile * len(columns), line + tile * len(rows)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(columns.items()):
        draw.text((column * tile + 3, 1), name, fill=(210, 210, 210))
        for row, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture).resize((tile, tile)), (column * tile, line + row * tile))
    for row, error in enumerate(errors[..., 0]):
        place = ((len(columns) - 1) * tile + 3, line + (row + 1) * tile - 13)
        draw.text(place, f"mean {error.mean():.1f} mm", fill=(210, 210, 210))
    # 256 colours are enough to look at, and a third of the bytes.
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
