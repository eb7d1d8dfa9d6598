"""Save and stop when asked to."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.checkpoints import LastCheckpoint

EXIT_CODE = 128 + signal.SIGTERM


class GracefulStop(Callback):
    """On SIGTERM, finishes the step, saves ``last.ckpt`` and exits with 143 (0 under W&B's agent), on all ranks.

    Lightning's own handler exits with 0, as if the training had ended, and a DDP run hangs when a single rank gets the
    signal. Here the ranks agree on it every few steps, as each agreement synchronises them. A second signal ends the
    process at once.

    Args:
        every_n_steps: Steps between two agreements of several ranks; one process looks after each step.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self._asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signal; Lightning gives it back after the training."""
        self._asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if any rank was asked to."""
        asked = self._asked
        if trainer.world_size > 1:
            if (batch_idx + 1) % self.every_n_steps and not trainer.is_last_batch:
                return
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> NoReturn:
        folders = [c.dirpath for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]
        folder = Path((folders and folders[0]) or Path(trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / "last.ckpt")
        if trainer.is_global_zero:
            print(
                f"lightning-faces: stopped by SIGTERM after step {trainer.global_step}; "
                f"--ckpt_path last continues from {folder / 'last.ckpt'}.",
                file=sys.stderr,
            )
        # Lightning kills rank 0 while it ends when it sees another rank fail. W&B's agent, which stops a trial by this
        # signal, gives up after some trials with an exit code other than 0.
        sys.exit(EXIT_CODE if trainer.is_global_zero and "WANDB_SWEEP_ID" not in os.environ else 0)
