"""Pix2face: batch size, decoder, camera, several images of a person, and smoothing.

    python benchmarks/pix2face.py --variants batch-16            the shipped configuration and the baseline
    python benchmarks/pix2face.py --faces 5000 [--seeds S ...] [--variants V ...]

Trains configs/method/pix2face.yaml on the first N of its faces (default: all 20,000; 5 epochs) once per variant and
seed into runs/pix2face_N/, and the mean-landmark baseline on the same faces, and scores each last checkpoint on the
synthetic test faces and, where LIGHTNING_FACES_DATA holds AFLW2000-3D, on those photographs. Runs that exist are kept,
so seeds can be added later. Then compares, with the weights of "batch-16" and without training, an affine with a
perspective camera, one image with four of one person, and landmarks in shaking boxes with and without the moving
average. Prints values with 95 % bootstrap intervals over faces.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from experiment import difference_over_faces, evaluations, print_values, score, train
from torch import Tensor

from datamodules import SyntheticFaces
from datamodules.augment import MildAugmentation
from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.geometry.camera import face_size, transform_points
from lightning_faces.methods import Pix2Face
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.morphable.fit import fit_dense
from lightning_faces.predict.sequence import moving_average
from lightning_faces.targets import target_shapes

CONFIG = "configs/method/pix2face.yaml"
BASELINE = "configs/method/mean_landmarks.yaml"
RUNS = "runs/pix2face_{faces}"
VARIANTS = {
    "batch-16": ["--data.init_args.batch_size", "16"],
    "batch-4": ["--data.init_args.batch_size", "4"],
    "batch-24": ["--data.init_args.batch_size", "24"],
    "transposed": ["--model.init_args.upsampling", "transposed"],
}
REFERENCE = "batch-16"
METRICS = (
    "nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "pixel_median_mm", "pixel_mm", "vertex_mm", "mask_iou",
)  # fmt: skip
FACES, PEOPLE, FRAMES = 200, 40, 20


def show(folder: Path) -> None:
    """Values of each variant, seeds averaged, and NME paired with the reference."""
    found = evaluations(folder)
    for dataset in sorted({dataset for dataset, _ in found}):
        for variant in ("mean", *VARIANTS):
            runs, plain = found.get((dataset, variant), {}), found.get((dataset, REFERENCE), {})
            if not runs:
                continue
            print(f"\n{dataset}, {variant}, seeds {sorted(runs)}")
            print_values(METRICS, runs)
            both = sorted(runs.keys() & plain.keys())
            if variant not in (REFERENCE, "mean") and both:
                mean, low, high = difference_over_faces([runs[s][1]["nme"] - plain[s][1]["nme"] for s in both])
                print(f"  NME minus {REFERENCE}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")


def report(name: str, values: Tensor, unit: str) -> None:
    low, high = interval(bootstrap_means(values.double().numpy()[:, None])[:, 0])
    print(f"  {name:40s} {float(values.mean()):6.3f} [{low:.3f}, {high:.3f}] {unit}")


def batches(method: Pix2Face, views: int) -> list[FaceBatch]:
    """Test faces of the method's size, with ``views`` images of each person in a row."""
    data = SyntheticFaces(
        test_size=FACES, views_per_subject=views, image_size=method.image_size, batch_size=20, num_workers=0, seed=7
    )
    data.setup("test")
    return list(data.test_dataloader())


def without_training(checkpoint: Path) -> None:
    """Cameras, images of a person, and smoothing."""
    method = load_method(checkpoint)
    assert isinstance(method, Pix2Face)
    model = method.face_model
    rows: dict[str, list[Tensor]] = {}
    for batch in batches(method, 4):
        with torch.no_grad():
            pncc, offsets, mask = method.head.millimetres(method(batch["image"]))
        identity, expression = batch["coefficients"].split((model.num_identity, model.num_expression), dim=1)
        true = model.vertices(identity, expression)
        for name, options in {
            "affine camera": {"camera": "affine"},
            "perspective camera": {"camera": "perspective"},
            "four images of a person": {"camera": "affine", "subject": batch["subject"]},
        }.items():
            fit = fit_dense(pncc, offsets, mask, model, identity_weight=10, expression_weight=10, **options)
            error = (fit.landmarks - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]
            rows.setdefault(f"{name}: NME (%)", []).append(100 * error)
            rows.setdefault(f"{name}: shape (mm)", []).append((fit.shapes - true).norm(dim=-1).mean(dim=1))
    print(f"\n{FACES} synthetic faces, four images of each person")
    for name, parts in rows.items():
        report(name, torch.cat(parts), "")
    print(f"\n{PEOPLE} people who keep still, {FRAMES} frames each, in boxes that shake by 2 %")
    shaking: dict[str, list[Tensor]] = {}
    for true, found, size in (video(method, person) for person in range(PEOPLE)):
        for name, points in (("as predicted", found), ("moving average of 3 frames", moving_average(found))):
            error = (points - true)[..., :2]
            shaking.setdefault(f"{name}: NME (%)", []).append(100 * error.norm(dim=-1).mean() / size)
            step = error.diff(dim=0).norm(dim=-1).mean()
            shaking.setdefault(f"{name}: step between frames (%)", []).append(100 * step / size)
    for name, parts in shaking.items():
        report(name, torch.stack(parts), "")


def video(method: Pix2Face, person: int) -> tuple[Tensor, Tensor, Tensor]:
    """True and predicted landmarks ``[T, 68, 3]`` in the file, and the face's size, in boxes that shake."""
    data = SyntheticFaces(
        train_size=PEOPLE, val_size=1, image_size=method.image_size, batch_size=1, num_workers=0, seed=9
    )
    data.setup("fit")
    faces = data.datasets["train"]
    faces.augmentation = MildAugmentation(scale=(0.97, 1.03), rotation=1.0, translation=0.02, flip=0.0)
    samples = faces.samples([(person, frame) for frame in range(FRAMES)])
    batch = collate_faces(samples, target_shapes(faces.targets, data.spec))
    with torch.no_grad():
        found = method.predict_faces(batch).to_file(batch["crop_to_file"]).landmarks
    true = transform_points(batch["crop_to_file"], batch["landmarks"])
    return true, found, face_size(true[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=20000, help="training faces (default 20000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="only these")
    chosen = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    runs = Path(RUNS.format(faces=chosen.faces))
    size = f"--data.init_args.train_size={chosen.faces}"
    # The mean of crops as they are scored.
    baseline = ["--config", BASELINE, size, "--data.init_args.augmentation", "null"]
    score(runs / "mean-seed1", CONFIG, train(runs / "mean-seed1", CONFIG, *baseline), *baseline)
    for seed in chosen.seeds:
        for variant in chosen.variants:
            folder = runs / f"{variant}-seed{seed}"
            options = ["--seed_everything", str(seed), size, *VARIANTS[variant]]
            score(folder, CONFIG, train(folder, CONFIG, *options), *options)
    show(runs)
    checkpoint = runs / f"{REFERENCE}-seed{chosen.seeds[0]}" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        without_training(checkpoint)


if __name__ == "__main__":
    main()
