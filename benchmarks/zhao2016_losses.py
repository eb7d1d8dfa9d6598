"""The 2D losses of Zhao 2016 on one cached synthetic set: pairwise distances (eq. 4), error differences (3), neither.

    python benchmarks/zhao2016_losses.py [--seeds S ...] [--losses none distances errors]
    python benchmarks/zhao2016_losses.py --seeds 3 --weights 0.1 --losses distances

Trains configs/experiment/zhao2016_losses.yaml (20,000 faces, 3 epochs, less than 2 minutes on 2 cores) once per loss
and seed into runs/zhao2016_losses/, scores each last checkpoint on the synthetic test faces and, where
LIGHTNING_FACES_DATA holds AFLW2000-3D, on those photographs. Runs that exist are kept, so seeds can be added later.
Prints means over seeds, and the difference to "none" paired by face and seed, with two 95 % intervals: over faces
(bootstrap of the faces, seeds averaged) and over seeds (Student's t of the seeds' differences).

The paper gives no weight of the second term: it has 1 here, the plain sum, and was not tuned. ``--weights`` adds runs
of other weights, to see whether the weight is the cause of what is found.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
from pathlib import Path

import numpy as np
from experiment import difference_over_faces, evaluations, score, train
from numpy.typing import NDArray
from scipy import stats

CONFIG = "configs/experiment/zhao2016_losses.yaml"
RUNS = Path("runs/zhao2016_losses")
TERMS = ("none", "distances", "errors")
METRICS = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "gte")


def history(folder: Path) -> list[float]:
    """Validation NME after each epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["val/nme"]) for row in csv.DictReader(file) if row["val/nme"]]


def seed_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of the seeds' differences ``[S]`` by Student's t."""
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - half), float(differences.mean() + half)


def show() -> None:
    """Means over seeds, and paired differences to "none", in percent."""
    found = evaluations(RUNS)
    for dataset, name in sorted(found, key=lambda key: (key[0], TERMS.index(key[1].split("-")[0]), key[1])):
        plain, runs = found.get((dataset, "none"), {}), found[dataset, name]
        shared = runs.keys() & plain.keys()
        seeds = sorted(seed for seed in shared if runs[seed][0].fingerprint == plain[seed][0].fingerprint)
        if seeds:
            seen = {runs[seed][0].training.samples_seen for seed in seeds}
            print(f"\n{dataset}, {name}, seeds {seeds}, {sorted(seen)} samples seen")
            for metric in METRICS:
                values = np.array([runs[seed][0].metrics[metric].value for seed in seeds])
                line = f"  {metric:10s} {100 * values.mean():6.2f}  ({', '.join(f'{100 * v:.2f}' for v in values)})"
                if name != "none" and metric in ("nme", "gte"):
                    pairs = [runs[seed][1][metric] - plain[seed][1][metric] for seed in seeds]
                    mean, low, high = difference_over_faces(pairs)
                    line += f"  minus none {100 * mean:+.2f}, faces [{100 * low:+.2f}, {100 * high:+.2f}]"
                    if len(seeds) > 1:
                        low, high = seed_interval(np.stack(pairs).mean(axis=1))
                        line += f", seeds [{100 * low:+.2f}, {100 * high:+.2f}]"
                print(line)
    print("\nvalidation NME after each epoch, mean over seeds")
    for name in sorted({name for _, name in found}):
        folders = [folder for folder in RUNS.glob(f"{name}-seed*") if (folder / "training.json").exists()]
        curves = [history(folder) for folder in folders]
        print(f"  {name:16s}", "  ".join(f"{100 * value:.2f}" for value in np.mean(curves, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="training seeds (default 1 2 3)")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[1.0], help="weights of the second term (default 1)"
    )
    parser.add_argument("--losses", nargs="+", choices=TERMS, default=TERMS, help="second terms (default all)")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    for seed, weight, term in itertools.product(options.seeds, options.weights, options.losses):
        name = term if weight == 1 or term == "none" else f"{term}-w{weight:g}"
        folder = RUNS / f"{name}-seed{seed}"
        second = ["--model.init_args.pairwise", term, "--model.init_args.pairwise_weight", str(weight)]
        score(folder, CONFIG, train(folder, CONFIG, "--seed_everything", str(seed), *second))
    show()


if __name__ == "__main__":
    main()
