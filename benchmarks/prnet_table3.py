"""Table 3 of PRNet: three weight ratios on one cached synthetic set, and what each does to sparse and dense errors.

    python benchmarks/prnet_table3.py [--seeds S ...] [--ratios R ...]

Trains configs/experiment/prnet_table3.yaml (20,000 faces, 3 epochs, less than 8 minutes on 2 cores) once per ratio and
seed into runs/prnet_table3/, scores each last checkpoint on the synthetic test faces and, where LIGHTNING_FACES_DATA
holds AFLW2000-3D, on those photographs. Runs that exist are kept, so seeds can be added later. Prints the values with
95 % bootstrap intervals over faces, and the difference of each ratio to 1:1:1:0 paired by face, seeds averaged.
Dense errors are over the face without the neck for all three.
"""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_faces.__main__ import main as lightning_faces
from lightning_faces.bootstrap import bootstrap_means, interval
from lightning_faces.records import Record, read_record, read_samples, write_atomic

CONFIG = "configs/experiment/prnet_table3.yaml"
RUNS = Path("runs/prnet_table3")
RATIOS = {"1-1-1-1": (1, 1, 1, 1), "1-1-1-0": (1, 1, 1, 0), "16-4-3-0": (16, 4, 3, 0)}
REFERENCE = "1-1-1-0"
METRICS = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_3d_mean", "dense_nme", "dense_nme_3d", "vertex_mm")
COMPARED = ("nme", "nme_3d_mean", "dense_nme", "dense_nme_3d")


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def train(folder: Path, ratios: tuple[int, ...], seed: int) -> Path:
    """One run, unless it is there already; its last checkpoint."""
    if not (folder / "training.json").exists():
        started = cpu_seconds()
        lightning_faces(
            [
                "fit", "--config", CONFIG, "--experiment", RUNS.name, "--name", folder.name, "--ckpt_path", "last",
                "--seed_everything", str(seed), "--model.init_args.weight_ratios", str(list(ratios)),
            ]
        )  # fmt: skip
        write_atomic(folder / "cpu_minutes.txt", f"{(cpu_seconds() - started) / 60:.1f}\n".encode())
    return folder / "checkpoints" / "last.ckpt"


def score(folder: Path, checkpoint: Path) -> None:
    """The records of a run, unless they are there already."""
    data = {"syntheticfaces": ["--config", CONFIG]}
    if os.environ.get("LIGHTNING_FACES_DATA"):
        data["aflw2000"] = ["--data", "AFLW20003D", "--data.image_size", "64"]
    for name, options in data.items():
        if not list(folder.glob(f"records/{name}*.json")):
            lightning_faces(["test", *options, "--ckpt_path", str(checkpoint)])


def show() -> None:
    """Means over seeds with intervals, and paired differences, in percent (``vertex_mm`` in millimetres)."""
    found: dict[tuple[str, str], dict[int, tuple[Record, dict[str, NDArray[np.float64]]]]] = {}
    for path in sorted(RUNS.glob("*/records/*.json")):
        ratio, seed = path.parent.parent.name.split("-seed")
        record = read_record(path)
        found.setdefault((record.dataset, ratio), {})[int(seed)] = (record, read_samples(path, record))
    for dataset in sorted({dataset for dataset, _ in found}):
        for ratio in RATIOS:
            runs, plain = found.get((dataset, ratio), {}), found.get((dataset, REFERENCE), {})
            if not runs:
                continue
            seen = sorted({record.training.samples_seen for record, _ in runs.values()})
            print(f"\n{dataset}, {ratio.replace('-', ':')}, seeds {sorted(runs)}, {seen} samples seen")
            for metric in METRICS:
                values = [record.metrics[metric] for record, _ in runs.values() if metric in record.metrics]
                if not values:
                    continue
                factor = 1 if metric == "vertex_mm" else 100
                line = f"  {metric:12s} {factor * np.mean([v.value for v in values]):6.2f}  "
                line += "  ".join(f"[{factor * v.low:.2f}, {factor * v.high:.2f}]" for v in values)
                both = sorted(runs.keys() & plain.keys())
                if ratio != REFERENCE and metric in COMPARED and both:
                    difference = np.mean([runs[s][1][metric] - plain[s][1][metric] for s in both], axis=0)
                    low, high = interval(bootstrap_means(difference[:, None])[:, 0])
                    line += f"  minus {REFERENCE.replace('-', ':')} {100 * difference.mean():+.2f}"
                    line += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
                print(line)
    minutes = {path.parent.name: path.read_text().strip() for path in sorted(RUNS.glob("*/cpu_minutes.txt"))}
    print("\nCPU minutes of training:", ", ".join(f"{name} {value}" for name, value in minutes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    parser.add_argument("--ratios", nargs="+", choices=RATIOS, default=list(RATIOS), help="only these weight ratios")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    for seed in options.seeds:
        for ratio in options.ratios:
            folder = RUNS / f"{ratio}-seed{seed}"
            score(folder, train(folder, RATIOS[ratio], seed))
    show()


if __name__ == "__main__":
    main()
