"""How many photographs a second one loader process decodes, crops and augments; prints the table of the README.

The photographs are 450 x 450 JPEGs with .mat files in the layout of 300W-LP, written to a temporary folder: pictures of
noise at several scales, which compress to about the size of real ones. With ``LIGHTNING_FACES_DATA`` the real files of
AFLW2000-3D are measured as well.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from datamodules.aflw2000 import AFLW20003D
from datamodules.augment import MildAugmentation, Pix2faceAugmentation, PRNetAugmentation, ZhaoAugmentation
from datamodules.base import FaceDataset
from datamodules.components.transform import Augmentation
from datamodules.w300lp import W300LP

SIDE, COUNT, IMAGE_SIZE = 450, 48, 256
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "mild": MildAugmentation(),
    "Zhao": ZhaoAugmentation(),
    "PRNet": PRNetAugmentation(),
    "pix2face": Pix2faceAugmentation(),
}


def write_photographs(folder: Path) -> None:
    """``300W_LP/AFW/X.{jpg,mat}`` and ``landmarks/AFW/X_pts.mat``."""
    rng = np.random.default_rng(0)
    (folder / "AFW").mkdir(parents=True)
    (folder / "landmarks" / "AFW").mkdir(parents=True)
    for number in range(COUNT):
        picture = np.zeros((SIDE, SIDE, 3))
        for cells, amount in ((6, 90), (30, 40), (150, 25), (450, 6)):
            noise = rng.normal(0, amount, size=(cells, cells, 3))
            picture += cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        stem = f"AFW_{number:04d}_0"
        Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(folder / "AFW" / f"{stem}.jpg", quality=90)
        pose = np.array([[0.1, 0.5, 0.0, 225, 225, -80, 1.3e-3]], dtype=np.float32)
        parameters = {"Shape_Para": np.zeros((199, 1)), "Exp_Para": np.zeros((29, 1)), "pt2d": np.zeros((2, 68))}
        savemat(folder / "AFW" / f"{stem}.mat", {"Pose_Para": pose, **parameters})
        points = rng.uniform(120, 330, size=(68, 2))
        savemat(folder / "landmarks" / "AFW" / f"{stem}_pts.mat", {"pts_2d": points, "pts_3d": points})


def rate(dataset: FaceDataset, augmentation: Augmentation | None) -> float:
    """Samples a second of processor time of this one process, which other work on the machine does not change."""
    dataset.image_size, dataset.margin, dataset.augmentation = IMAGE_SIZE, 1.3, augmentation
    for draw in range(COUNT):  # what is imported with the first occluder is not measured
        dataset.__getitems__([(0, draw)])
    start, done = time.process_time(), 0
    for draw in range(1, 5):
        for index in range(min(COUNT, len(dataset))):
            dataset.__getitems__([(index, draw)])
            done += 1
    return done / (time.process_time() - start)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name) / "300W_LP")
        size = sum(path.stat().st_size for path in Path(name).rglob("*.jpg")) / COUNT / 1024
        module = W300LP(root=name, subsets=["AFW"], val_fraction=0.0)
        sets = {f"300W-LP layout ({size:.0f} kB)": module.make_dataset("train", module.available_targets)}
        if os.environ.get("LIGHTNING_FACES_DATA"):
            test = AFLW20003D()
            sets["AFLW2000-3D"] = test.make_dataset("test", test.available_targets)
        print(f"samples per second and core at {IMAGE_SIZE} x {IMAGE_SIZE}, decoded, cropped and augmented")
        for title, dataset in sets.items():
            assert dataset is not None
            rates = "  ".join(f"{key} {rate(dataset, value):.0f}" for key, value in AUGMENTATIONS.items())
            print(f"{title}: {rates}")


if __name__ == "__main__":
    main()
