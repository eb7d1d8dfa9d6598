"""The base class: passes without gradients, named predictions, precision, and weights of earlier versions."""

from __future__ import annotations

import functools
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import BestCheckpoint, EvaluationRecord, GracefulStop, LastCheckpoint, SeedSteps
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import MeanLandmarks, PRNet, Zhao2016
from tests.callbacks.training import method as network
from tests.callbacks.training import trainer
from tests.fakes.noise_faces import NoiseFaces
from tests.methods.test_toys import KillAt, Killed
from tests.methods.toys import Cascade

BATCHES = 3
"""A pass over 10 faces in batches of at most 4; the last is not dropped."""


def data() -> NoiseFaces:
    return NoiseFaces(train_size=10, batch_size=4)


class Seen(Callback):
    """What each pass was given, and how many stages each validation scored."""

    def __init__(self) -> None:
        self.passes: dict[int, list[int]] = {}
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.passes.setdefault(trainer.current_epoch, []).extend(batch["index"].tolist())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(len(pl_module.regressors))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    method = Cascade()
    trainer(tmp_path_factory.mktemp("whole"), [SeedSteps()]).fit(method, data())
    return method.regressors.clone()


def test_a_pass_sees_each_sample_once_and_is_validated_when_it_has_ended(tmp_path: Path) -> None:
    method, seen, record = Cascade(), Seen(), EvaluationRecord()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = trainer(tmp_path, [seen, record, BestCheckpoint(), LastCheckpoint(1)], num_sanity_val_steps=0)
        run.fit(method, data())
    assert all(sorted(indices) == list(range(10)) for indices in seen.passes.values())
    assert seen.validated == [1, 2, 3]
    assert run.global_step == 3 * BATCHES
    assert (record.samples_seen, record.epochs) == (30, 3)
    assert method.num_parameters() == 204 * (49 + 193 + 433)
    assert set(run.callback_metrics) == {
        f"val/{name}{key}" for name in ("", "stage_1/", "stage_2/") for key in ("nme", "gte")
    }


@pytest.mark.parametrize("kill", [1, 2, 4, 5, 7])
def test_an_interrupted_pass_begins_again(kill: int, tmp_path: Path, whole: torch.Tensor) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, [SeedSteps(), LastCheckpoint(1), KillAt(kill)]).fit(Cascade(), data())
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    begun = kill - kill % BATCHES
    assert saved["global_step"] == begun
    position = saved["NoiseFaces"]
    assert (position["epoch"], position["batches"]) == (begun // BATCHES, 0)
    method, seen = Cascade(), Seen()
    run = trainer(tmp_path, [SeedSteps(), LastCheckpoint(1), seen])
    run.fit(method, data(), ckpt_path=path)
    assert torch.equal(method.regressors, whole)
    assert run.global_step == 3 * BATCHES
    assert all(sorted(indices) == list(range(10)) for indices in seen.passes.values())
    assert min(seen.passes) == begun // BATCHES


def test_sigterm_within_a_pass_loses_no_sample(tmp_path: Path, whole: torch.Tensor) -> None:
    class Ask(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == BATCHES + 1:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer(tmp_path, [SeedSteps(), LastCheckpoint(100), Ask(), GracefulStop()]).fit(Cascade(), data())
    signal.signal(signal.SIGTERM, before)
    method = Cascade()
    path = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, [SeedSteps(), LastCheckpoint(100)]).fit(method, data(), ckpt_path=path)
    assert torch.equal(method.regressors, whole)


def test_grown_buffers_take_the_shape_of_the_checkpoint_but_no_more_than_it_holds() -> None:
    method = Cascade()
    state = method.state_dict()
    state["regressors"] = torch.randn(2, 433, 204)
    method.load_state_dict(state)
    assert method.num_parameters() == 204 * (49 + 193)
    claimed = {"regressors": torch.zeros(1).expand(10**7, 433, 204)}
    with pytest.raises(RuntimeError, match="size mismatch for regressors"):
        Cascade().load_state_dict(claimed)


def test_a_method_without_a_training_says_what_it_lacks(tmp_path: Path) -> None:
    class Nothing(MeanLandmarks):
        prediction_names = ("good", "no/file")

    with pytest.raises(ConfigurationError, match="Nothing has a prediction 'no/file': use letters, digits and _"):
        trainer(tmp_path, []).test(Nothing(), data(), verbose=False)


def test_invalid_faces_are_left_out_of_the_logged_metrics(tmp_path: Path) -> None:
    class Picky(MeanLandmarks):
        def predict_faces(self, batch: FaceBatch) -> FacePrediction:
            prediction = super().predict_faces(batch)
            valid = batch["index"] % 2 == 0
            return FacePrediction(prediction.landmarks + 1e6 * ~valid[:, None, None], valid=valid)

    (picky,) = trainer(tmp_path, []).test(Picky(), data(), verbose=False)
    faces = data()
    faces.setup("test")
    even = [faces.datasets["test"][i] for i in range(0, 13, 2)]
    errors = [float((s["landmarks"][:, :2] - 15.5).norm(dim=-1).mean() / s["face_size"]) for s in even]
    assert picky["test/nme"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_losses_and_predictions_are_in_single_precision(precision: Any, tmp_path: Path) -> None:
    found: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
            found["landmarks"] = outputs["prediction"].landmarks

    method = network(optimizer=functools.partial(torch.optim.SGD, lr=0.01))
    run = trainer(tmp_path, [Look()], precision=precision, max_epochs=1)
    run.fit(method, NoiseFaces(train_size=16))
    assert found["landmarks"].dtype == torch.float32
    assert run.callback_metrics["train/loss"].dtype == torch.float32
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert torch.isfinite(run.callback_metrics["val/loss"])


def test_an_eps_that_vanishes_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="eps is 1e-08, which is too small for weights in float16"):
        trainer(tmp_path, [], precision="16-true").fit(network(), NoiseFaces())


BEFORE = {
    "landmark_network.convolutions.": "backbone.layers.",
    "landmark_network.regression.1.": "landmark_head.layers.0.",
    "landmark_network.regression.2.": "landmark_head.layers.1.",
    "landmark_network.regression.4.": "landmark_head.layers.3.",
    "depth_network.layers.": "depth_head.layers.",
}
BEFORE_TIMM = {
    "landmark_network.features.network.": "backbone.network.",
    "landmark_network.regression.": "landmark_head.layers.0.",
    "depth_network.layers.": "depth_head.layers.",
}
PRNET = {"network.encoder.": "backbone.layers.", "network.decoder.": "head.decoder."}
PRNET_TIMM = {"network.encoder.network.": "backbone.network.", "network.decoder.": "head.decoder."}


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        (Zhao2016, {"hidden": 8, "channels": (2, 2, 2, 2)}, BEFORE),
        (Zhao2016, {"encoder": "resnet10t"}, BEFORE_TIMM),
        (PRNet, {"width": 2}, PRNET),
        (PRNet, {"width": 2, "encoder": "resnet10t"}, PRNET_TIMM),
    ],
)
def test_checkpoints_from_before_the_heads_load(kind: Any, options: dict[str, Any], names: dict[str, str]) -> None:
    torch.manual_seed(0)
    saved = kind(image_size=32, **options).eval()
    state = saved.state_dict()
    for before, now in names.items():
        state = {before + key[len(now) :] if key.startswith(now) else key: value for key, value in state.items()}
    assert not set(state) & set(saved.state_dict())
    torch.manual_seed(1)
    loaded = kind(image_size=32, **options).eval()
    loaded.load_state_dict(state)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(image), saved(image))
