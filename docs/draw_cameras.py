"""Draw the figure of cameras.md: one face through three cameras.

python docs/draw_cameras.py [--out docs/cameras.png]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_faces.files import write_atomic
from lightning_faces.geometry import Camera, euler_to_matrix, opengl_matrix
from lightning_faces.morphable import MorphableModel

SIZE = 320
POSE = torch.tensor([[1.0, math.radians(8), math.radians(-28), math.radians(6), 160.0, 178.0]])
DISTANCE = 400.0
AXES = (("X", (200, 40, 40)), ("Y", (30, 140, 30)), ("Z", (40, 60, 210)))
INK = (40, 40, 40)
Picture = NDArray[np.uint8]


def cameras() -> dict[str, Camera]:
    """The weak-perspective camera, and a pinhole that has the same scale and place at the object's origin."""
    rotation = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ euler_to_matrix(POSE[:, 1:4])
    focal, centre = float(POSE[0, 0]) * DISTANCE, (SIZE - 1) / 2
    intrinsic = torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    shift = torch.cat(((POSE[0, 4:] - centre) / POSE[0, 0], torch.tensor([DISTANCE])))
    pinhole = intrinsic @ torch.cat((rotation[0], shift[:, None]), dim=1)
    return {"weak": Camera.from_pose(POSE), "pinhole": Camera.from_matrix("perspective", pinhole[None])}


def draw_face(picture: Picture, points: Tensor, faces: Tensor) -> None:
    """Paint triangles ``[F, 3]`` from the furthest to the nearest, bright where they look at the viewer."""
    corners = points[0][faces].numpy()
    upright = corners * (1.0, -1.0, 1.0)
    normal = np.cross(upright[:, 1] - upright[:, 0], upright[:, 2] - upright[:, 0])
    facing = normal[:, 2] / np.linalg.norm(normal, axis=1).clip(1e-9)
    for k in np.argsort(corners[:, :, 2].mean(axis=1)):
        if facing[k] > 0:
            grey = int(110 + 125 * facing[k])
            place = np.round(corners[k, :, :2] * 16).astype(np.int32)
            cv2.fillConvexPoly(picture, place, (grey, grey, grey), cv2.LINE_AA, shift=4)


def arrow(
    picture: Picture, start: tuple[float, ...], end: tuple[float, ...], name: str, colour: tuple[int, ...]
) -> None:
    """An arrow in pixels with its name at the tip."""
    first, last = (tuple(round(x) for x in place[:2]) for place in (start, end))
    cv2.arrowedLine(picture, first, last, colour, 2, cv2.LINE_AA, tipLength=0.12)
    cv2.putText(picture, name, (last[0] + 5, last[1] + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


def panel(title: str, camera: Camera, model: MorphableModel) -> Picture:
    """The mean face, and the object's axes, 100 mm long."""
    picture: Picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    faces = model.faces if model.uv_face_ids is None else model.faces[model.uv_face_ids]
    draw_face(picture, camera.project(model.mean[None]), faces)
    axes = camera.project(100.0 * torch.cat((torch.zeros(1, 3), torch.eye(3)))[None])[0].tolist()
    for (name, colour), end in zip(AXES, axes[1:]):
        arrow(picture, tuple(axes[0]), tuple(end), name, colour)
    arrow(picture, (8, 26), (60, 26), "u", INK)
    arrow(picture, (8, 26), (8, 78), "v", INK)
    cv2.putText(picture, title, (76, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (0, 0), (SIZE - 1, SIZE - 1), (170, 170, 170), 1)
    return picture


def opengl_panel(camera: Camera, model: MorphableModel) -> Picture:
    """Landmarks through the 3x4 matrix (dots) and through OpenGL's clip coordinates (rings)."""
    picture: Picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    landmarks = model.landmarks(model.mean[None])
    clip = torch.nn.functional.pad(landmarks, (0, 1), value=1.0) @ opengl_matrix(camera, SIZE, SIZE).transpose(1, 2)
    device = (clip[..., :2] / clip[..., 3:])[0]
    for value in (-0.5, 0.0, 0.5):
        place = round((value + 1) / 2 * SIZE - 0.5)
        cv2.line(picture, (place, 0), (place, SIZE), (225, 225, 225), 1)
        cv2.line(picture, (0, place), (SIZE, place), (225, 225, 225), 1)
        cv2.putText(picture, f"{value:g}", (place + 3, SIZE - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
        cv2.putText(picture, f"{0.0 - value:g}", (3, place - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
    rings = torch.stack(((device[:, 0] + 1) / 2 * SIZE - 0.5, (1 - device[:, 1]) / 2 * SIZE - 0.5), dim=1)
    for (x, y), (u, v) in zip(camera.project(landmarks)[0, :, :2].tolist(), rings.tolist()):
        cv2.circle(picture, (round(x * 16), round(y * 16)), 24, (200, 40, 40), -1, cv2.LINE_AA, shift=4)
        cv2.circle(picture, (round(u * 16), round(v * 16)), 72, (40, 60, 210), 1, cv2.LINE_AA, shift=4)
    cv2.putText(picture, "OpenGL: clip.xy / clip.w", (76, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (0, 0), (SIZE - 1, SIZE - 1), (170, 170, 170), 1)
    return picture


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cameras.png", help="the picture")
    out = parser.parse_args().out
    model = MorphableModel.load("embedded")
    both = cameras()
    panels = (
        panel("weak perspective", both["weak"], model),
        panel(f"perspective, {DISTANCE:.0f} mm away", both["pinhole"], model),
        opengl_panel(both["pinhole"], model),
    )
    picture = np.concatenate(panels, axis=1)
    done, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    write_atomic(out, data.tobytes())
    print(f"{out}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
