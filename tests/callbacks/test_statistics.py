from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import TrainingStatistics
from callbacks.metrics_csv import MetricsCSV
from tests.callbacks.training import data, method, trainer


class Record(MetricsCSV):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "norm/weights" in metrics:
            self.rows.append((step, dict(metrics)))


class Norms(Callback):
    """The same norms by definition."""

    def __init__(self) -> None:
        self.gradient: list[float] = []
        self.weights: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradient.append(sum(float(p.grad.double().square().sum()) for p in pl_module.parameters()) ** 0.5)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        flat = torch.cat([p.detach().double().flatten() for p in pl_module.parameters()])
        self.weights.append(float(flat.norm()))


def test_norms_and_rate_of_the_step(tmp_path: Path) -> None:
    record, norms = Record(tmp_path), Norms()
    trainer(tmp_path, [TrainingStatistics(2), norms], record, max_epochs=2).fit(method(), data())
    assert [step for step, _ in record.rows] == [1, 3, 5, 7, 9]
    for step, row in record.rows:
        assert row["norm/gradient"] == pytest.approx(norms.gradient[step], rel=1e-5)
        assert row["norm/weights"] == pytest.approx(norms.weights[step], rel=1e-5)
        assert row["lr"] == 0.01
        assert 0.1 < row["memory/peak_gb"] < 32


def test_waiting_is_what_loading_takes_and_not_validation(tmp_path: Path) -> None:
    class Slow(Callback):
        """Loading takes 20 ms, a step 30 ms and validation 300 ms."""

        def on_train_batch_start(self, *args: Any) -> None:
            time.sleep(0.03)

        def on_validation_epoch_start(self, *args: Any) -> None:
            time.sleep(0.3)

    class SlowFaces(type(data())):  # type: ignore[misc]
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            time.sleep(0.02 if self.trainer.training else 0)
            return batch

    record = Record(tmp_path)
    run = trainer(
        tmp_path, [TrainingStatistics(5), Slow()], record, max_epochs=4, val_check_interval=2, num_sanity_val_steps=0
    )
    run.fit(method(), SlowFaces(train_size=20))
    rows = [row for _, row in record.rows[1:]]
    # The step itself is some milliseconds on an idle machine; the bounds hold on a busy one.
    assert all(0.1 < row["speed/waiting_for_data"] < 0.55 for row in rows)
    assert all(4 < row["speed/images_per_second"] < 4 / 0.05 for row in rows)
