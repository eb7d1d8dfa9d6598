"""Draw synthetic test faces with what a checkpoint predicts: the picture at the top of the README.

python docs/draw_faces.py runs/quickstart/zhao2016/checkpoints/best.ckpt --out docs/faces.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from callbacks.pictures import contact_sheet, faces_of_batch
from datamodules import SyntheticFaces
from lightning_faces.methods.checkpoint import load_method

COUNT, COLUMNS, TILE = 12, 6, 150


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a method's checkpoint")
    parser.add_argument("--out", type=Path, default=Path("docs/faces.png"))
    options = parser.parse_args()
    method = load_method(options.checkpoint)
    data = SyntheticFaces(image_size=method.spec.image_size or 96, batch_size=COUNT, num_workers=0)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        faces = faces_of_batch(batch, method.predict_faces(batch), COUNT)
    sheet = contact_sheet(faces, tile=TILE, columns=COLUMNS)
    # 128 colours are enough to look at, and a third of the bytes.
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
