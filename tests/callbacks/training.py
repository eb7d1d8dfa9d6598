"""A small training for the tests of callbacks, with a plain Trainer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger

from callbacks import AtomicCheckpointIO
from lightning_faces.methods import Zhao2016
from tests.fakes.noise_faces import NoiseFaces

STEPS_PER_EPOCH = 5


def method(**options: Any) -> Zhao2016:
    """A tiny network with dropout, always with the same weights."""
    seed_everything(3, verbose=False)
    adam = functools.partial(torch.optim.AdamW, lr=0.01)
    return Zhao2016(**{"image_size": 32, "hidden": 8, "channels": (2, 2, 2, 2), "optimizer": adam, **options})


def data(**options: Any) -> NoiseFaces:
    """Five batches of four."""
    return NoiseFaces(**{"train_size": 4 * STEPS_PER_EPOCH, **options})


def trainer(
    folder: Path, callbacks: list[Callback], logger: Logger | list[Logger] | None = None, **options: Any
) -> Trainer:
    """A quiet trainer on the CPU; seeds everything."""
    seed_everything(3, verbose=False)
    return Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "deterministic": True,
            "logger": logger or False,
            "callbacks": callbacks,
            "plugins": [AtomicCheckpointIO()],
            "default_root_dir": folder,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any("Checkpoint" in type(c).__name__ for c in callbacks),
            **options,
        }
    )
