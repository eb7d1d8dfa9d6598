"""Draw the picture of docs/prediction.md: synthetic faces in one photograph, and what is predicted on it.

    python docs/draw_prediction.py [CHECKPOINT]

Without a checkpoint, the weights of the installation. Writes docs/prediction.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import lightning_faces
from datamodules import SyntheticFaces
from lightning_faces.predict.meshes import FaceMeshes
from lightning_faces.predict.outputs import PredictedPhotograph
from lightning_faces.predict.values import FaceCompleter

FACES, SIZE, SEED = 3, 260, 21


def photograph() -> NDArray[np.uint8]:
    """Synthetic test faces side by side, uint8 RGB."""
    data = SyntheticFaces(test_size=FACES, image_size=SIZE, num_workers=0, batch_size=FACES, margin=1.5, seed=SEED)
    data.setup("test")
    images = next(iter(data.test_dataloader()))["image"]
    return (images.permute(2, 0, 3, 1).reshape(SIZE, FACES * SIZE, 3) * 255).byte().numpy()


def main() -> None:
    """Draw the picture."""
    predictor = lightning_faces.load(sys.argv[1] if len(sys.argv) > 1 else None)
    image = photograph()
    completer = FaceCompleter(predictor.method)
    faces = [completer.complete(face) for face in predictor.find([image], [None])[0]]
    pictures = PredictedPhotograph(image, faces, FaceMeshes(completer.model)).pictures
    rows = [pictures.landmarks(), pictures.mesh(), pictures.depth()]
    sheet = np.concatenate([np.asarray(row) for row in rows])
    # 128 colours are enough to look at, and a third of the bytes.
    picture = Image.fromarray(sheet).convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    picture.save(Path(__file__).with_name("prediction.png"), optimize=True)


if __name__ == "__main__":
    main()
