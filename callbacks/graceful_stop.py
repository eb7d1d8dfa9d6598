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

from callbacks.checkpoints import LastCheckpoint, between_steps

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class GracefulStop(Callback):
    """On SIGTERM or Ctrl-C, finishes the step, saves ``last.ckpt`` and exits, on all ranks.

    The exit code is 143 for SIGTERM (0 under W&B's agent) and 130 for Ctrl-C. Lightning's own handlers exit with 0, as
    if the training had ended, or without saving, and a DDP run hangs when a single rank gets the signal. Here the ranks
    agree on it every few steps, as each agreement synchronises them. A second signal ends the process at once. With
    gradients accumulated over batches, the step is finished that they belong to.

    Args:
        every_n_steps: Batches between two agreements of several ranks; one process looks after each batch.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self._asked: int = 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if number == signal.SIGINT:
            sys.stderr.write("\nlightning-faces: saving after this step; Ctrl-C again stops at once.\n")
        for each, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            signal.signal(each, default)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning gives SIGTERM back after the training."""
        self._asked = 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before_sigint = signal.getsignal(signal.SIGINT)
                signal.signal(number, self._ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if any rank was asked to."""
        asked = self._asked
        if trainer.world_size > 1:
            if (batch_idx + 1) % self.every_n_steps and not trainer.is_last_batch:
                return
            if not between_steps(trainer, batch_idx):
                return
            for number in SIGNALS:
                if trainer.strategy.reduce_boolean_decision(self._asked == number, all=False):
                    asked = number
        if asked and between_steps(trainer, batch_idx):
            self._stop(trainer, asked)

    def _stop(self, trainer: Trainer, number: int) -> NoReturn:
        folders = [c.dirpath for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]
        folder = Path((folders and folders[0]) or Path(trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / "last.ckpt")
        if trainer.is_global_zero:
            command = how_to_continue(Path(trainer.default_root_dir))
            print(
                f"lightning-faces: stopped by {SIGNALS[signal.Signals(number)]} after step {trainer.global_step}; "
                f"--ckpt_path last continues from {folder / 'last.ckpt'}{command}.",
                file=sys.stderr,
            )
        # Lightning kills rank 0 while it ends when it sees another rank fail. W&B's agent, which stops a trial by this
        # signal, gives up after some trials with an exit code other than 0.
        sys.exit(128 + number if trainer.is_global_zero and "WANDB_SWEEP_ID" not in os.environ else 0)


def how_to_continue(folder: Path) -> str:
    """The command that continues the run of a folder, as the rest of a sentence; "" where there is none."""
    configurations = [folder / name for name in ("config-resume.yaml", "config.yaml") if (folder / name).is_file()]
    if not configurations:
        return ""
    newest = max(configurations, key=lambda path: path.stat().st_mtime_ns)
    shown = os.path.relpath(newest) if newest.is_relative_to(Path.cwd()) else str(newest)
    return f": lightning-faces fit --config {shown} --ckpt_path last"
