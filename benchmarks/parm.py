"""PARM against PRM, PCLM and LBF: errors by stage (tables 1 and 2, figure 2), time of training, speed, memory.

    python benchmarks/parm.py train [--faces N] [--seeds S ...] [--variants V ...]
    python benchmarks/parm.py show  [--faces N]
    python benchmarks/parm.py speed

`train` fits configs/method/parm.yaml once per variant and seed on the first N of its synthetic faces into runs/parm_N/,
and the mean-landmark baseline on the same crops, and scores each on the synthetic test faces and, where
LIGHTNING_FACES_DATA holds AFLW2000-3D, on those photographs. Runs that exist are kept, so seeds can be added later.
`show` prints means over seeds with 95 % bootstrap intervals over faces, and the differences of PARM to the others,
paired by face, seeds averaged. `speed` measures CPU time on one thread: image and box to parameters and vertices.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from experiment import difference_over_faces, score, train
from numpy.typing import NDArray
from timing import median_seconds

from lightning_faces.evaluation.records import Record, read_record, read_samples
from lightning_faces.methods import PARM

CONFIG = "configs/method/parm.yaml"
BASELINE = "configs/method/mean_landmarks.yaml"
RUNS = "runs/parm_{faces}"
VARIANTS = ("pclm", "prm", "parm", "lbf")
PERCENT = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "nme_3d_mean")
PARAMETERS = ("pose_error", "identity_error", "expression_error")


class Row(NamedTuple):
    """A record with the errors of its samples."""

    record: Record
    samples: dict[str, NDArray[np.float64]]


def rows(runs: Path) -> dict[tuple[str, str, str], dict[int, Row]]:
    """Records of runs named ``VARIANT-seedN``: by data set, variant and prediction, then by seed."""
    found: dict[tuple[str, str, str], dict[int, Row]] = {}
    for path in sorted(runs.glob("*-seed*/records/*.json")):
        variant, seed = path.parent.parent.name.split("-seed")
        record = read_record(path)
        key = (record.dataset, variant, record.prediction)
        found.setdefault(key, {})[int(seed)] = Row(record, read_samples(path, record))
    return found


def show(runs: Path) -> None:
    """By data set and stage: means over seeds with intervals, and PARM minus the others."""
    found = rows(runs)
    for dataset in sorted({dataset for dataset, _, _ in found}):
        for prediction in sorted({p for d, _, p in found if d == dataset}):
            print(f"\n{dataset}, {prediction or 'baseline'}")
            for variant in ("mean", *VARIANTS):
                runs_of = found.get((dataset, variant, prediction), {})
                if not runs_of:
                    continue
                print(
                    f"  {variant}, seeds {sorted(runs_of)}, {next(iter(runs_of.values())).record.training.samples_seen}"
                )
                for metric in (*PERCENT, *PARAMETERS):
                    values = [row.record.metrics[metric] for row in runs_of.values() if metric in row.record.metrics]
                    if not values:
                        continue
                    factor = 100 if metric in PERCENT else 1
                    line = f"    {metric:16s} {factor * np.mean([v.value for v in values]):7.3f}  "
                    line += "  ".join(f"[{factor * v.low:.3f}, {factor * v.high:.3f}]" for v in values)
                    ours = found.get((dataset, "parm", prediction), {})
                    both = sorted(ours.keys() & runs_of.keys())
                    if variant in ("pclm", "prm", "lbf") and both and metric in ("nme", *PARAMETERS):
                        pairs = [ours[seed].samples[metric] - runs_of[seed].samples[metric] for seed in both]
                        mean, low, high = difference_over_faces(pairs)
                        line += (
                            f"  parm minus {variant} {factor * mean:+.3f} [{factor * low:+.3f}, {factor * high:+.3f}]"
                        )
                    print(line)
    minutes = {path.parent.name: path.read_text().strip() for path in sorted(runs.glob("*/cpu_minutes.txt"))}
    print("\nCPU minutes of training:", ", ".join(f"{name} {value}" for name, value in minutes.items()))


def speed() -> None:
    """Faces per second of each variant at the shipped sizes; the regressors' values do not matter for it."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.rand((64, 3, 64, 64), generator=generator),
        "box": torch.tensor([[8.0, 8.0, 55.0, 55.0]]).expand(64, -1),
    }
    first = {key: value[:1] for key, value in batch.items()}

    def predict(method: PARM, faces: dict[str, torch.Tensor]) -> Callable[[], object]:
        return lambda: method.predict_faces(faces)  # type: ignore[arg-type]

    for variant in VARIANTS:
        method = PARM(variant=variant, tree_depth=4)  # type: ignore[arg-type]
        method.passes += method.num_stages + 1
        method.start[0] = 0.007
        with torch.inference_mode():
            together = 64 / median_seconds(predict(method, batch), 20)
            alone = 1 / median_seconds(predict(method, first), 100)
        print(f"{variant:5s} 5 stages: {together:6.0f} faces/s in batches of 64, {alone:6.0f} at batch 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "show", "speed"))
    parser.add_argument("--faces", type=int, default=4000, help="training faces (default 4000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of trees and sites (default 1)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="only these")
    chosen = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    runs = Path(RUNS.format(faces=chosen.faces))
    if chosen.what == "speed":
        speed()
        return
    if chosen.what == "train":
        size = f"--data.init_args.train_size={chosen.faces}"
        folder = runs / "mean-seed1"
        score(folder, CONFIG, train(folder, CONFIG, "--config", BASELINE, size), "--config", BASELINE)
        for seed in chosen.seeds:
            for variant in chosen.variants:
                folder = runs / f"{variant}-seed{seed}"
                options = [size, f"--model.init_args.seed={seed}", f"--model.init_args.variant={variant}"]
                score(folder, CONFIG, train(folder, CONFIG, *options), *options)
    show(runs)


if __name__ == "__main__":
    main()
