"""Speed, memory, learning rates and norms of a training, for any logger."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_faces.errors import ConfigurationError


def total_norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all elements of all tensors."""
    return float(torch.nn.utils.get_total_norm(tensors)) if tensors else 0.0


class TrainingStatistics(Callback):
    """Logs, every so many steps, what the steps since the last time took and did.

    The metrics are:

    - ``speed/images_per_second``, of all ranks together;
    - ``speed/waiting_for_data``, the fraction of the time between steps that the loop waited for the next batch
      (reading, moving it to the device, rendering on it), 0 where loading keeps up;
    - ``memory/peak_gb``, of the device that was allocated or, on the CPU, of the process that was resident;
    - ``norm/gradient`` (before clipping) and ``norm/weights``, Euclidean over all trainable parameters;
    - ``lr/<group>``, the learning rate of each parameter group.

    On a GPU the clock is read without synchronising, so single steps would mean nothing; an interval does.

    Args:
        every_n_steps: Steps between two rows.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigurationError(
                f"TrainingStatistics option every_n_steps is {every_n_steps}; it must be at least 1."
            )
        self.every_n_steps = every_n_steps
        self._start_interval()
        self._ready_since: float | None = None
        self._gradient: float | None = None

    def _start_interval(self) -> None:
        self._images, self._steps, self._waited, self._worked = 0, 0, 0.0, 0.0

    def _due(self) -> bool:
        return self._steps + 1 >= self.every_n_steps

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the first batch."""
        self._ready_since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there: stop waiting."""
        now = time.perf_counter()
        # Validation and checkpoints between two steps are neither.
        self._waited += 0.0 if self._ready_since is None else now - self._ready_since
        self._step_since = now

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradient."""
        if self._due():
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._gradient = total_norm(gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and log where the interval is full."""
        now = time.perf_counter()
        self._worked += now - self._step_since
        self._images += len(batch["index"])
        self._steps += 1
        if self._steps >= self.every_n_steps:
            self._log(trainer, pl_module)
            self._start_interval()
        self._ready_since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count validation as waiting."""
        self._ready_since = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count saving as waiting."""
        self._ready_since = None

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self._waited + self._worked
        metrics = {
            "epoch": trainer.current_epoch,
            "speed/images_per_second": self._images * trainer.world_size / seconds,
            "speed/waiting_for_data": self._waited / seconds,
            "memory/peak_gb": self._peak_memory(pl_module.device) / 1e9,
            "norm/weights": total_norm([p.detach() for p in pl_module.parameters() if p.requires_grad]),
        }
        if self._gradient is not None:
            metrics["norm/gradient"] = self._gradient
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for number, group in enumerate(groups):
            metrics["lr" if len(groups) == 1 else f"lr/{number}"] = float(group["lr"])
        for logger in trainer.loggers:
            # Lightning logs the values of this step under the same number.
            logger.log_metrics(metrics, step=max(trainer.global_step - 1, 0))

    @staticmethod
    def _peak_memory(device: torch.device) -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
