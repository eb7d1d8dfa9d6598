"""Refuse to train towards a metric that nothing logs."""

from __future__ import annotations

import difflib

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_faces.errors import ConfigurationError


class CheckMonitor(Callback):
    """Compares every monitored metric with what the sanity check of the validation logged, before the first step.

    Monitored are metrics of checkpoints, early stopping and learning-rate schedules. Training metrics ("train/...")
    are not known yet; Lightning itself refuses those after the first epoch.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the monitors.

        Raises:
            ConfigurationError: If a monitored metric is not among the logged ones.
        """
        logged = sorted(str(key) for key in trainer.callback_metrics)
        monitors = [
            (type(callback).__name__, callback.monitor)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(getattr(callback, "monitor", None), str)
        ]
        monitors += [
            (type(config.scheduler).__name__, config.monitor)
            for config in trainer.lr_scheduler_configs
            if config.reduce_on_plateau and config.monitor is not None
        ]
        for owner, monitor in monitors:
            if monitor not in logged and not monitor.startswith("train/"):
                near = difflib.get_close_matches(monitor, logged, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ConfigurationError(
                    f"{owner} monitors {monitor!r}, which {type(pl_module).__name__} does not log: {hint}"
                    f"Validation logs {', '.join(logged) or 'nothing'}."
                )
