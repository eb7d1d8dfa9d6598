"""Randomness that depends on the step and not on what happened before it."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedSteps(Callback):
    """Seeds dropout and the like anew before each training step, from (seed, step, rank).

    A resumed training then draws what an uninterrupted one would have, in the middle of an epoch too, without random
    states in the checkpoint; and ranks draw differently.

    Args:
        seed: Seed; None takes the one that ``seed_everything`` was given.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        # Weyl steps of odd constants keep the seeds of (step, rank) apart for any run that fits in a lifetime.
        mixed = (
            seed
            + 0x9E3779B97F4A7C15 * (trainer.fit_loop.total_batch_idx + 1)
            + 0xD1B54A32D192ED03 * trainer.global_rank
        )
        torch.manual_seed(mixed % 2**63)
