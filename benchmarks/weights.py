"""Train the weights in the box again, score them, and write their files.

    python benchmarks/weights.py

Trains configs/experiment/weights.yaml into runs/weights/, scores it on its synthetic test faces and, where
LIGHTNING_FACES_DATA holds AFLW2000-3D, on those photographs, and writes runs/weights/faces.json and .safetensors, whose
16-bit numbers it scores too. Prints the numbers of the model card, lightning_faces/weights/faces.md. A run that was
interrupted goes on.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from experiment import evaluations, print_values, score, train
from timing import median_seconds

from lightning_faces.predict.weights import load_weights, save_weights

CONFIG = "configs/experiment/weights.yaml"
RUN = Path("runs/weights/faces-seed1")
METRICS = (
    "nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "nme_3d_mean", "yaw_deg", "pitch_deg", "roll_deg",
    "visibility_error", "geometry_mm", "vertex_mm", "action_error",
)  # fmt: skip


def main() -> None:
    os.chdir(Path(__file__).resolve().parent.parent)
    checkpoint = train(RUN, CONFIG)
    score(RUN, CONFIG, checkpoint)
    written = save_weights(checkpoint, RUN.parent / "faces.json")
    for prediction in ("fusion", "landmarks", "coefficients"):
        for (dataset, _), runs in sorted(evaluations(RUN.parent, prediction).items()):
            print(f"\n{dataset}, {prediction}, {runs[1][0].metrics['nme'].samples} faces")
            print_values(METRICS, runs)
    torch.set_num_threads(1)
    method = load_weights(written).method
    image = torch.rand((1, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rate = 1 / median_seconds(lambda: method.predict_faces({"image": image}), 100)  # type: ignore[arg-type,typeddict-item]
    size = written.with_suffix(".safetensors").stat().st_size / 1e6
    print(f"\n{size:.1f} MB; {rate:.0f} faces a second, one at a time on one core, mesh and all")


if __name__ == "__main__":
    main()
