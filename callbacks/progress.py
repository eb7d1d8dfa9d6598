"""How far a run is, where there is no terminal for a progress bar."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_faces.errors import ConfigurationError


class ProgressLines(Callback):
    """Prints a line now and then where the output goes to a file or another program, and nothing in a terminal.

    Args:
        every_n_seconds: Least time between two lines of an epoch; each epoch has one in any case.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        if every_n_seconds < 0:
            raise ConfigurationError(
                f"ProgressLines option every_n_seconds is {every_n_seconds}; it must be at least 0."
            )
        self.every_n_seconds = every_n_seconds
        self._start(0)

    def _start(self, step: int) -> None:
        self._began, self._printed, self._first = time.monotonic(), time.monotonic(), step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print where it is time to."""
        if time.monotonic() - self._printed >= self.every_n_seconds:
            self._print(trainer, ["train/loss"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what a validation found."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print(trainer, ["train/loss", "val/loss", str(getattr(pl_module, "monitor", "val/nme"))])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Print how many batches are scored."""
        if time.monotonic() - self._printed >= self.every_n_seconds:
            done, total = args[2] + 1, trainer.num_test_batches[0]
            self._say(trainer, f"{done} of {total} batches scored")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(0)

    def _print(self, trainer: Trainer, names: list[str]) -> None:
        done, per_epoch = trainer.fit_loop.total_batch_idx + 1, float(trainer.num_training_batches)
        parts = [f"epoch {trainer.current_epoch + 1}"]
        total = per_epoch * (trainer.max_epochs or 0)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            parts[0] += f"/{trainer.max_epochs}"
        parts.append(f"batch {done}{f'/{total:.0f}' if 0 < total < float('inf') else ''}")
        for name in dict.fromkeys(names):
            value = trainer.callback_metrics.get(name)
            if isinstance(value, Tensor):
                parts.append(f"{name} {float(value):.4g}")
        rate = (done - self._first) / max(time.monotonic() - self._began, 1e-6)
        if rate > 0 and done < total < float("inf"):
            seconds = int((total - done) / rate)
            parts.append(f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left")
        self._say(trainer, ", ".join(parts))

    def _say(self, trainer: Trainer, line: str) -> None:
        self._printed = time.monotonic()
        if trainer.is_global_zero and not sys.stdout.isatty():
            print(line, flush=True)
