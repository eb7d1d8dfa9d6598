"""One network for many tasks against one for each, and what a step costs beside a plain PyTorch loop.

    python benchmarks/multitask.py [--seeds S ...] [--variants V ...] [--step]

Trains configs/method/multitask.yaml (20,000 faces, 4 epochs) with all heads, and with one head alone on the same
backbone for as many steps, once per variant and seed into runs/multitask/, and scores each last checkpoint on the
synthetic test faces and, where LIGHTNING_FACES_DATA holds AFLW2000-3D, on those photographs. Runs that exist are kept,
so seeds can be added later. Prints values with 95 % bootstrap intervals over faces, paired differences, and the facial
actions from the worst on. With --step it measures the overhead of a training step instead.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from experiment import difference_over_faces, evaluations, print_values, score, train
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from datamodules import SyntheticFaces
from lightning_faces.batch import FaceBatch
from lightning_faces.evaluation.scorer import Scorer, shared_model
from lightning_faces.evaluation.scores import SCORES
from lightning_faces.methods import MultiTask
from lightning_faces.methods.base import term_means, weighted_sum
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.metrics import FacialActionError

CONFIG = "configs/method/multitask.yaml"
RUNS = Path("runs/multitask")
SINGLES = ("landmarks", "coefficients", "position_map")
METRICS = {
    "landmarks": ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean"),
    "coefficients": ("nme", "geometry_mm", "action_error", "pose_error", "dense_nme"),
    "position_map": ("nme", "nme_3d_mean", "dense_nme"),
    "fusion": ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "dense_nme", "visibility_error"),
}
"""What is printed of each prediction."""
STEPS = 60


def heads(*names: str) -> dict[str, Any]:
    """Heads of the configuration with their options."""
    chosen = yaml.safe_load(Path(CONFIG).read_text())["model"]["init_args"]["heads"]
    return {name: chosen[name] for name in names or chosen}


def variants() -> dict[str, list[str]]:
    """Options of each training beside the configuration."""
    alone = {name: ["--model.init_args.heads", json.dumps(heads(name))] for name in SINGLES}
    weights = ["--model.init_args.weights", "{}", "--model.init_args.gradient_interval", "0"]
    return {"all": [], **{name: [*options, *weights] for name, options in alone.items()}}


def rows(dataset: str, variant: str, prediction: str) -> dict[int, Any]:
    """Record and table of each seed."""
    found = evaluations(RUNS, prediction)
    return found.get((dataset, variant), {})


def show() -> None:
    """Values of each head, seeds averaged, and the differences of one network for all from one for each."""
    for dataset in sorted({dataset for dataset, _ in evaluations(RUNS, "fusion")}):
        for prediction, metrics in METRICS.items():
            together = rows(dataset, "all", prediction)
            alone = rows(dataset, prediction, prediction)
            for name, runs in (("all", together), ("alone", alone)):
                if not runs:
                    continue
                print(f"\n{dataset}, {prediction} of the network for {name}, seeds {sorted(runs)}")
                print_values(metrics, runs)
            both = sorted(together.keys() & alone.keys())
            for metric in metrics if both else ():
                if metric in together[both[0]][1] and metric in alone[both[0]][1]:
                    pairs = [together[seed][1][metric] - alone[seed][1][metric] for seed in both]
                    factor = 100 if together[both[0]][0].metrics[metric].unit == "fraction" else 1
                    mean, low, high = (factor * value for value in difference_over_faces(pairs))
                    per_seed = ", ".join(f"{factor * pair.mean():+.2f}" for pair in pairs)
                    print(f"  all minus alone: {metric:16s} {mean:+.2f} [{low:+.2f}, {high:+.2f}], by seed {per_seed}")


def actions(checkpoint: Path) -> None:
    """Mean absolute error of each facial action on the synthetic test faces, the worst first, beside that of 0."""
    method = load_method(checkpoint)
    assert isinstance(method, MultiTask) and method.face_model is not None
    options = yaml.safe_load(Path(CONFIG).read_text())["data"]["init_args"]
    data = SyntheticFaces(**{**options, "augmentation": None, "num_workers": 0})
    data.setup("test")
    names = method.face_model.expression_names
    found, still = FacialActionError(names), FacialActionError(names)
    scorer = Scorer([row for row in SCORES if row.name == "action_error"], shared_model(method, data))
    with torch.no_grad():
        for batch in data.test_dataloader():
            faces = method.predict_faces(batch)
            scorer.update(faces, batch)
            assert faces.coefficients is not None
            true = batch["coefficients"][:, method.face_model.num_identity :]
            found.update(faces.coefficients[:, method.face_model.num_identity :], true, batch["index"])
            still.update(torch.zeros_like(true), true, batch["index"])
    rest = still.per_action()
    print(f"\nfacial actions, mean absolute error (of the face at rest): {scorer.gather().notes[-1]}")
    for name, error in found.per_action().items():
        print(f"  {name:20s} {error:.3f} ({rest[name]:.3f}) moves {movement(method, name):.2f} mm at most")


def movement(method: MultiTask, action: str) -> float:
    """How far the full action moves the vertex that it moves most, millimetres."""
    assert method.face_model is not None
    mode = method.face_model.expression_basis[method.face_model.expression_names.index(action)]
    return float(mode.norm(dim=-1).max())


class Clock(Callback):
    """CPU and wall time of steps after the first ten."""

    def __init__(self) -> None:
        self.starts: list[tuple[float, float]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append((time.process_time(), time.perf_counter()))

    def times(self) -> np.ndarray[Any, Any]:
        """Milliseconds ``[N, 2]`` of CPU and wall time."""
        return 1e3 * np.diff(np.array(self.starts[10:]), axis=0)


def step_overhead() -> None:
    """A step of the Trainer with all its defaults off but the method's own logging, against a plain loop."""
    torch.set_num_threads(1)
    results: dict[str, list[float]] = {"plain": [], "trainer": []}
    for repeat in range(3):
        for kind in ("plain", "trainer"):
            torch.manual_seed(0)
            method = MultiTask(
                64, "resnet18", {"channels": [24, 48, 96, 192]},
                heads={name: options for name, options in heads().items() if name != "position_map"},
            )  # fmt: skip
            batch = next(iter(batches()))
            times = (plain if kind == "plain" else trained)(method, batch)
            results[kind].append(float(np.median(times[:, 0])))
            print(f"  {kind}, repeat {repeat + 1}: {results[kind][-1]:.2f} ms of CPU time", flush=True)
    plain_ms, trainer_ms = min(results["plain"]), min(results["trainer"])
    print(f"step: plain {plain_ms:.2f} ms, Trainer {trainer_ms:.2f} ms, {100 * (trainer_ms / plain_ms - 1):+.1f} %")


def batches() -> Any:
    """Batches of 12 faces of 64 pixels."""
    data = SyntheticFaces(train_size=12, val_size=1, test_size=1, image_size=64, batch_size=12, num_workers=0)
    data.setup("fit")
    return data.train_dataloader()


def plain(method: MultiTask, batch: FaceBatch) -> np.ndarray[Any, Any]:
    clock = Clock()
    optimizer = torch.optim.AdamW(method.train().parameters(), lr=1e-3)
    for _ in range(STEPS):
        clock.on_train_batch_start()
        terms = method.terms(batch)
        loss = weighted_sum(terms, term_means(terms))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return clock.times()


def trained(method: MultiTask, batch: FaceBatch) -> np.ndarray[Any, Any]:
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, callbacks=[clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method.train(), DataLoader([batch] * STEPS, batch_size=None))
    return clock.times()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="training seeds (default 1)")
    parser.add_argument("--variants", nargs="*", default=None, help=f"only these of all, {', '.join(SINGLES)}")
    parser.add_argument("--step", action="store_true", help="measure a step")
    chosen = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    if chosen.step:
        step_overhead()
        return
    for seed in chosen.seeds:
        for variant, options in variants().items():
            if chosen.variants is None or variant in chosen.variants:
                folder = RUNS / f"{variant}-seed{seed}"
                own = ["--seed_everything", str(seed), *options]
                score(folder, CONFIG, train(folder, CONFIG, *own), *own)
    show()
    checkpoint = RUNS / f"all-seed{chosen.seeds[0]}" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        actions(checkpoint)


if __name__ == "__main__":
    main()
