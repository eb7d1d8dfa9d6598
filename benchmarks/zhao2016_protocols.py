"""The protocols of Zhao 2016, section 6: depth from true 2D landmarks, 3DFAW, and BP4D-S across data sets.

    python benchmarks/zhao2016_protocols.py depth      13,694 / 5,000 faces of 3DFAW: GTE of the depth network alone
    python benchmarks/zhao2016_protocols.py image      the same split from photographs: GTE and CVGTCE
    python benchmarks/zhao2016_protocols.py bp4d       the network of "image" on BP4D-S: APE on the 45 shared points

Both data sets are gated. With ``--root FOLDER`` they are read there, in the import layout (docs/data.md); without, they
are stood in for by rendered faces of the same shape in the same layout, written once below cache/stand_ins, and the
records carry the stand-in's name. Runs that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from datamodules import AFLW20003D, BP4D, SyntheticFaces, ThreeDFAW
from datamodules.components.annotations import Annotations
from lightning_faces.__main__ import main as lightning_faces
from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.evaluation.records import read_record
from lightning_faces.geometry.alignment import apply_similarity, similarity_transform
from lightning_faces.geometry.landmarks import landmark_groups
from lightning_faces.heads.depth import standardize
from lightning_faces.methods import Zhao2016
from lightning_faces.metrics.functional import average_point_error, ground_truth_error
from lightning_faces.rendering.synthesis import SynthesisOptions
from lightning_faces.targets import CHEAP_TARGETS, target_shapes

RUNS = Path("runs/zhao2016_protocols")
STAND_INS = Path("cache/stand_ins")
IMAGE_CONFIG = "configs/experiment/zhao2016_3dfaw.yaml"
DEPTH_CONFIGS = {
    "depth-paper": ["configs/experiment/zhao2016_depth.yaml"],
    "depth-paper-linear": ["configs/experiment/zhao2016_depth.yaml"],
    "depth-adamw-tanh": ["configs/experiment/zhao2016_depth.yaml", "configs/experiment/zhao2016_depth_adamw.yaml"],
    "depth-adamw-linear": ["configs/experiment/zhao2016_depth.yaml", "configs/experiment/zhao2016_depth_adamw.yaml"],
}
KEPT_66 = [group[0] for group in landmark_groups("66")]
# The stand-in's own choice, as the real 45 are not published: no jaw, and of the inner lip the two middle points.
SHARED_45 = [*range(17, 60), 62, 66]


# The data: real ones, or stand-ins that are called so in records.


class StandInFor3DFAW(ThreeDFAW):
    """Rendered faces in the shape of 3DFAW."""


class StandInForBP4D(BP4D):
    """Rendered faces in the shape of BP4D-S."""


class _Memory(Dataset[FaceBatch]):
    """Batches by lists of rows."""

    def __init__(self, faces: FaceBatch) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces["index"])

    def __getitem__(self, rows: list[int]) -> FaceBatch:
        chosen: dict[str, Any] = {k: v[rows] for k, v in self.faces.items() if isinstance(v, Tensor)}
        chosen["sample_id"] = [self.faces["sample_id"][row] for row in rows]
        chosen["has"] = {key: value[rows] for key, value in self.faces["has"].items()}
        return cast("FaceBatch", chosen)


class _InMemory(ThreeDFAW):
    """Training and validation batches from memory: the depth network looks at landmarks alone, never at a picture."""

    _read: ClassVar[dict[tuple[str, int], _Memory]] = {}
    """What this process has read, by the fingerprint of the faces."""

    def _batches(self, split: str) -> DataLoader[FaceBatch]:
        dataset = self._dataset(split)
        key = (dataset.fingerprint(), self.image_size)
        if key not in self._read:
            samples = dataset.samples(range(len(dataset)))
            self._read[key] = _Memory(collate_faces(samples, target_shapes(dataset.targets, self.spec)))
        memory = self._read[key]
        training = split == "train"
        order: Any = RandomSampler(memory) if training else SequentialSampler(memory)
        return DataLoader(memory, batch_size=None, sampler=BatchSampler(order, self.batch_size, drop_last=training))

    def train_dataloader(self) -> DataLoader[FaceBatch]:
        return self._batches("train")

    def val_dataloader(self) -> DataLoader[FaceBatch]:
        return self._batches("val")


class LandmarksOf3DFAW(_InMemory):
    """3DFAW for the depth network."""


class LandmarksOfStandInFor3DFAW(_InMemory):
    """The stand-in for the depth network."""


def write_stand_in(folder: Path, module: SyntheticFaces, count: int, points: list[int]) -> None:
    """Write rendered faces in the import layout, unless they are there.

    Args:
        folder: Where ``annotations.npz`` and the pictures go.
        module: Its first training faces are taken.
        count: Number of faces.
        points: Which of the 68 points the table holds.
    """
    if (folder / "annotations.npz").exists():
        return
    faces = module.make_dataset("train", CHEAP_TARGETS)
    assert faces is not None
    folder.mkdir(parents=True, exist_ok=True)
    names, landmarks, boxes, yaw, subject, view = [], [], [], [], [], []
    for index in range(count):
        face = faces.read(index)
        names.append(f"{index:05d}.jpg")
        cv2.imwrite(str(folder / names[-1]), face.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        landmarks.append(face.targets["landmarks"][points].astype(np.float64))
        boxes.append(face.box)
        yaw.append(float(face.targets["yaw"]))
        subject.append(face.numbers["subject"])
        view.append(face.numbers["view"])
    Annotations(
        path=folder / "annotations.npz", file=names, landmarks=np.stack(landmarks), box=np.stack(boxes),
        yaw=np.array(yaw), numbers={"subject": np.array(subject), "view": np.array(view)},
    ).save()  # fmt: skip


def write_stand_ins(root: Path) -> None:
    """3DFAW's 18,694 from the faces of zhao2016_losses.yaml, one view each; BP4D-S's are drawn from 1,800 others."""
    cached = SyntheticFaces(train_size=20_000, image_size=64, cache_dir="cache/synthetic")
    write_stand_in(root / "3DFAW", cached, 18_694, KEPT_66)
    narrow = SynthesisOptions(yaw_range=30.0, yaw_uniform=1.0, pitch_std=8.0, roll_std=8.0)
    others = SyntheticFaces(train_size=1_800, image_size=64, synthesis=narrow, seed=1)
    write_stand_in(root / "BP4D-S", others, 1_800, SHARED_45)
    (root / "BP4D-S" / "mapping.json").write_text(json.dumps(SHARED_45))


# The protocols.


def train_and_score(name: str, fit: list[str], tests: dict[str, list[str]], checkpoint: str) -> Path:
    """One run and its records, as far as they are not there; its checkpoint."""
    folder = RUNS / name
    path = folder / "checkpoints" / checkpoint
    if not (folder / "training.json").exists():
        lightning_faces(["fit", *fit, "--experiment", RUNS.name, "--name", name])
    for dataset, options in tests.items():
        if not list(folder.glob(f"records/{dataset.lower()}-*.json")):
            lightning_faces(["test", *options, "--ckpt_path", str(path)])
    return path


def mean_and_interval(values: NDArray[np.float64], unit: float = 100.0) -> str:
    low, high = interval(bootstrap_means(values[:, None])[:, 0])
    return f"{unit * values.mean():.2f} [{unit * low:.2f}, {unit * high:.2f}]"


def depth_errors(points: Tensor, guess: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
    """GTE ``[N]`` of true 2D landmarks with depths that ``guess`` makes from the standardised points ``[N, 66, 3]``."""
    standard, _, scale = standardize(points)
    with torch.no_grad():
        depth = guess(standard)
    predicted = torch.cat((points[..., :2], depth[..., None] * scale), dim=-1)
    return ground_truth_error(predicted, points).numpy()


def depth(root: Path, real: bool) -> None:
    """Depth from true 2D landmarks, the printed form and others, on the split and on AFLW2000-3D's sample."""
    data = LandmarksOf3DFAW if real else LandmarksOfStandInFor3DFAW
    options = ["--data", data.__name__, "--data.root", str(root / "3DFAW")]
    paths = {}
    for name, configs in DEPTH_CONFIGS.items():
        fit = [part for config in configs for part in ("--config", config)]
        fit += [*options, "--model.init_args.depth_output", "linear" if name.endswith("linear") else "tanh"]
        test = ["--config", configs[0], *options]
        paths[name] = train_and_score(name, fit, {data.__name__: test}, "best.ckpt")
    module = data(root=str(root / "3DFAW"))
    split: Any = module.make_dataset("test", CHEAP_TARGETS)
    sets = {data.__name__: torch.from_numpy(split.table.landmarks[split.rows]).float()}
    if os.environ.get("LIGHTNING_FACES_DATA"):
        photographs = AFLW20003D().make_dataset("test", CHEAP_TARGETS)
        assert photographs is not None
        faces = [photographs.read(i).targets["landmarks"][KEPT_66] for i in range(len(photographs))]
        sets["AFLW2000-3D"] = torch.from_numpy(np.stack(faces)).float()
    for name, points in sets.items():
        z = standardize(points)[0][..., 2]
        beyond = 100 * float((z.abs() > 1).float().mean())
        print(f"\n{name}: {len(points)} faces, {beyond:.1f} % of the standardised depths are beyond 1")
        print(f"  GTE of no depth                 {mean_and_interval(depth_errors(points, lambda p: 0 * p[..., 2]))}")
        least = depth_errors(points, lambda p: p[..., 2].clamp(-1, 1))
        print(f"  least GTE within tanh's range   {mean_and_interval(least)}")
        for form, path in paths.items():
            head = Zhao2016.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval().depth_head
            errors = depth_errors(points, lambda p, head=head: head.standard_depth(p[..., :2]))
            print(f"  {form:31s} {mean_and_interval(errors)}")
    for name in paths:
        for path in (RUNS / name / "records").glob("*.json"):
            record = read_record(path)
            gte = 100 * record.metrics["gte"].value
            print(f"{record.run} {record.dataset}: best after {record.training.epochs} epochs, GTE {gte:.2f}")


def image(root: Path, real: bool) -> Path:
    """From photographs: GTE, and CVGTCE where the table has several views of a subject (the stand-in has one)."""
    data = "ThreeDFAW" if real else "StandInFor3DFAW"
    options = ["--config", IMAGE_CONFIG, "--data", data, "--data.root", str(root / "3DFAW")]
    path = train_and_score("image", options, {data: options}, "last.ckpt")
    for record in map(read_record, sorted((RUNS / "image" / "records").glob(f"{data.lower()}-*.json"))):
        for metric in ("gte", "cvgtce", "cvgtce_printed", "nme"):
            if metric in record.metrics:
                m = record.metrics[metric]
                shown = f"{100 * m.value:.2f} [{100 * m.low:.2f}, {100 * m.high:.2f}]"
                print(f"{record.dataset} {metric} {shown}, {m.samples} faces")
    return path


def mean_face(faces: Tensor) -> Tensor:
    """Mean of faces ``[N, L, 3]`` up to similarities (generalised Procrustes), ``[L, 3]``."""
    mean = faces[0]
    for _ in range(10):
        mean = apply_similarity(faces, *similarity_transform(faces, mean.expand_as(faces))).mean(dim=0)
    return mean


def bp4d(root: Path, real: bool) -> None:
    """Across data sets: APE of the network of ``image``, against the 3D mean face of BP4D-S's own samples.

    The paper says neither the unit nor how the mean face is placed. Both are brought onto the truth by a similarity.
    """
    data = BP4D if real else StandInForBP4D
    options = ["--data", data.__name__, "--data.root", str(root / "BP4D-S"), "--data.landmark_scheme", "66"]
    options += ["--data.image_size", "64"]
    image(root, real)
    path = train_and_score("image", [], {data.__name__: options}, "last.ckpt")
    method = Zhao2016.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    module = data(root=str(root / "BP4D-S"), landmark_scheme="66", image_size=method.image_size, num_workers=0)
    module.setup("test")
    batches = list(module.test_dataloader())
    with torch.no_grad():
        predicted = torch.cat([method.predict_faces(batch).landmarks for batch in batches])
    true = torch.cat([batch["landmarks"] for batch in batches])
    shared = batches[0]["landmark_mask"][0].all(dim=-1)
    predicted, true = predicted[:, shared].double(), true[:, shared].double()
    mean = mean_face(true).expand_as(true)
    print(f"\n{data.__name__}: {len(true)} faces, {true.shape[1]} points, pixels of a crop of {method.image_size}")
    errors = {}
    for name, points in (("Zhao2016", predicted), ("3D mean face", mean)):
        errors[name] = average_point_error(points, true, depth="similarity").numpy()
        print(f"  APE after a similarity, {name:13s} {mean_and_interval(errors[name], 1.0)}")
    print(f"  difference {mean_and_interval(errors['Zhao2016'] - errors['3D mean face'], 1.0)}")
    raw = average_point_error(predicted, true, depth="mean").numpy()
    print(f"  APE as predicted (mean depth removed), Zhao2016 {mean_and_interval(raw, 1.0)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=["depth", "image", "bp4d"])
    parser.add_argument("--root", type=Path, help="folder with 3DFAW and BP4D-S in the import layout")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    root = (options.root or STAND_INS).expanduser().resolve()
    if options.root is None:
        write_stand_ins(root)
    {"depth": depth, "image": image, "bp4d": bp4d}[options.protocol](root, options.root is not None)


if __name__ == "__main__":
    main()
