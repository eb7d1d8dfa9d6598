"""Do the landmarks mean the same on synthetic faces as on photographs? Mean signed offset of each landmark.

A method that was trained on synthetic faces is run on AFLW2000-3D (`LIGHTNING_FACES_DATA`). Random errors average out
over the photographs; what stays is bias, and a landmark that is defined at another point of the face shows as an offset
of its own. Offsets are in percent of the face size, x to the image right and y down, over near-frontal faces
(|yaw| <= 30 degrees), in which left and right are what they seem. Pitch is that of the mean face fitted to predicted
and true landmarks: its slope and offset over faces with |yaw| <= 15 degrees are the most sensitive sign of a network
that reads the pose of photographs otherwise than that of renders.

    python benchmarks/landmark_offsets.py runs/quickstart/zhao2016/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datamodules import AFLW20003D
from lightning_faces.evaluation.bootstrap import interval
from lightning_faces.geometry import matrix_to_euler, similarity_transform
from lightning_faces.geometry.landmarks import REGIONS_68
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.morphable import MorphableModel

FLIP = torch.tensor([1.0, -1.0, 1.0])
"""Between the image frame and a frame with y up."""


def pitch(points: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Pitch ``[N]`` in degrees of the mean face's landmarks ``[68, 3]`` fitted to ``[N, 68, 3]`` by a similarity."""
    rotation = similarity_transform(mean.expand(len(points), -1, -1), points * FLIP)[1]
    return matrix_to_euler(rotation)[:, 0].rad2deg()


def offsets(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signed offsets ``[N, 68, 2]`` over the face size, yaw ``[N]`` and pitch (predicted, true) ``[N, 2]``, degrees."""
    method = load_method(checkpoint, map_location="cpu").eval()
    data = AFLW20003D(image_size=method.spec.image_size or 112, num_workers=0)
    data.setup("test")
    model = MorphableModel.load("embedded")
    mean = model.landmarks(model.mean[None])[0]
    rows, yaw, pitches = [], [], []
    with torch.inference_mode():
        for batch in data.test_dataloader():
            points = method.predict_faces(batch).landmarks
            rows.append((points - batch["landmarks"])[..., :2] / batch["face_size"][:, None, None])
            yaw.append(batch["yaw"])
            pitches.append(torch.stack((pitch(points, mean), pitch(batch["landmarks"], mean)), dim=1))
    return torch.cat(rows), torch.cat(yaw), torch.cat(pitches)


def bootstrap_slopes(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Slopes and offsets ``[1000]`` of lines through samples drawn again."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(x), (1000, len(x)))
    lines = np.array([np.polyfit(x[rows], y[rows], 1) for rows in drawn])
    return lines[:, 0], lines[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of a method with 68 landmarks in 3D")
    error, yaw, pitches = offsets(parser.parse_args().checkpoint)
    frontal = yaw.abs() <= 30
    error = error[frontal] * 100
    mean, deviation = error.mean(dim=0), error.std(dim=0) / len(error) ** 0.5
    table = Table(title=f"mean signed offset over {len(error)} photographs, % of the face size")
    for heading in ("region", "x", "y", "largest: landmark", "x", "y", "standard error"):
        table.add_column(heading, justify="left" if heading == "region" else "right")
    for region, indices in REGIONS_68.items():
        part = mean[list(indices)]
        worst = list(indices)[int(part.norm(dim=-1).argmax())]
        numbers = [*part.mean(dim=0).tolist(), worst, *mean[worst].tolist(), float(deviation[worst].norm())]
        table.add_row(region, *(f"{n:+.2f}" if isinstance(n, float) else str(n) for n in numbers))
    Console().print(table)
    print(f"mean length of the 68 offsets: {float(mean.norm(dim=-1).mean()):.2f} %")
    predicted, true = pitches[frontal].mean(dim=0).tolist()
    print(f"mean pitch: {predicted:+.1f} degrees predicted, {true:+.1f} in the labels")
    found, labelled = pitches[yaw.abs() <= 15].T.numpy()
    slope, offset = np.polyfit(labelled, found, 1)
    slopes, offsets_of = (interval(values) for values in bootstrap_slopes(labelled, found))
    print(
        f"|yaw| <= 15, {len(found)} photographs: pitch = {slope:.2f} [{slopes[0]:.2f}, {slopes[1]:.2f}] * label "
        f"{offset:+.1f} [{offsets_of[0]:+.1f}, {offsets_of[1]:+.1f}] degrees"
    )


if __name__ == "__main__":
    main()
