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
from pathlib import Path

import numpy as np
from experiment import difference_over_faces, evaluations, score, train

CONFIG = "configs/experiment/prnet_table3.yaml"
RUNS = Path("runs/prnet_table3")
RATIOS = {"1-1-1-1": (1, 1, 1, 1), "1-1-1-0": (1, 1, 1, 0), "16-4-3-0": (16, 4, 3, 0)}
REFERENCE = "1-1-1-0"
METRICS = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_3d_mean", "dense_nme", "dense_nme_3d", "vertex_mm")
COMPARED = ("nme", "nme_3d_mean", "dense_nme", "dense_nme_3d")


def show() -> None:
    """Means over seeds with intervals, and paired differences, in percent (``vertex_mm`` in millimetres)."""
    found = evaluations(RUNS)
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
                    pairs = [runs[seed][1][metric] - plain[seed][1][metric] for seed in both]
                    mean, low, high = difference_over_faces(pairs)
                    line += f"  minus {REFERENCE.replace('-', ':')} {100 * mean:+.2f}"
                    line += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
                print(line)
    minutes = {path.parent.name: path.read_text().strip() for path in sorted(RUNS.glob("*/cpu_minutes.txt"))}
    print("\nCPU minutes of training:", ", ".join(f"{name} {value}" for name, value in minutes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    parser.add_argument("--ratios", nargs="+", choices=RATIOS, default=list(RATIOS), help="only these weight ratios")
    chosen = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    for seed in chosen.seeds:
        for ratio in chosen.ratios:
            folder = RUNS / f"{ratio}-seed{seed}"
            options = ["--seed_everything", str(seed), "--model.init_args.weight_ratios", str(list(RATIOS[ratio]))]
            score(folder, CONFIG, train(folder, CONFIG, *options))
    show()


if __name__ == "__main__":
    main()
