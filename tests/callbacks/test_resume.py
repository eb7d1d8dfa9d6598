from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import BestCheckpoint, GracefulStop, LastCheckpoint, SeedSteps
from lightning_faces.files.history import read_values
from lightning_faces.methods import Zhao2016
from tests.callbacks.training import STEPS_PER_EPOCH, data, method, trainer
from tests.test_ddp import start


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise Killed


class TerminateAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    model = method()
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder, [SeedSteps(), LastCheckpoint()]).fit(model, data())
    return {key: value.clone() for key, value in model.state_dict().items()}


def resumed(folder: Path, every: int) -> tuple[dict[str, torch.Tensor], int]:
    path = folder / "checkpoints" / "last.ckpt"
    step = torch.load(path, weights_only=True)["global_step"]
    model = method()
    trainer(folder, [SeedSteps(), LastCheckpoint(every)]).fit(model, data(), ckpt_path=path)
    return model.state_dict(), step


@pytest.mark.parametrize(("every", "kill"), [(1, 1), (1, 7), (2, 4), (3, 8), (3, 11), (100, 6), (100, 10)])
def test_weights_after_a_kill_equal_those_without(
    every: int, kill: int, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, [SeedSteps(), LastCheckpoint(every), KillAt(kill)]).fit(method(), data())
    weights, step = resumed(tmp_path, every)
    assert kill - min(every, STEPS_PER_EPOCH) <= step <= kill
    assert all(torch.equal(weights[key], uninterrupted[key]) for key in uninterrupted)


@pytest.mark.parametrize("at", [2, 4, 9])
def test_sigterm_finishes_the_step_saves_and_exits_143(
    at: int, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        trainer(tmp_path, [SeedSteps(), LastCheckpoint(100), TerminateAt(at), GracefulStop()]).fit(method(), data())
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) in (before, signal.SIG_DFL)
    assert f"stopped by SIGTERM after step {at + 1}; --ckpt_path last continues" in capsys.readouterr().err
    weights, step = resumed(tmp_path, 100)
    assert step == at + 1
    assert all(torch.equal(weights[key], uninterrupted[key]) for key in uninterrupted)
    signal.signal(signal.SIGTERM, before)


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank_alone(tmp_path: Path) -> None:
    drawn: dict[int, torch.Tensor] = {}

    class Draw(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            drawn[trainer.global_step] = torch.rand(3)

    trainer(tmp_path, [SeedSteps(), Draw()], max_epochs=2).fit(method(), data())
    first = dict(drawn)
    assert len({tuple(value.tolist()) for value in first.values()}) == 2 * STEPS_PER_EPOCH
    trainer(tmp_path, [SeedSteps(), Draw()], max_epochs=2, limit_val_batches=0).fit(method(), data())
    assert all(torch.equal(drawn[step], first[step]) for step in first)
    trainer(tmp_path, [SeedSteps(4), Draw()], max_epochs=2).fit(method(), data())
    assert not any(torch.equal(drawn[step], first[step]) for step in first)


def test_ranks_and_steps_draw_differently() -> None:
    drawn = set()
    for rank in range(4):
        for step in range(4):
            loop = SimpleNamespace(total_batch_idx=step)
            SeedSteps(3).on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=rank), None, None, 0)  # type: ignore[arg-type]
            drawn.add(float(torch.rand(1)))
    assert len(drawn) == 16


def test_checkpoints_of_a_method_without_optimizer_steps(tmp_path: Path) -> None:
    class ClosedForm(Zhao2016):
        def __init__(self) -> None:
            super().__init__(image_size=32, hidden=8, channels=(2, 2, 2, 2))
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            pass

        def configure_optimizers(self) -> None:
            pass

    trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], max_epochs=1).fit(ClosedForm(), data())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.slow
def test_sigkill_at_any_moment_and_the_same_command_again(tmp_path: Path) -> None:
    # 10 steps an epoch, and a checkpoint every 3 steps beside that of each epoch (docs/scaling.md).
    fit = [
        "fit", "--model=Zhao2016", "--model.image_size=32", "--model.hidden=8", "--model.channels=[2,2,2,2]",
        "--data=NoiseFaces", "--data.train_size=40", "--data.batch_size=4", "--trainer.max_epochs=3",
        "--trainer.accelerator=cpu", "--trainer.deterministic=true", "--trainer.enable_progress_bar=false",
        "--experiment=e", "--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=3",
        "--ckpt_path=auto",
    ]  # fmt: skip
    folder = tmp_path / "runs" / "e"
    for step, delay in ((4, 0.0), (11, 0.003), (18, 0.01), (24, 0.03)):
        kill = ["--trainer.callbacks+=KillAt", f"--trainer.callbacks.step={step}", f"--trainer.callbacks.delay={delay}"]
        killed = start([*fit, *kill, "--name=killed"], tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        kept = torch.load(folder / "killed" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        assert kept >= step - 3
    for name in ("killed", "whole"):
        done = start([*fit, f"--name={name}"], tmp_path)
        assert done.returncode == 0, done.stderr
    ends = [torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("killed", "whole")]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 30
    assert all(torch.equal(value, ends[1]["state_dict"][key]) for key, value in ends[0]["state_dict"].items())
    # The history too is that of one training.
    scores = [read_values(folder / name / "metrics.csv", "val/nme") for name in ("killed", "whole")]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
