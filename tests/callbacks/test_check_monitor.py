from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from callbacks import BestCheckpoint, CheckMonitor
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import Zhao2016
from tests.callbacks.training import data, method, trainer


def test_a_metric_that_nothing_logs_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, [CheckMonitor(), BestCheckpoint(monitor="val/nmea")])
    with pytest.raises(ConfigurationError, match=r"BestCheckpoint monitors 'val/nmea', .* did you mean val/nme\?"):
        run.fit(method(), data())
    assert run.global_step == 0


def test_what_a_schedule_follows_is_checked_too(tmp_path: Path) -> None:
    class Misled(Zhao2016):
        monitor = "val/los"

    def plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer)

    model = Misled(image_size=32, hidden=8, channels=(2, 2, 2, 2), lr_scheduler=plateau)
    with pytest.raises(ConfigurationError, match=r"ReduceLROnPlateau monitors 'val/los'.*did you mean val/loss\?"):
        trainer(tmp_path, [CheckMonitor()]).fit(model, data())


def test_logged_and_training_metrics_pass(tmp_path: Path) -> None:
    callbacks = [CheckMonitor(), BestCheckpoint(), EarlyStopping("train/loss")]
    run = trainer(tmp_path, callbacks, max_epochs=1)
    run.fit(method(), data())
    assert run.current_epoch == 1
    assert {"val/nme", "train/loss"} <= run.callback_metrics.keys()
