"""A training that is continued by a command that differs: what differs is used, and said."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from callbacks import LastCheckpoint, SeedSteps
from lightning_faces.errors import ConfigurationError
from tests.callbacks.training import data, method, trainer


class Seen(Callback):
    """Sample indices and learning rates of every step."""

    def __init__(self) -> None:
        self.indices: list[list[int]] = []
        self.rates: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.indices.append(batch["index"].tolist())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class StopAfter(Callback):
    """Ends a training like a kill, right after a step's checkpoint."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.steps:
            raise KeyError("killed")


def begin(folder: Path, steps: int, model: Any = None, source: Any = None, **options: Any) -> Seen:
    seen = Seen()
    with pytest.raises(KeyError, match="killed"):
        trainer(folder, [SeedSteps(), seen, LastCheckpoint(1), StopAfter(steps)], **options).fit(
            model or method(), source or data()
        )
    return seen


def go_on(folder: Path, model: Any = None, source: Any = None, **options: Any) -> Seen:
    seen = Seen()
    trainer(folder, [SeedSteps(), seen, LastCheckpoint(1)], **options).fit(
        model or method(), source or data(), ckpt_path=folder / "checkpoints" / "last.ckpt"
    )
    return seen


def sgd(lr: float, **options: Any) -> Any:
    return functools.partial(torch.optim.SGD, lr=lr, **options)


def test_the_same_command_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, 7)
    go_on(tmp_path)
    assert "continuing with" not in capsys.readouterr().err


def test_options_of_the_optimizer_are_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, 7, method(optimizer=sgd(0.01, momentum=0.9)))
    seen = go_on(tmp_path, method(optimizer=sgd(0.001, momentum=0.5, weight_decay=0.1)))
    assert set(seen.rates) == {0.001}
    said = capsys.readouterr().err
    assert "lr 0.001 instead of 0.01" in said
    assert "momentum 0.5 instead of 0.9" in said
    assert "weight_decay 0.1 instead of 0" in said


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (functools.partial(CosineAnnealingLR, T_max=3), functools.partial(CosineAnnealingLR, T_max=6)),
        (functools.partial(StepLR, step_size=1, gamma=0.5), functools.partial(StepLR, step_size=1, gamma=0.1)),
        (functools.partial(StepLR, step_size=1, gamma=0.5), functools.partial(CosineAnnealingLR, T_max=4)),
        (None, functools.partial(StepLR, step_size=1, gamma=0.1)),
        (functools.partial(StepLR, step_size=1, gamma=0.1), None),
    ],
)
def test_a_changed_schedule_goes_on_as_if_it_had_been_so(
    first: Any, second: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Seen()
    trainer(tmp_path / "whole", [whole], max_epochs=4).fit(method(optimizer=sgd(0.02), lr_scheduler=second), data())
    # Two epochs and two steps with the one, the rest with the other.
    begin(tmp_path, 12, method(optimizer=sgd(0.01), lr_scheduler=first), max_epochs=4)
    seen = go_on(tmp_path, method(optimizer=sgd(0.02), lr_scheduler=second), max_epochs=4)
    assert seen.rates == pytest.approx(whole.rates[12:])
    said = capsys.readouterr().err
    assert "lr 0.02 instead of 0.01" in said
    assert "the learning rate is now" in said


def test_a_plateau_schedule_keeps_what_it_has_learnt(tmp_path: Path) -> None:
    plateau = functools.partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9)
    first = begin(tmp_path, 12, method(optimizer=sgd(0.01), lr_scheduler=plateau), max_epochs=4)
    seen = go_on(tmp_path, method(optimizer=sgd(0.1), lr_scheduler=plateau), max_epochs=4)
    assert seen.rates[0] == pytest.approx(10 * first.rates[-1])


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, 3, method(optimizer=sgd(0.01)))
    with pytest.raises(ConfigurationError, match="trained with SGD, whose state AdamW can't go on with"):
        go_on(tmp_path)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_another_batch_size_sees_each_sample_of_the_epoch_once(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = begin(tmp_path, 7)
    seen = go_on(tmp_path, source=data(batch_size=size))
    said = capsys.readouterr().err
    assert f"data.batch_size {size} instead of 4" in said
    interrupted = [index for batch in first.indices[5:7] for index in batch]
    left = (20 - 8) // size
    rest = [index for batch in seen.indices[:left] for index in batch]
    assert len({*interrupted, *rest}) == 8 + left * size
    # The next epoch is whole.
    following = [index for batch in seen.indices[left:] for index in batch]
    assert len(seen.indices) == left + 20 // size
    assert len(set(following)) == len(following) == 20 // size * size


def test_a_training_is_continued_twice_with_other_sizes(tmp_path: Path) -> None:
    first = begin(tmp_path, 6)
    second = Seen()
    with pytest.raises(KeyError, match="killed"):
        trainer(tmp_path, [SeedSteps(), second, LastCheckpoint(1), StopAfter(8)]).fit(
            method(), data(batch_size=3), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )
    third = go_on(tmp_path, source=data(batch_size=2), max_epochs=2)
    seen = [index for batch in first.indices[5:] + second.indices + third.indices for index in batch]
    assert sorted(seen) == list(range(20))


def test_other_data_begin_the_epoch_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, 7)
    seen = go_on(tmp_path, source=data(train_size=24), max_epochs=2)
    said = capsys.readouterr().err
    assert "training samples 24 instead of 20" in said
    assert "so epoch 2 begins anew" in said
    assert sorted(index for batch in seen.indices for index in batch) == list(range(24))


def test_options_of_the_method_and_the_trainer_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, 7)
    go_on(tmp_path, method(dropout=0.5, pairwise="none"), accumulate_grad_batches=2, gradient_clip_val=1.0)
    said = capsys.readouterr().err
    for part in (
        "model.dropout 0.5 instead of 0.1",
        "model.pairwise none instead of distances",
        "trainer.accumulate_grad_batches 2 instead of 1",
        "trainer.gradient_clip_val 1.0 instead of None",
    ):
        assert part in said


def test_a_checkpoint_falls_between_steps_where_gradients_are_accumulated(tmp_path: Path) -> None:
    """A batch whose gradient is not used yet is not counted as seen."""
    folder = tmp_path / "killed"
    options = {"accumulate_grad_batches": 2, "max_epochs": 1}
    whole = method()
    trainer(tmp_path / "whole", [SeedSteps()], **options).fit(whole, data())
    begin(folder, 1, **options)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["NoiseFaces"]["samples"] == 8
    model = method()
    seen = go_on(folder, model, **options)
    assert len(seen.indices) == 3
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in whole.state_dict().items())
