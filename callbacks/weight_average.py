"""An exponential average of the weights that does not remember where the training began."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from lightning_faces.errors import ConfigurationError


class WeightAverage(WeightAveraging):
    """Scores and saves an exponential moving average of the weights: those of step t count ``decay^(n - t)`` after n.

    The average is divided by the sum of these counts, as Adam does with its moments. The usual one, which starts as a
    copy of the first weights, has these count ``decay^(n - 1)`` of 1: with 0.995 and 300 steps that is 0.22, so that a
    short training is scored by weights of which a fifth is where it began. From ``5 / (1 - decay)`` steps on, the two
    differ by less than 1 %.

    Args:
        decay: What the weights count when they are a step older.
    """

    def __init__(self, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"WeightAverage option decay is {decay}; it must be at least 0 and below 1.")
        self.decay = decay
        self._updates: int | None = None
        super().__init__(multi_avg_fn=self._average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the average in the checkpoint."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._updates = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Take in the weights after a step."""
        if self._updates is None and self._average_model is not None:
            # Asked for once, as asking waits for a GPU.
            self._updates = int(self._average_model.n_averaged)
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, *args)
        if self._updates is not None and self._latest_update_step > before:
            self._updates += 1

    def _average(self, averaged: Any, current: Any, updates: Any) -> None:
        """One more update; the first one of all copies the weights."""
        assert self._updates is not None
        share = (1 - self.decay) / (1 - self.decay ** (self._updates + 1))
        for mean, value in zip(averaged, current):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)
