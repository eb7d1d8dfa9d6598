"""Speed of Zhao 2016 on one CPU thread: image to 3D landmarks one by one, and depth from 2D landmarks in batches.

The paper reports more than 30 and more than 1,000 faces a second on an i7. Medians of CPU time; the configuration is
that of a checkpoint, so that speed and accuracy are of one network.

    python benchmarks/zhao2016.py runs/quickstart/zhao2016/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timing import median_seconds

from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.methods import Zhao2016

BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of Zhao2016")
    torch.set_num_threads(1)
    method = Zhao2016.load_from_checkpoint(parser.parse_args().checkpoint, map_location="cpu", weights_only=True).eval()
    image = torch.rand(1, 3, method.image_size, method.image_size)
    points = torch.randn(BATCH, num_landmarks(method.landmark_scheme), 2)
    with torch.inference_mode():
        whole = median_seconds(lambda: method(image), 200)
        depth = median_seconds(lambda: method.depth_head.standard_depth(points), 50)
    print(f"image of {method.image_size} px to 3D landmarks, batch 1: {1 / whole:,.0f} faces/s (paper: more than 30)")
    print(f"depth from 2D landmarks, batch {BATCH}: {BATCH / depth:,.0f} faces/s (paper: more than 1,000)")


if __name__ == "__main__":
    main()
