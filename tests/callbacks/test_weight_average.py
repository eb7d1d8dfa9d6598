from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import LastCheckpoint, SeedSteps, WeightAverage
from lightning_faces.errors import ConfigurationError
from tests.callbacks.training import data, method, trainer


def weights_of(model: LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


class Weights(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps.append(weights_of(pl_module))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_the_normalised_exponential_one(decay: float, tmp_path: Path) -> None:
    seen, model = Weights(), method()
    trainer(tmp_path, [SeedSteps(), seen, WeightAverage(decay)], max_epochs=2).fit(model, data())
    counts = torch.tensor([decay ** (len(seen.steps) - 1 - n) for n in range(len(seen.steps))], dtype=torch.float64)
    expected = (counts[:, None] * torch.stack(seen.steps)).sum(dim=0) / counts.sum()
    assert len(seen.steps) == 10
    torch.testing.assert_close(weights_of(model).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_continued_training_has_the_average_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = method()
    trainer(tmp_path / "whole", [SeedSteps(), WeightAverage(0.9)], max_epochs=3).fit(whole, data())
    for epochs in (1, 3):
        model = method()
        path = tmp_path / "parts" / "checkpoints" / "last.ckpt"
        trainer(tmp_path / "parts", [SeedSteps(), WeightAverage(0.9), LastCheckpoint()], max_epochs=epochs).fit(
            model, data(), ckpt_path=path if epochs == 3 else None
        )
    assert torch.equal(weights_of(model), weights_of(whole))


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"decay is 1\.0; it must be at least 0 and below 1"):
        WeightAverage(1.0)
