"""``python -m tests.ddp_main``: the command ``lightning-faces`` with noise faces, and callbacks that go wrong."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from lightning_faces.__main__ import main
from lightning_faces.errors import DataError


class FailAt(Callback):
    """Raise on one rank.

    Args:
        rank: Where.
        step: When.
        bad_file: Whether it is an error of the user's data or a bug.
    """

    def __init__(self, rank: int = 1, step: int = 2, bad_file: bool = False) -> None:
        self.rank, self.step, self.bad_file = rank, step, bad_file

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            Path("failed").touch()  # says when
            message = f"The photograph broken.jpg of rank {self.rank} is no image."
            raise DataError(message) if self.bad_file else RuntimeError(message)


class TerminateAt(Callback):
    """Send SIGTERM to the process of one rank.

    Args:
        rank: Which.
        step: When.
    """

    def __init__(self, rank: int = 1, step: int = 2) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class KillAt(Callback):
    """Send SIGKILL to this process.

    Args:
        step: When.
        delay: Seconds after the beginning of that step.
    """

    def __init__(self, step: int = 2, delay: float = 0.0) -> None:
        self.step, self.delay = step, delay

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
