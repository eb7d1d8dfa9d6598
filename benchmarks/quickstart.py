"""The quick start: train the baseline and Zhao 2016 on synthetic faces, score both, and compare them.

Runs the very commands that a user would type, in one process so that the libraries load once. Where
LIGHTNING_FACES_DATA holds AFLW2000-3D, the methods are scored on those photographs too. Fails if Zhao 2016 does not
beat the baseline at least 3 times on the synthetic test faces.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

DATA = ["--config", "configs/data/synthetic_64.yaml"]
METHODS = {"baseline": "configs/method/mean_landmarks.yaml", "zhao2016": "configs/quickstart.yaml"}
RUNS = Path("runs/quickstart")
LEAST_RATIO = 3.0


def run(*args: str) -> None:
    """Run one command line, shown first."""
    from lightning_faces.__main__ import main

    print(f"\n$ lightning-faces {shlex.join(args)}", flush=True)
    main(args)


def main() -> None:
    started = time.monotonic()
    os.chdir(Path(__file__).resolve().parent.parent)
    shutil.rmtree(RUNS, ignore_errors=True)
    data = [DATA]
    if os.environ.get("LIGHTNING_FACES_DATA"):
        data.append(["--data", "AFLW20003D", "--data.image_size", "64"])
    for name, config in METHODS.items():
        run("fit", *DATA, "--config", config, "--experiment", RUNS.name, "--name", name)
        for scored in data:
            run("test", *scored, "--ckpt_path", str(RUNS / name / "checkpoints" / "best.ckpt"))
    table = RUNS / "leaderboard.csv"
    run("leaderboard", str(RUNS), "--csv", str(table), "--html", str(RUNS / "leaderboard.html"))
    print("\nTo look at:")
    for path in (
        sorted(RUNS.glob("*/pictures/*.png")) + sorted(RUNS.glob("*/metrics.csv")) + sorted(RUNS.glob("*.html"))
    ):
        print(f"  {path}")
    with table.open(newline="") as file:
        nme = {
            row["method"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "nme" and row["dataset"] == "SyntheticFaces"
        }
    ratio = nme["MeanLandmarks"] / nme["Zhao2016"]
    print(f"\nZhao 2016 is {ratio:.1f} times better than the baseline ({time.monotonic() - started:.0f} s in all).")
    if ratio < LEAST_RATIO:
        sys.exit(f"That is less than the {LEAST_RATIO:.0f} times that this configuration is known to reach.")


if __name__ == "__main__":
    main()
