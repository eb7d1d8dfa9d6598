"""Richardson 2016: losses, basis vectors, the mask, passes, a fit to landmarks alone, cameras, speed.

    python benchmarks/richardson2016.py [--seeds S ...] [--variants V ...] [--landmarks CHECKPOINT]
    python benchmarks/richardson2016.py --faces 5000             the variants only, in short trainings

Trains configs/method/richardson2016.yaml (20,000 faces, 4 epochs) once per variant and seed into runs/richardson2016/
and scores each last checkpoint, four passes, on the synthetic test faces with their true poses. Runs that exist are
kept, so seeds can be added later. Then compares without training, with the weights of "default":

* passes 0 to 4 on validation and test faces (pass 0 is the mean face);
* the network with a fit of the face model to landmarks alone (figures 10 and 11). Both get the landmarks of one method:
  --landmarks, or the quick start's Zhao 2016, which is trained for it. The fit takes the prior's weight that is best on
  validation faces. Error maps: runs/richardson2016/error_maps.png;
* the same faces from far and from near, and the pose that the mean face gets from true landmarks by a weak-perspective
  and by a perspective camera (section 9);
* a pass a frame from the frame before with passes from the mean face, on videos;
* speed.

Errors are millimetres; intervals are 95 % bootstrap intervals over faces.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from experiment import difference_over_faces, evaluations, score, train
from PIL import Image, ImageDraw
from timing import median_seconds
from torch import Tensor

from callbacks.dense_pictures import colours
from datamodules import SyntheticFaces
from datamodules.augment import MildAugmentation
from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.files import write_atomic
from lightning_faces.geometry import Camera, apply_similarity, euler_to_matrix, similarity_transform
from lightning_faces.methods import Richardson2016
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.metrics.functional import per_vertex_error
from lightning_faces.metrics.functional_model import geometry_error, intersection_over_union
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_landmarks, fit_perspective, fit_weak_perspective
from lightning_faces.morphable.fit.result import FaceFit, shapes_of
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import rasterize_image
from lightning_faces.rendering.synthesis import SynthesisOptions
from lightning_faces.targets import target_shapes

CONFIG = "configs/method/richardson2016.yaml"
RUNS = Path("runs/richardson2016")
FACES = 20000
"""Of the configuration."""
VARIANTS = {
    "default": [],
    "coefficients": ["--model.init_args.loss", "coefficients"],
    "few-modes": ["--model.init_args.num_identity", "20"],
    "unmasked": ["--model.init_args.masked", "false"],
}
REFERENCE, PASSES = "default", ("--model.init_args.passes", "4")
METRICS = ("geometry_mm", "geometry_rms_mm", "vertex_mm")
PRIORS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
NETWORK = "network, pose of the landmarks"
PEOPLE, FRAMES = 40, 10
FULL_RED = 10.0
"""Error in mm that is drawn dark red."""


def report(name: str, values: Tensor, unit: str = "mm") -> None:
    low, high = interval(bootstrap_means(values.double().numpy()[:, None])[:, 0])
    print(f"  {name:52s} {float(values.double().mean()):+7.3f} [{low:+.3f}, {high:+.3f}] {unit}")


def show(folder: Path) -> None:
    """Values of each variant and pass, seeds averaged, and their paired difference from the default's."""
    for number in range(1, 5):
        found = evaluations(folder, f"pass_{number}")
        for dataset, variant in ((d, v) for d in sorted({d for d, _ in found}) for v in VARIANTS if (d, v) in found):
            runs, plain = found[dataset, variant], found.get((dataset, REFERENCE), {})
            print(f"\n{dataset}, pass {number}, {variant}, seeds {sorted(runs)}")
            for metric in METRICS:
                values = [record.metrics[metric] for record, _ in runs.values()]
                ends = "  ".join(f"[{v.low:.3f}, {v.high:.3f}]" for v in values)
                line = f"  {metric:16s} {np.mean([v.value for v in values]):6.3f}  {ends}"
                both = sorted(runs.keys() & plain.keys())
                if variant != REFERENCE and both:
                    mean, low, high = difference_over_faces([runs[s][1][metric] - plain[s][1][metric] for s in both])
                    line += f"  minus {REFERENCE}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
                print(line)


def batches(split: str, **options: object) -> list[FaceBatch]:
    """Faces of a split of the configuration's data; with ``options`` others, which are not cached."""
    arguments = yaml.safe_load(Path(CONFIG).read_text())["data"]["init_args"]
    arguments |= {"num_workers": 0, "batch_size": 50}
    if options:
        arguments |= {"cache_dir": None, **options}
    data = SyntheticFaces(**arguments)
    data.setup({"val": "validate", "test": "test"}[split])
    return list(data.val_dataloader() if split == "val" else data.test_dataloader())


@torch.no_grad()
def passes(method: Richardson2016) -> None:
    """Does each pass lower the error, and does it go too far?

    The factor is the one by which all offsets from the mean face would have to be multiplied to be nearest to the true
    ones (least squares over vertices): above 1 the passes have not come far enough, below 1 they have gone too far. The
    share of the squared true offsets that they then account for is what is explained.
    """
    for split in ("val", "test"):
        rows: list[list[Tensor]] = [[] for _ in range(1 + len(method.prediction_names))]
        products, total = [[0.0, 0.0] for _ in rows], 0.0
        for batch in batches(split):
            target = batch["coefficients"]
            found = [torch.zeros_like(target), *method.correct(batch["image"], batch["pose"])]
            true = shapes_of(method.face_model, target) - method.face_model.mean
            total += float(true.square().sum())
            for row, product, coefficients in zip(rows, products, found):
                row.append(geometry_error(coefficients, target, method.face_model))
                offsets = shapes_of(method.face_model, coefficients) - method.face_model.mean
                product[0] += float((offsets * true).sum())
                product[1] += float(offsets.square().sum())
        errors = [torch.cat(row) for row in rows]
        print(f"\ngeometry_mm of {len(errors[0])} {split} faces, by pass (0: the mean face)")
        for number, error in enumerate(errors):
            report(f"pass {number}", error)
        for number in range(1, len(errors)):
            report(f"pass {number} minus pass {number - 1}", errors[number] - errors[number - 1])
        for number, (both, own) in enumerate(products[1:], start=1):
            print(f"  pass {number}: best factor {both / own:.2f}, explained then {100 * both**2 / own / total:.1f} %")


@torch.no_grad()
def video(method: Richardson2016) -> None:
    """A pass a frame from the frame before, against passes from the mean face (section 9)."""
    arguments = yaml.safe_load(Path(CONFIG).read_text())["data"]["init_args"]
    shaking = MildAugmentation(scale=(0.97, 1.03), rotation=1.0, translation=0.02, flip=0.0)
    data = SyntheticFaces(**{**arguments, "num_workers": 0, "cache_dir": None, "train_size": PEOPLE, "seed": 9})
    data.setup("fit")
    faces = data.datasets["train"]
    faces.augmentation = shaking
    errors: dict[str, list[Tensor]] = {}
    for person in range(PEOPLE):
        samples = faces.samples([(person, frame) for frame in range(FRAMES)])
        batch = collate_faces(samples, target_shapes(faces.targets, data.spec))
        alone = method.correct(batch["image"], batch["pose"])
        found = {
            "one pass from the mean face": alone[0],
            "three passes from the mean face": alone[2],
            "one pass from the frame before": method.correct_sequence(batch["image"], batch["pose"]),
        }
        for name, coefficients in found.items():
            error = geometry_error(coefficients, batch["coefficients"], method.face_model)[1:]
            errors.setdefault(name, []).append(error.mean())
    print(f"\ngeometry_mm of {PEOPLE} videos: {FRAMES} frames in boxes that shake by 2 %, the first left out")
    stacked = {name: torch.stack(values) for name, values in errors.items()}
    for name, values in stacked.items():
        report(name, values)
    one, three, before = stacked.values()
    report("from the frame before minus one from the mean", before - one)
    report("from the frame before minus three from the mean", before - three)


def aligned_error(model: MorphableModel, found: Tensor, true: Tensor, region: Tensor) -> Tensor:
    """Mean distance of a region's vertices after similarity ``[B]``, of the shapes of coefficients ``[B, K]``, in mm.

    The score ``vertex_mm`` compares in the image, where the true vertices have perspective.
    """
    shapes = [
        model.vertices(*c.split((model.num_identity, model.num_expression), dim=1))[:, region] for c in (found, true)
    ]
    return per_vertex_error(*shapes, scale=torch.ones(len(found)))


class Faces(NamedTuple):
    """All faces of a split, with the landmarks that a method finds."""

    batches: list[FaceBatch]
    landmarks: list[Tensor]
    coefficients: Tensor


@torch.no_grad()
def with_landmarks(split: str, source: FaceMethod) -> Faces:
    there = batches(split)
    landmarks = [source.predict_faces(batch).landmarks[..., :2] for batch in there]
    return Faces(there, landmarks, torch.cat([batch["coefficients"] for batch in there]))


@torch.no_grad()
def against_landmarks(method: Richardson2016, source: FaceMethod, name: str) -> None:
    """The network against a fit of the face model, both from the same predicted landmarks."""
    model = method.face_model
    regions = {"all vertices": torch.ones(model.num_vertices, dtype=torch.bool), "face": model.region_masks["face"]}

    def fitted(faces: Faces, weight: float) -> FaceFit:
        points = torch.cat(faces.landmarks)
        return fit_landmarks(points, "68", model, identity_weight=weight, expression_weight=weight)

    val = with_landmarks("val", source)
    scores = {
        weight: float(aligned_error(model, fitted(val, weight).coefficients, val.coefficients, regions["face"]).mean())
        for weight in PRIORS
    }
    best = min(scores, key=scores.__getitem__)
    print(f"\nlandmarks of {name}; the fit's prior weighs {best:g} mm^2: validation error (face) by weight")
    print("  " + "  ".join(f"{weight:g}: {error:.3f}" for weight, error in scores.items()))
    test = with_landmarks("test", source)
    usual, best_fit = fit_landmarks(torch.cat(test.landmarks), "68", model), fitted(test, best)
    true_pose = torch.cat([batch["pose"] for batch in test.batches])

    def network(pose: Tensor) -> Tensor:
        parts = pose.split([len(batch["image"]) for batch in test.batches])
        return torch.cat([method.correct(batch["image"], part)[2] for batch, part in zip(test.batches, parts)])

    found = {
        "mean face": torch.zeros_like(test.coefficients),
        "fit to landmarks": best_fit.coefficients,
        NETWORK: network(usual.camera.pose),
        "network, pose of that fit": network(best_fit.camera.pose),
        "network, true pose": network(true_pose),
    }
    yaw = torch.cat([batch["yaw"] for batch in test.batches]).abs()
    print(f"per-vertex error after similarity of {len(yaw)} test faces; {int((~usual.valid).sum())} without a pose")
    for region, mask in regions.items():
        errors = {name: aligned_error(model, c, test.coefficients, mask) for name, c in found.items()}
        for label, error in errors.items():
            report(f"{region}: {label}", error)
        for label in (NETWORK, "network, pose of that fit", "network, true pose"):
            report(f"{region}: {label}, minus fit", errors[label] - errors["fit to landmarks"])
        for low, high in ((0, 30), (30, 60), (60, 90)):
            some = (yaw >= low) & (yaw < high)
            report(
                f"{region}: network minus fit, |yaw| {low} to {high}",
                (errors[NETWORK] - errors["fit to landmarks"])[some],
            )
    chosen = [int(row) for low in (0, 30, 60) for row in ((yaw >= low) & (yaw < low + 30)).nonzero()[:2, 0]]
    images = torch.cat([batch["image"] for batch in test.batches])[chosen]
    drawn = {name: found[name][chosen] for name in ("fit to landmarks", NETWORK)}
    draw_error_maps(model, images, test.coefficients[chosen], drawn)


def draw_error_maps(model: MorphableModel, images: Tensor, true: Tensor, found: dict[str, Tensor]) -> None:
    """A row of pictures, and a row for each method, coloured by the distance of each vertex after similarity."""
    tile, line = 160, 14
    shapes = shapes_of(model, true)
    sheet = Image.new("RGB", (tile * len(images), (1 + len(found)) * (tile + line)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for k, image in enumerate(images):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC), (k * tile, line))
    draw.text((4, 1), f"picture; below, errors from 0 (dark blue) to {FULL_RED:g} mm (dark red)", fill=(210, 210, 210))
    for row, (name, coefficients) in enumerate(found.items(), start=1):
        predicted = shapes_of(model, coefficients)
        moved = apply_similarity(predicted, *similarity_transform(predicted, shapes))
        errors = (moved - shapes).norm(dim=2)
        top = row * (tile + line)
        draw.text((4, top + 1), name, fill=(210, 210, 210))
        for k in range(len(images)):
            picture = error_picture(model, moved[k], errors[k], tile)
            sheet.paste(Image.fromarray(picture), (k * tile, top + line))
            draw.text((k * tile + 4, top + line + tile - 12), f"{errors[k].mean():.1f} mm", fill=(210, 210, 210))
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_atomic(RUNS / "error_maps.png", content.getvalue())
    print(f"{RUNS / 'error_maps.png'}: six faces")


def error_picture(model: MorphableModel, shape: Tensor, error: Tensor, size: int) -> np.ndarray:
    """The face region from the front, uint8 ``[size, size, 3]``, coloured by errors ``[V]`` in mm."""
    middle = (size - 1) / 2
    pose = torch.tensor([[size / 260, 0.0, 0.3, 0.0, middle, middle]])
    faces = model.faces if model.uv_face_ids is None else model.faces[model.uv_face_ids]
    projected = Camera.from_pose(pose).project(shape[None])
    raster = rasterize_image(projected, faces, size, cull_backfaces=True)
    picture = raster.to_image(raster.interpolate(error[None, :, None], faces), -1.0)[0, 0]
    painted: np.ndarray = colours(picture / FULL_RED)
    painted[(picture < 0).numpy()] = 24
    return painted


def cameras(method: Richardson2016) -> None:
    """Faces from far and from near; and the pose of the mean face by two cameras."""
    model, size = method.face_model, method.image_size
    maps = FaceMaps(model, size)
    far, near = (batches("test", test_size=300, synthesis=SynthesisOptions(perspective=part)) for part in (0.0, 1.0))
    print("\n300 test faces without perspective (far) and the same from 0.45 to 2 m (near), true weak-perspective pose")
    errors = {}
    for name, there in (("far", far), ("near", near)):
        with torch.no_grad():
            found = torch.cat([method.correct(batch["image"], batch["pose"])[2] for batch in there])
        errors[name] = geometry_error(found, torch.cat([batch["coefficients"] for batch in there]), model)
        report(f"geometry_mm, three passes, {name}", errors[name])
    report("geometry_mm, near minus far", errors["near"] - errors["far"])
    points = model.landmarks(model.mean[None])
    for name, there in (("far", far), ("near", near)):
        rows: dict[str, dict[str, list[Tensor]]] = {}
        distances: list[float] = []
        for batch in there:
            target, own = batch["landmarks"][..., :2], points.expand(len(batch["image"]), -1, -1)
            shapes = shapes_of(model, batch["coefficients"])
            # The true projection, perspective included, of the true shape: what the mask should be.
            exact = fit_perspective(model.landmarks(shapes), target, (size, size))
            mask = maps.mask(maps.face_region(exact.camera.project(shapes))) > 0.5
            full = fit_perspective(own, target, (size, size))
            distances += full.translation[:, 2].tolist()
            for camera, fit in (("weak perspective", fit_weak_perspective(own, target)), ("perspective", full)):
                start = maps.mask(maps.face_region(fit.camera.project(model.mean.expand(len(own), -1, -1)))) > 0.5
                found = rows.setdefault(camera, {})
                found.setdefault("overlap of the mean face's mask with the true one (%)", []).append(
                    100 * intersection_over_union(start, mask)
                )
                turn = euler_to_matrix(fit.camera.pose[:, 1:4]) @ euler_to_matrix(batch["pose"][:, 1:4]).transpose(1, 2)
                cosine = (turn.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
                found.setdefault("rotation off (degrees)", []).append(torch.rad2deg(cosine.clamp(-1, 1).acos()))
        print(f"the mean face placed by true landmarks, {name}; median distance found: {np.median(distances):.0f} mm")
        for label in next(iter(rows.values())):
            values = {camera: torch.cat(found[label]) for camera, found in rows.items()}
            for camera, value in values.items():
                report(f"{label.split(' (')[0][:36]}: {camera}", value, label.split("(")[1].rstrip(")"))
            difference = values["perspective"] - values["weak perspective"]
            report("  perspective minus weak perspective", difference, label.split("(")[1].rstrip(")"))


def speed(method: Richardson2016, sourced: Richardson2016) -> None:
    """Faces a second on one thread, three passes."""
    torch.set_num_threads(1)
    batch = batches("test")[0]
    print("\nfaces a second of CPU time on one thread, image to vertices, three passes")
    for label, used in (("pose given", method), ("pose from the landmark method", sourced)):
        for count in (1, 16):
            part = {key: value[:count] for key, value in batch.items() if isinstance(value, (Tensor, list))}
            part["has"] = {key: value[:count] for key, value in batch["has"].items()}
            with torch.no_grad():
                seconds = median_seconds(lambda used=used, part=part: used.predict_faces(part), 15)  # type: ignore[misc]
            print(f"  {label}, batch {count}: {count / seconds:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="only these")
    parser.add_argument("--faces", type=int, default=FACES, help=f"training faces (default {FACES})")
    parser.add_argument("--landmarks", type=Path, help="checkpoint of a method of 68 landmarks")
    chosen = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    whole = chosen.faces == FACES
    runs = RUNS if whole else RUNS.with_name(f"{RUNS.name}_{chosen.faces}")
    # The schedule ends with the training.
    steps = 4 * (chosen.faces // 32)
    size = ["--data.init_args.train_size", str(chosen.faces)]
    size += ["--model.init_args.lr_scheduler.init_args.T_max", str(steps)]
    for seed in chosen.seeds:
        for variant in chosen.variants:
            folder, options = runs / f"{variant}-seed{seed}", [*VARIANTS[variant], *([] if whole else size)]
            checkpoint = train(folder, CONFIG, "--seed_everything", str(seed), *options)
            score(folder, CONFIG, checkpoint, *options, *PASSES, photographs=False)
    show(runs)
    if not whole:
        return
    checkpoint = RUNS / f"{REFERENCE}-seed{chosen.seeds[0]}" / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        return
    landmarks = chosen.landmarks or train(
        RUNS / "landmarks", "configs/quickstart.yaml", "--config", "configs/data/synthetic_64.yaml"
    )
    method, sourced = load_method(checkpoint, passes=4), load_method(checkpoint, pose_source=str(landmarks))
    assert isinstance(method, Richardson2016) and isinstance(sourced, Richardson2016)
    passes(method.eval())
    against_landmarks(method, sourced.pose_source[0], str(landmarks))
    cameras(method)
    video(method)
    speed(load_method(checkpoint).eval(), sourced.eval())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
