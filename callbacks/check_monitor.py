"""Refuse to train towards a metric that nothing logs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.scores import logged_names
from lightning_faces.methods.base import FaceMethod


class CheckMonitor(Callback):
    """Compares every monitored metric with what is logged, before the first step.

    Monitored are metrics of checkpoints, early stopping and learning-rate schedules. What a validation logs shows in
    the sanity check; where that is switched off, and a monitor is not among the metrics that every method has, one
    batch is validated all the same. What a training step logs follows from the terms of the loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self._training_checked = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check without a validation what can be, and ask for one batch of it where that does not suffice.

        Raises:
            ConfigurationError: If a validation metric is monitored but nothing is validated.
        """
        self._training_checked = False
        monitors = [pair for pair in monitored(trainer) if not pair[1].startswith("train/")]
        # A checkpoint without its metric says so itself, and a training without validation may be what is wanted.
        needed = [pair for pair in monitors if "Checkpoint" not in pair[0]]
        if needed and trainer.limit_val_batches == 0:
            owner, monitor = needed[0]
            raise ConfigurationError(
                f"{owner} monitors {monitor!r}, but nothing is validated: set trainer.limit_val_batches, or take "
                f"{owner} out of trainer.callbacks."
            )
        unknown = any(monitor not in ("val/loss", "val/nme") for _, monitor in monitors)
        if unknown and trainer.num_sanity_val_steps == 0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.num_sanity_val_steps = 1
        if isinstance(pl_module, FaceMethod) and trainer.fit_loop.restarting:
            # A training that is continued has no sanity check.
            check(monitors, sorted(validation_names(pl_module)), pl_module, "Validation", training=False)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the monitored validation metrics.

        Raises:
            ConfigurationError: If one is not among the logged ones.
        """
        logged = sorted(str(key) for key in trainer.callback_metrics)
        check(monitored(trainer), logged, pl_module, "Validation", training=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check the monitored training metrics against the terms of the first batch's loss.

        Raises:
            ConfigurationError: If one is not among them.
        """
        monitors = [pair for pair in monitored(trainer) if pair[1].startswith("train/") and pair[1] != "train/loss"]
        own_step = type(pl_module).training_step is not FaceMethod.training_step
        if self._training_checked or not monitors or own_step or not isinstance(pl_module, FaceMethod):
            return
        self._training_checked = True
        if pl_module.make_optimizer is None:
            names: Iterable[str] = ()
        else:
            modes = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            with torch.no_grad():
                names = pl_module.terms(batch)
            for module, mode in modes.items():
                module.training = mode
            names = ["train/loss", *(f"train/{name}" for name in names)]
        check(monitors, sorted(names), pl_module, "Training", training=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the monitored training metrics of a method with a training step of its own after its first step.

        Raises:
            ConfigurationError: If one was not logged.
        """
        if self._training_checked:
            return
        self._training_checked = True
        logged = {str(key) for key in trainer.callback_metrics} | {str(key) for key in trainer.logged_metrics}
        # What is averaged over an epoch is there, too, and has no value yet.
        results = trainer._results
        logged |= {str(item.meta.name) for item in results.values()} if results is not None else set()
        monitors = [pair for pair in monitored(trainer) if pair[1].startswith("train/")]
        check(monitors, sorted(name for name in logged if name.startswith("train/")), pl_module, "Training", True)


def validation_names(method: FaceMethod) -> set[str]:
    """What a validation of a method may log; with data that lack a target, less."""
    own = type(method).validation_step is not FaceMethod.validation_step
    names = {"val/loss", *(f"val/{name}" for name in logged_names("val"))} if not own else set()
    for prediction in method.prediction_names[:-1]:
        names |= {f"val/{prediction}/{name}" for name in logged_names("val")}
    return names


def monitored(trainer: Trainer) -> list[tuple[str, str]]:
    """Who monitors, and which metric."""
    found = [
        (type(callback).__name__, callback.monitor)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(getattr(callback, "monitor", None), str)
    ]
    return found + [
        (type(config.scheduler).__name__, config.monitor)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau and config.monitor is not None
    ]


def check(
    monitors: Iterable[tuple[str, str]], logged: list[str], pl_module: LightningModule, what: str, training: bool
) -> None:
    """See that the metrics of one stage are logged.

    Raises:
        ConfigurationError: If one is not.
    """
    for owner, monitor in monitors:
        if monitor not in logged and monitor.startswith("train/") == training:
            near = difflib.get_close_matches(monitor, logged, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"{owner} monitors {monitor!r}, which {type(pl_module).__name__} does not log: {hint}"
                f"{what} logs {', '.join(logged) or 'nothing'}."
            )
