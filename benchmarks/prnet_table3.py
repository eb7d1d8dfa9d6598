"""Table 3 of PRNet: three weight ratios on one cached synthetic set, and what each does to sparse and dense errors.

python benchmarks/prnet_table3.py [--epochs N] [--minutes M] [--seeds S ...]

Trains configs/experiment/prnet_table3.yaml once per ratio and seed, at most M minutes each (8 by default), into
runs/prnet_table3/, and scores each on the synthetic test faces and, where LIGHTNING_FACES_DATA holds AFLW2000-3D, on
those photographs. Runs that exist are kept, so more seeds or ratios can be added later. Prints the records.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lightning_faces.__main__ import main as lightning_faces
from lightning_faces.records import read_record

CONFIG = "configs/experiment/prnet_table3.yaml"
RUNS = Path("runs/prnet_table3")
RATIOS = {"1-1-1-1": (1, 1, 1, 1), "1-1-1-0": (1, 1, 1, 0), "16-4-3-0": (16, 4, 3, 0)}
METRICS = ("nme", "nme_3d_mean", "dense_nme", "dense_nme_3d", "nme_0_30", "nme_30_60", "nme_60_90")


def train_and_score(name: str, ratios: tuple[int, ...], seed: int, epochs: int, minutes: float) -> None:
    """One run and its records; a finished run is left as it is."""
    folder = RUNS / name
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        seconds = round(60 * minutes)
        steps = epochs * (20_000 // 16)
        lightning_faces(
            [
                "fit", "--config", CONFIG, "--experiment", RUNS.name, "--name", name, "--seed_everything", str(seed),
                "--trainer.max_epochs", str(epochs),
                "--trainer.max_time", f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
                "--model.init_args.weight_ratios", str(list(ratios)),
                "--model.init_args.lr_scheduler.init_args.T_max", str(steps),
            ]
        )  # fmt: skip
    if not list(folder.glob("records/*.json")):
        lightning_faces(["test", "--config", CONFIG, "--ckpt_path", str(checkpoint)])
        if os.environ.get("LIGHTNING_FACES_DATA"):
            photographs = ["--data", "AFLW20003D", "--data.image_size", "64"]
            lightning_faces(["test", *photographs, "--ckpt_path", str(checkpoint)])


def show() -> None:
    """Every record of the experiment: value with its 95 % interval, per cent."""
    for path in sorted(RUNS.glob("*/records/*.json")):
        record = read_record(path)
        found = [(name, record.metrics[name]) for name in METRICS if name in record.metrics]
        values = "  ".join(f"{k} {100 * m.value:.2f} [{100 * m.low:.2f}, {100 * m.high:.2f}]" for k, m in found)
        print(f"{record.run}  {record.dataset}  {record.training.samples_seen} samples  {values}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of 20,000 faces (default 2)")
    parser.add_argument("--minutes", type=float, default=8.0, help="most minutes of training per run (default 8)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    for seed in options.seeds:
        for name, ratios in RATIOS.items():
            train_and_score(f"{name}-seed{seed}", ratios, seed, options.epochs, options.minutes)
    show()


if __name__ == "__main__":
    main()
