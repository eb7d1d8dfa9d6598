"""End a training that has turned to NaN, before it overwrites its last good checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_faces.errors import ConfigurationError


class FiniteLoss(Callback):
    """Ends the training with one sentence once the loss, or a weight, is NaN or infinite.

    The loss is looked at where it is, and asked for every so many steps, since asking waits for a GPU; before each
    checkpoint, the weights are looked at too. So no checkpoint is written of a training that has turned to NaN, and the
    last one is a good one. Under float16 with gradient scaling, which leaves out steps that overflow, the weights alone
    decide.

    Args:
        every_n_steps: Steps between two looks.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigurationError(f"FiniteLoss option every_n_steps is {every_n_steps}; it must be at least 1.")
        self.every_n_steps = every_n_steps
        self._finite: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training."""
        self._finite = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss.

        Raises:
            ConfigurationError: If it was not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or str(trainer.precision) == "16-mixed":
            return
        finite = torch.isfinite(loss.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if (batch_idx + 1) % self.every_n_steps == 0 or trainer.is_last_batch:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite.

        Raises:
            ConfigurationError: If the loss or a weight is not.
        """
        if trainer.state.fn != "fit":
            return
        self._check(trainer)
        weights = checkpoint.get("state_dict", {})
        for name, _ in pl_module.named_parameters():
            if name in weights and not bool(torch.isfinite(weights[name]).all()):
                raise ConfigurationError(self._sentence(trainer, f"{name} is not finite"))

    def _check(self, trainer: Trainer) -> None:
        if self._finite is not None and not bool(self._finite):
            raise ConfigurationError(self._sentence(trainer, "the loss is not finite"))

    @staticmethod
    def _sentence(trainer: Trainer, what: str) -> str:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rate = f" at a learning rate of {max(rates):.3g}" if rates else ""
        folders = [getattr(callback, "dirpath", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        last = next((path for f in folders if f and (path := Path(f) / "last.ckpt").is_file()), None)
        kept = f"; {last} is from before" if last else ""
        return (
            f"The training has turned to NaN: {what} after step {trainer.global_step}{rate}{kept}: lower the "
            "optimizer's lr, or set trainer.gradient_clip_val."
        )
