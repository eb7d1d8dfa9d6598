"""Which checkpoints a run keeps: the best one and the last one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether no gradients are accumulated that a checkpoint would lose."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint of a fixed name in ``checkpoints`` below the trainer's root folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        # A method that is fitted in closed form, without optimizer steps, is saved too.
        self._last_global_step_saved = -1
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to; between the batches of one step, later."""
        if between_steps(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best value so far, where its checkpoint is here: a run folder may have been moved."""
        file = Path(str(self.dirpath)) / f"{self.filename}.ckpt"
        if not file.is_file():
            return
        state = {**state_dict, "dirpath": self.dirpath, "best_model_path": str(file)}
        if state.get("best_model_score") is not None:
            state.update(kth_best_model_path=str(file), best_k_models={str(file): state["best_model_score"]})
        super().load_state_dict(state)


class BestCheckpoint(_RunCheckpoint):
    """Keeps ``best.ckpt``.

    Args:
        monitor: The metric that decides; None is the method's own ``monitor``.
        mode: Whether less or more of it is better.
        dirpath: Folder; None is ``checkpoints`` below the trainer's root folder.
    """

    def __init__(
        self, monitor: str | None = None, mode: Literal["min", "max"] = "min", dirpath: str | None = None
    ) -> None:
        super().__init__(
            dirpath,
            "best",
            monitor=monitor or "val/nme",
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._follows_method = monitor is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the method's monitored metric where none was given."""
        if self._follows_method:
            self.monitor = getattr(pl_module, "monitor", self.monitor)
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(_RunCheckpoint):
    """Keeps ``last.ckpt``: what ``--ckpt_path last`` continues from.

    It is a callback of its own because ``save_last=True`` writes only when the best checkpoint improves. An interval
    bounds what a killed run loses; without one it is an epoch.

    Args:
        every_n_train_steps: Steps between two checkpoints.
        train_time_interval: Time between two checkpoints, e.g. ``00:10:00``.
        dirpath: Folder; None is ``checkpoints`` below the trainer's root folder.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath,
            "last",
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            enable_version_counter=False,
        )
        self._every_epoch_too()

    def _every_epoch_too(self) -> None:
        # ModelCheckpoint takes one of the three intervals; the end of an epoch is a good moment in any case.
        self._every_n_epochs = 1
