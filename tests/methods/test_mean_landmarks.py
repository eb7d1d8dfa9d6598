"""The baseline is exactly the mean over the training crops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import MeanLandmarks, Zhao2016
from tests.fakes.noise_faces import NoiseFaces


def trainer(folder: Path) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )


def test_one_epoch_is_the_mean_of_the_training_split(tmp_path: Path) -> None:
    method, data = MeanLandmarks(), NoiseFaces(train_size=16, batch_size=4)
    run = trainer(tmp_path)
    run.fit(method, datamodule=data)
    crops = torch.stack([data.datasets["train"][i]["landmarks"] for i in range(16)])
    batch = next(iter(data.val_dataloader()))
    prediction = method.predict_faces(batch).landmarks
    torch.testing.assert_close(prediction, crops.double().mean(dim=0).float().expand(4, -1, -1), atol=1e-4, rtol=0)
    # The score that the trainer logs is the plain formula over all 13 test samples, the last batch of one included.
    logged = run.test(method, datamodule=data, verbose=False)[0]
    truth = [data.datasets["test"][i] for i in range(13)]
    mean = crops.mean(dim=0)[:, :2]
    nme = [float((mean - s["landmarks"][:, :2]).norm(dim=-1).mean() / s["face_size"]) for s in truth]
    assert logged["test/nme"] == pytest.approx(sum(nme) / 13, rel=1e-5)
    low = [value for value, s in zip(nme, truth) if abs(float(s["yaw"])) <= 30]
    assert logged["test/nme_0_30"] == pytest.approx(sum(low) / len(low), rel=1e-5)


def test_data_of_another_size_is_refused_before_the_first_step(tmp_path: Path) -> None:
    method = Zhao2016(image_size=64, channels=(4, 4, 4, 4), hidden=8)
    with pytest.raises(ConfigurationError, match="Zhao2016 was built for image_size 64 but NoiseFaces gives 32"):
        trainer(tmp_path).fit(method, datamodule=NoiseFaces(image_size=32))


def test_a_split_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has 3 samples, fewer than one batch of 4.*at most 3"):
        trainer(tmp_path).fit(MeanLandmarks(), datamodule=NoiseFaces(train_size=3, batch_size=4))


class _Factory:
    """As the command line's, it holds the data."""

    def __call__(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.1)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("the data set would be copied")


def test_a_copy_of_the_weights_does_not_copy_the_data() -> None:
    method = Zhao2016(image_size=32)
    method.make_optimizer = _Factory()
    copied = copy.deepcopy(method)
    assert copied.make_optimizer is method.make_optimizer
    for ours, theirs in zip(method.parameters(), copied.parameters()):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
