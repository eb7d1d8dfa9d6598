"""Pictures of scans in the poses of a benchmark, written in the import layout: Florence's 53 subjects in 15 poses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from datamodules.components.annotations import Annotations
from datamodules.components.files import tight_box, walk_files
from datamodules.components.meshes import SCAN_SUFFIXES, load_mesh
from datamodules.components.options import check_number
from datamodules.components.scans import landmark_path, read_scan
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import apply_similarity, similarity_transform, weak_perspective
from lightning_faces.morphable import MorphableModel

PITCHES = (-15.0, -20.0, -25.0)
"""Degrees, by the author of the Florence renderings; PRNet's text says -15, 20 and 25."""
YAWS = (-80.0, -40.0, 0.0, 40.0, 80.0)
FACE_SHARE = 0.5
"""Longer side of the box of the 68 points, seen from the front, over that of the picture."""


def render_scans(
    folder: Path, pitches: Sequence[float] = PITCHES, yaws: Sequence[float] = YAWS, size: int = 450
) -> Path:
    """Render each scan below a folder in each pose, and write ``annotations.npz`` with the poses and boxes.

    A scan is in millimetres, x to the image right of a frontal face, y up, z to the viewer, and has landmarks beside it
    (``scans.py``). It is shown in its own colours (of the vertices, or a texture taken at them) without any
    light, or, where it has none, grey under a light at the viewer; the background is black. The box is that of
    the 68 points of the embedded model's mean face, fitted to the scan's landmarks.

    Args:
        folder: Where the scans are; ``pictures/`` and the table are written here.
        pitches: Degrees, positive looks up.
        yaws: Degrees, positive moves the nose to the image left.
        size: Side of the pictures in pixels.

    Returns:
        The table.

    Raises:
        ConfigurationError: If there is a table already.
        DataError: If there is no scan, or one is no surface or not in the frame above.
    """
    check_number("option --size", size, 16, 8192)
    for option, angles in (("--pitch", pitches), ("--yaw", yaws)):
        for angle in angles:
            check_number(f"option {option}", angle, -180, 180)
    target = folder / "annotations.npz"
    if target.exists():
        raise ConfigurationError(f"{target} exists: remove it to render again.")
    paths = list(walk_files(folder, SCAN_SUFFIXES))
    if not paths:
        raise DataError(f"There is no OBJ or PLY file in {folder}: give the folder that holds the scans.")
    model = MorphableModel.load("embedded")
    (folder / "pictures").mkdir(exist_ok=True)
    files: list[str] = []
    scans: list[str] = []
    poses, boxes, subjects, views = [], [], [], []
    for subject, path in enumerate(track(paths, description="rendering scans")):
        name = path.relative_to(folder)
        vertices, faces, colours = _surface(path)
        face = _face_points(path, model)
        scale = FACE_SHARE * size / float(np.ptp(face[:, :2].numpy(), axis=0).max())
        for view, (pitch, yaw) in enumerate(product(pitches, yaws)):
            pose = torch.tensor([scale, *np.radians([pitch, yaw]), 0.0, 0.0, 0.0], dtype=torch.float64)
            box = tight_box(weak_perspective(face, pose).numpy(), path)
            pose[4:] = torch.from_numpy((size - 1) / 2 - (box[:2] + box[2:]) / 2)
            file = f"pictures/{'-'.join(name.with_suffix('').parts)}_{pitch:+g}_{yaw:+g}.png"
            Image.fromarray(_picture(weak_perspective(vertices, pose).float(), faces, colours, size)).save(
                folder / file
            )
            files.append(file)
            scans.append(name.as_posix())
            poses.append(pose.numpy())
            boxes.append(box + np.tile(pose[4:].numpy(), 2))
            subjects.append(subject)
            views.append(view)
    return Annotations(
        path=target,
        file=files,
        landmarks=np.zeros((len(files), 0, 3)),
        box=np.stack(boxes),
        yaw=np.degrees(np.stack(poses)[:, 2]),
        pose=np.stack(poses),
        scan=scans,
        numbers={"subject": np.array(subjects), "view": np.array(views)},
    ).save()


def _surface(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Vertices float64 ``[N, 3]``, triangles ``[F, 3]`` and colours ``[N, 3]`` in [0, 1], None where it has none."""
    mesh = load_mesh(path)
    if not len(mesh.faces):
        raise DataError(f"Scan {path} has points but no triangles, so it cannot be rendered: give a surface.")
    colours = None
    if mesh.visual.kind is not None:
        visual = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
        colours = torch.from_numpy(np.array(visual.vertex_colors[:, :3], dtype=np.float32) / 255)
    faces = torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
    return torch.from_numpy(np.array(mesh.vertices, dtype=np.float64)), faces, colours


def _face_points(path: Path, model: MorphableModel) -> torch.Tensor:
    """The 68 points of the mean face on a scan, float64 ``[68, 3]``.

    Raises:
        DataError: If the scan is not in millimetres, or is turned by more than 45 degrees.
    """
    scan = read_scan(path)
    points = model.landmarks(model.mean[None].double(), "ibug")[0]
    fit = similarity_transform(points[torch.from_numpy(scan.indices)], torch.from_numpy(scan.landmarks))
    scale, rotation, _ = fit
    degrees = float(torch.rad2deg(torch.arccos(((rotation.trace() - 1) / 2).clamp(-1, 1))))
    if not 0.7 < float(scale) < 1.4 or degrees > 45:
        raise DataError(
            f"{landmark_path(path)} describes a face {float(scale):.3g} times as large as a mean face in millimetres, "
            f"turned by {degrees:.0f} degrees: bring scan and landmarks to millimetres, y up, facing +z."
        )
    return apply_similarity(points, *fit)


def _picture(placed: torch.Tensor, faces: torch.Tensor, colours: torch.Tensor | None, size: int) -> NDArray[np.uint8]:
    # Importing the renderer takes seconds, and only this needs it.
    from lightning_faces.rendering.renderer import VertexNormals, rasterize_image, to_view

    if colours is None:
        # Scans are wound either way.
        towards = VertexNormals(faces, len(placed))(to_view(placed[None]))[0, :, 2:].abs()
        colours = (0.2 + 0.6 * towards).expand(-1, 3)
    raster = rasterize_image(placed[None], faces, size)
    image = raster.to_image(raster.interpolate(colours.contiguous(), faces))[0]
    pixels: NDArray[np.uint8] = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels
