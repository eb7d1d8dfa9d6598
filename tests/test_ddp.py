"""Several processes: what one process computes, they compute too; and they end together."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import SyntheticFaces
from datamodules.base import FaceDataModule
from lightning_faces.methods import MeanLandmarks, PRNet, Zhao2016
from lightning_faces.methods.base import FaceMethod
from tests.callbacks.training import trainer
from tests.fakes.noise_faces import NoiseFaces

ROOT = Path(__file__).resolve().parent.parent
FIT = [
    "fit", "--model=Zhao2016", "--model.image_size=32", "--model.hidden=8", "--model.channels=[2,2,2,2]",
    "--data=NoiseFaces", "--data.train_size=40", "--data.batch_size=4", "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.deterministic=true",
    "--trainer.enable_progress_bar=false", "--experiment=e", "--trainer.callbacks+=GracefulStop",
    "--trainer.callbacks.every_n_steps=1",
]  # fmt: skip


def start(args: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``lightning-faces`` in ``folder``, with the test data and callbacks."""
    return subprocess.run(
        [sys.executable, "-m", "tests.ddp_main", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


class Save(Callback):
    """Writes what each rank saw and computed; processes share nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["index"].tolist())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        torch.save(gradients, self.folder / f"gradient{trainer.global_step}-{trainer.global_rank}.pt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (self.folder / f"seen-{trainer.global_rank}.json").write_text(json.dumps(self.seen))


class FrozenStatistics(Callback):
    """Keeps the statistics of batch normalisation: several processes cannot have those of a batch on the CPU."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()


def zhao() -> FaceMethod:
    """The stage without batch normalisation."""
    return Zhao2016(
        image_size=32, hidden=8, channels=(2, 2, 2, 2), dropout=0.0, stage="depth", view_angles=(0.0, 0.0, 0.0),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip


def prnet() -> FaceMethod:
    """PRNet with the statistics of a batch, as after some training."""
    model = PRNet(image_size=32, width=2, optimizer=functools.partial(torch.optim.SGD, lr=1e-5))
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(16, 3, 32, 32))
    return model


METHODS: dict[str, Callable[[], FaceMethod]] = {
    "MeanLandmarks": MeanLandmarks, "Zhao2016": zhao, "rendered where it trains": zhao, "PRNet": prnet,
}  # fmt: skip


def faces(method: str, cache: Path, batch_size: int) -> FaceDataModule:
    """24 training, 17 validation and 13 test faces: uneven over ranks and batches."""
    sizes = {"train_size": 24, "val_size": 17, "test_size": 13, "batch_size": batch_size, "num_workers": 0}
    if method == "PRNet":
        # Rendered once: what is rendered in one batch may differ in the last bit from the same in another.
        return SyntheticFaces(image_size=32, position_map_size=32, cache_dir=str(cache), **sizes)
    if method == "rendered where it trains":
        return SyntheticFaces(image_size=32, render_on_device=True, **sizes)
    return NoiseFaces(**sizes)


def run(method: str, folder: Path, devices: int, batch_size: int) -> dict[str, float]:
    """Train and test; returns all metrics."""
    folder.mkdir()
    torch.manual_seed(3)
    model, data = METHODS[method](), faces(method, folder.parent / "cache", batch_size)
    strategy = "ddp_fork" if devices > 1 else "auto"
    options: dict[str, Any] = {"devices": devices, "strategy": strategy, "max_epochs": 2, "num_sanity_val_steps": 0}
    if method == "PRNet":
        # Sums over two batches round differently from one; after 27 layers of single precision by more than 1e-6.
        options["precision"] = "64-true"
    fit = trainer(folder, [Save(folder), FrozenStatistics()], **options)
    fit.fit(model, data)
    metrics = {str(key): float(value) for key, value in fit.callback_metrics.items()}
    (tested,) = trainer(folder, [], **options).test(model, data, verbose=False)
    return {**metrics, **tested}


@pytest.mark.parametrize(
    "method", ["Zhao2016", "rendered where it trains", pytest.param("PRNet", marks=pytest.mark.slow)]
)
def test_two_processes_equal_one(method: str, tmp_path: Path) -> None:
    one = run(method, tmp_path / "one", 1, 8)
    two = run(method, tmp_path / "two", 2, 4)
    for step in range(6):
        alone = torch.load(tmp_path / "one" / f"gradient{step}-0.pt")
        for rank in range(2):
            together = torch.load(tmp_path / "two" / f"gradient{step}-{rank}.pt")
            assert len(alone) == len(together) > 0
            assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(alone, together))
    # Each batch of one process is the two of two processes, which are disjoint.
    seen = [
        json.loads((tmp_path / name).read_text()) for name in ("one/seen-0.json", "two/seen-0.json", "two/seen-1.json")
    ]
    for whole, first, second in zip(*seen):
        assert sorted(whole) == sorted(first + second)
        assert not set(first) & set(second)
    assert {key for key in one if "/" in key} == {key for key in two if "/" in key} > {"val/nme", "test/nme_mean"}
    for key in one:
        if not key.startswith("train/"):  # the training loss is that of rank 0's batches, as it steers nothing
            assert two[key] == pytest.approx(one[key], abs=1e-5), key


@pytest.mark.parametrize(
    ("method", "processes"),
    [
        ("MeanLandmarks", 2),
        ("MeanLandmarks", 3),
        pytest.param("Zhao2016", 2, marks=pytest.mark.slow),
        pytest.param("PRNet", 2, marks=pytest.mark.slow),
    ],
)
def test_metrics_of_the_same_predictions_are_equal(method: str, processes: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = METHODS[method]()
    if isinstance(model, MeanLandmarks):
        torch.nn.init.uniform_(model.mean, -1, 1)
    # Batches of 4 give the ranks unequal numbers of batches, and unequal last ones. A network's output depends in its
    # last bit on which faces are in a batch, so there each is alone.
    batch_size = 4 if method == "MeanLandmarks" else 1
    for split in ("validate", "test"):
        results = []
        for devices in (1, processes):
            options = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
            data = faces(method, tmp_path / "cache", batch_size)
            run = getattr(trainer(tmp_path, [], None, **options), split)
            results.append(run(copy.deepcopy(model), data, verbose=False)[0])
        one, many = results
        assert set(one) == set(many)
        for key in one:
            # The loss of a batch is single precision; everything else is exact per sample and added up in double.
            tolerance = 1e-5 * one[key] if key == "val/loss" else 1e-12
            assert many[key] == pytest.approx(one[key], abs=tolerance), key


def test_fewer_samples_than_processes_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, [], None, devices=2, strategy="ddp_fork")
    with pytest.raises(Exception, match="The test split of NoiseFaces has 1 samples for 2 processes"):
        run.test(MeanLandmarks(), NoiseFaces(test_size=1), verbose=False)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = folder / "runs" / "e" / name / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def fail_on(rank: int, **options: Any) -> list[str]:
    options = {"rank": rank, **options}
    added = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return ["--trainer.callbacks+=FailAt", *added, "--name=failed"]


def test_an_error_on_one_rank_ends_all_with_its_message(tmp_path: Path) -> None:
    done = start([*FIT, *fail_on(1, bad_file="true")], tmp_path)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 60
    assert done.returncode != 0
    assert done.stderr.count("lightning-faces: The photograph broken.jpg of rank 1 is no image.") == 1
    assert left_over(tmp_path) == []


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that still work in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").resolve() == folder.resolve():
                    found.append((entry / "cmdline").read_text())
            except OSError:  # it ended, or belongs to someone else
                continue
    return [line for line in found if "ddp_main" in line]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_on_one_rank_ends_all_with_its_traceback(rank: int, tmp_path: Path) -> None:
    done = start([*FIT, *fail_on(rank)], tmp_path)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 60
    assert done.returncode != 0
    assert f"RuntimeError: The photograph broken.jpg of rank {rank} is no image." in done.stderr
    assert left_over(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_of_any_rank_saves_and_the_run_resumes(rank: int, tmp_path: Path) -> None:
    # 5 steps an epoch; the signal comes in the middle of the second.
    stop = ["--trainer.callbacks+=TerminateAt", f"--trainer.callbacks.rank={rank}", "--trainer.callbacks.step=6"]
    stopped = start([*FIT, *stop, "--name=stopped"], tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    assert "stopped by SIGTERM after step 7;" in stopped.stderr
    assert left_over(tmp_path) == []
    resumed = start([*FIT, "--name=stopped", "--ckpt_path=last"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole = start([*FIT, "--name=whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path, "whole")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path, "stopped").items())
    # One run folder each, written by rank 0.
    assert len(list((tmp_path / "runs").rglob("metrics.csv"))) == 2


@pytest.mark.slow
def test_two_torchrun_nodes_on_the_loopback(tmp_path: Path) -> None:
    args = [arg for arg in FIT if not arg.startswith("--trainer.devices")]
    nodes = []
    for node in range(2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
            "--master-addr=127.0.0.1", "--master-port=29417", "-m", "tests.ddp_main", *args, "--name=nodes",
            "--trainer.num_nodes=2", "--trainer.devices=1",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        nodes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
    try:
        shown = [node.communicate(timeout=600) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], shown
    whole = start([*FIT, "--name=one-node"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path, "one-node")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path, "nodes").items())
