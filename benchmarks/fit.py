"""Accuracy and speed of fitting the embedded face model, in CPU time of one thread.

Perfect maps rendered from known faces, noisy landmarks of known faces, many images of one subject, cameras, and, with
LIGHTNING_FACES_DATA, the labels of AFLW2000-3D.

python benchmarks/fit.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import median_seconds
from torch import Tensor

from datamodules.components.fitted import convert_pose
from datamodules.components.matfile import read_mat
from lightning_faces.geometry import Camera, apply_similarity, euler_to_matrix, face_size, similarity_transform
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import (
    fit_affine,
    fit_dense,
    fit_dense_landmarks,
    fit_landmarks,
    fit_perspective,
    solve_coefficients,
)
from lightning_faces.rendering.maps import FaceMaps

SIZE = 200
FACE_SIZE = 140.0
"""Square root of width times height of a face's 68 points, mm."""


def faces(model: MorphableModel, count: int, seed: int, yaw: float) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients ``[B, K]``, shapes ``[B, V, 3]`` and poses ``[B, 6]``: every seventh facial action or so at work."""
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(count, model.num_identity, generator=generator)
    active = torch.rand(count, model.num_expression, generator=generator) < 0.15
    expression = active * torch.rand(count, model.num_expression, generator=generator)
    angles = torch.randn(count, 3, generator=generator) * 0.2
    angles[:, 1] = (torch.rand(count, generator=generator) * 2 - 1) * yaw
    scale = 0.9 * (1 + 0.1 * torch.rand(count, 1, generator=generator))
    centre = torch.full((count, 2), SIZE / 2)
    pose = torch.cat((scale, angles, centre), dim=1)
    return torch.cat((identity, expression), dim=1), model.vertices(identity, expression), pose


def degrees(pose: Tensor, other: Tensor) -> Tensor:
    turn = euler_to_matrix(pose[:, 1:4].double()) @ euler_to_matrix(other[:, 1:4].double()).transpose(1, 2)
    sine = (turn - turn.transpose(1, 2)).flatten(1).norm(dim=1) / 2**0.5
    return torch.rad2deg(torch.atan2(sine, turn.diagonal(dim1=1, dim2=2).sum(dim=1) - 1))


def rms(shapes: Tensor, other: Tensor) -> Tensor:
    return (shapes - other).square().sum(dim=2).mean(dim=1).sqrt()


def interval(values: Tensor) -> str:
    """Mean and its 95 % interval."""
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    return f"{values.mean():.2f} ({values.mean() - half:.2f} to {values.mean() + half:.2f})"


def benchmark_dense(model: MorphableModel, count: int) -> None:
    visible = torch.unique(model.faces[model.uv_face_ids])
    for label, size, yaw in (
        ("frontal", SIZE, 0.0),
        ("yaw to 45 degrees", SIZE, 0.8),
        ("yaw to 80 degrees", SIZE, 1.4),
        ("frontal, 64 px", 64, 0.0),
    ):
        _, shapes, pose = faces(model, count, 0, yaw)
        pose = pose * torch.tensor([size / SIZE, 1, 1, 1, size / SIZE, size / SIZE])
        camera, maps = Camera.from_pose(pose), FaceMaps(model, size)
        projected = camera.project(shapes)
        dense = maps.pncc(maps.face_region(projected), shapes)
        fit, fast = fit_dense(*dense, model), fit_dense_landmarks(*dense, model)
        true = model.landmarks(projected)[..., :2]
        pixels, quick = ((found.landmarks[..., :2] - true).norm(dim=2).mean(dim=1) for found in (fit, fast))
        geometry = rms(fit.shapes[:, visible], shapes[:, visible])
        full_time = median_seconds(lambda dense=dense: fit_dense(*dense, model), 3) / count  # type: ignore[misc]
        fast_time = median_seconds(lambda dense=dense: fit_dense_landmarks(*dense, model), 3) / count  # type: ignore[misc]
        print(
            f"perfect maps, {label}: pose at most {degrees(fit.camera.pose, pose).max():.4f} degrees; landmarks "
            f"{pixels.mean():.3f} px (at most {pixels.max():.3f}), without coefficients {quick.mean():.3f}; geometry "
            f"{geometry.mean():.3f} mm (at most {geometry.max():.3f}); {full_time * 1e3:.1f} ms a face, without "
            f"coefficients {fast_time * 1e3:.1f}"
        )


def benchmark_views(model: MorphableModel, count: int) -> None:
    visible, maps, one, four = torch.unique(model.faces[model.uv_face_ids]), FaceMaps(model, SIZE), [], []
    for subject in range(count):
        coefficients, _, pose = faces(model, 4, subject, 0.0)
        identity, expression = coefficients.split([model.num_identity, model.num_expression], dim=1)
        shapes = model.vertices(identity[:1].expand(4, -1), expression)
        pose[:, 2] = torch.tensor([0.0, 0.6, -0.6, 0.9])
        dense = maps.pncc(maps.face_region(Camera.from_pose(pose).project(shapes)), shapes)
        for errors, group in ((one, None), (four, torch.zeros(4, dtype=torch.int64))):
            errors.append(rms(fit_dense(*dense, model, subject=group).shapes[:, visible], shapes[:, visible]))
    single, joint = torch.stack(one), torch.stack(four)
    for k, label in enumerate(("0", "34", "-34", "52")):
        print(
            f"perfect maps, yaw {label} degrees: alone {single[:, k].mean():.3f} mm, jointly of 4 views "
            f"{joint[:, k].mean():.3f} mm; gain of {count} subjects {interval(single[:, k] - joint[:, k])} mm"
        )


def benchmark_landmarks(model: MorphableModel, count: int) -> None:
    _, shapes, pose = faces(model, count, 1, 1.0)
    true = Camera.from_pose(pose).project(model.landmarks(shapes))
    skin = model.region_masks["face"]
    noise = torch.randn(count, 68, 3, generator=torch.Generator().manual_seed(2)) * 0.02 * FACE_SIZE * pose[:, :1, None]
    for width in (2, 3):
        fit = fit_landmarks((true + noise)[..., :width], "68", model)
        real, mean = shapes[:, skin], model.mean[skin].expand(count, -1, -1)
        for label, error in (
            ("as it is", lambda found, real=real: rms(found, real)),
            (
                "after similarity",
                lambda found, real=real: rms(apply_similarity(found, *similarity_transform(found, real)), real),
            ),
        ):
            fitted, least = error(fit.shapes[:, skin]), error(mean)
            print(
                f"{width}D landmarks with 2 % noise, mesh {label}: {fitted.mean():.2f} mm, mean face "
                f"{least.mean():.2f}, nearer by {interval(least - fitted)} on {count} faces; pose "
                f"{degrees(fit.camera.pose, pose).mean():.2f} degrees off"
            )
    _, shapes, pose = faces(model, 1000, 3, 1.0)
    points = Camera.from_pose(pose).project(model.landmarks(shapes))
    mask = torch.rand(1000, 68, generator=torch.Generator().manual_seed(0)) < 0.8
    for label, run in (
        ("2D", lambda: fit_landmarks(points[..., :2], "68", model)),
        ("2D, with vertices", lambda: fit_landmarks(points[..., :2], "68", model).vertices),
        ("2D, a fifth missing", lambda: fit_landmarks(points[..., :2], "68", model, mask)),
        ("3D", lambda: fit_landmarks(points, "68", model)),
    ):
        print(f"1,000 landmark fits in a batch, {label}: {1000 / median_seconds(run, 3):.0f}/s")
    alone = median_seconds(lambda: fit_landmarks(points[:1, :, :2], "68", model), 9)
    print(f"one landmark fit alone, 2D: {alone * 1e3:.1f} ms")


def benchmark_subject(model: MorphableModel) -> None:
    visible = torch.unique(model.faces[model.uv_face_ids])
    _, shapes, _ = faces(model, 100, 4, 0.0)
    generator = torch.Generator().manual_seed(0)
    ids = [visible[torch.randperm(len(visible), generator=generator)[:1600]] for _ in range(100)]
    offsets = [(shape - model.mean)[some] for shape, some in zip(shapes, ids)]
    times = []
    for count in (25, 50, 100):

        def run(count: int = count) -> Tensor:
            return solve_coefficients(ids[:count], offsets[:count], model)

        times.append(median_seconds(run, 3))
        print(f"one identity and {count} expressions from 1,600 vertices each: {times[-1]:.2f} s")
    print(f"100 over 25 images: {times[2] / times[0]:.2f}x")


def benchmark_cameras(model: MorphableModel, count: int) -> None:
    _, shapes, pose = faces(model, count, 5, 0.8)
    points = shapes[:, ::8].double()
    rotation = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)) @ euler_to_matrix(pose[:, 1:4].double())
    for distance in (400.0, 1000.0, 5000.0):
        focal = distance * 0.9
        intrinsic = torch.tensor([[focal, 0, 99.5], [0, focal, 99.5], [0, 0, 1]], dtype=torch.float64)
        shift = torch.tensor([0, 0, distance], dtype=torch.float64).reshape(1, 3, 1).expand(count, 3, 1)
        true = Camera.from_matrix("perspective", intrinsic @ torch.cat((rotation, shift), dim=2))
        noise = 0.3 * torch.randn((*points.shape[:2], 2), generator=torch.Generator().manual_seed(0))
        image = true.project(points)[..., :2]
        start = time.process_time()
        affine = fit_affine(points, image + noise)
        middle = time.process_time()
        perspective = fit_perspective(points, image + noise, (SIZE, SIZE), affine=affine)
        end = time.process_time()
        errors = [
            float((fit.camera.project(points)[..., :2] - image).norm(dim=2).mean()) for fit in (affine, perspective)
        ]
        print(
            f"pinhole at {distance:.0f} mm, noise 0.3 px: affine {errors[0]:.2f} px off, perspective {errors[1]:.2f}; "
            f"focal length off by {((perspective.focal - focal).abs() / focal).median() * 100:.1f} % (median); "
            f"{(middle - start) / count * 1e3:.1f} and {(end - middle) / count * 1e3:.1f} ms a face"
        )


def benchmark_real(model: MorphableModel, folder: Path) -> None:
    points, poses = [], []
    for path in sorted(folder.glob("*.mat")):
        fields = read_mat(path, {"pt3d_68": (3, 68), "Pose_Para": (1, 7)})
        pose = convert_pose(fields["Pose_Para"][0], 450).pose
        if pose is not None:
            points.append(fields["pt3d_68"].T - (1, 1, 0))
            poses.append(pose)
    landmarks, pose = torch.from_numpy(np.array(points)).float(), torch.from_numpy(np.array(poses))
    size, yaw = face_size(landmarks), torch.rad2deg(pose[:, 2]).abs()
    for width in (3, 2):
        fit = fit_landmarks(landmarks[..., :width], "68", model)
        for low, high in ((0, 30), (30, 60), (60, 400)):
            some = (yaw > low - (low == 0)) & (yaw <= high)
            residual = (fit.residual / size)[some] * 100
            angle = degrees(fit.camera.pose, pose)[some]
            print(
                f"AFLW2000-3D, {width}D labels, |yaw| {low} to {min(high, 90)} ({int(some.sum())}): residual "
                f"{residual.mean():.2f} % of the face's size (at most {residual.max():.2f}); pose {angle.mean():.2f} "
                f"degrees from Pose_Para (median {angle.median():.2f}, at most {angle.max():.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few faces")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model = MorphableModel.load("embedded")
    parts: list[Callable[[], None]] = [
        lambda: benchmark_dense(model, 8 if quick else 40),
        lambda: benchmark_views(model, 4 if quick else 20),
        lambda: benchmark_landmarks(model, 50 if quick else 200),
        lambda: benchmark_subject(model),
        lambda: benchmark_cameras(model, 10 if quick else 40),
    ]
    for part in parts:
        part()
    folder = Path(os.environ.get("LIGHTNING_FACES_DATA", "missing")) / "aflw2000_3d"
    if folder.is_dir():
        benchmark_real(model, folder)


if __name__ == "__main__":
    main()
