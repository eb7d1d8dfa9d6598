"""One contract for every method: what it gives and how it trains, whatever it is made of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import EvaluationRecord, LastCheckpoint
from datamodules.base import FaceDataModule
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.records import read_record
from lightning_faces.methods.base import FaceMethod, TermMean, term_means, weighted_sum
from lightning_faces.methods.checkpoint import load_method
from tests.callbacks.training import trainer
from tests.datamodules import test_contract as data_modules
from tests.fakes.noise_faces import NoiseFaces


def batch_of(data: FaceDataModule, method: FaceMethod, stage: str = "fit", count: int = 5) -> FaceBatch:
    """The first training (or test) batch, with the targets that the method needs."""
    data.batch_size, data.num_workers = count, 0
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.strategy.connect(method)
    data.setup(stage)
    loader = data.train_dataloader() if stage == "fit" else data.test_dataloader()
    return data.on_after_batch_transfer(next(iter(loader)), 0)  # type: ignore[no-any-return]


def rows_of(batch: FaceBatch, rows: Any) -> FaceBatch:
    """Some samples of a batch."""
    chosen: Any = {key: value[rows] if isinstance(value, Tensor) else value for key, value in batch.items()}
    chosen["has"] = {key: value[rows] for key, value in batch["has"].items()}
    chosen["sample_id"] = np.array(batch["sample_id"])[rows].tolist()
    return chosen  # type: ignore[no-any-return]


def converted(batch: FaceBatch, dtype: torch.dtype) -> FaceBatch:
    """A batch in another precision."""
    return {key: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for key, v in batch.items()}  # type: ignore[return-value]


def tensors(prediction: FacePrediction) -> dict[str, Tensor]:
    """All floating-point values of a prediction."""
    named = {
        key: getattr(prediction, key) for key in ("landmarks", "vertices", "coefficients", "visible", "uncertainty")
    }
    named |= {f"dense.{key}": value for key, value in prediction.dense.items()}
    if prediction.camera is not None:
        named |= {"matrix": prediction.camera.matrix, "pose": prediction.camera.pose}
    return {key: value for key, value in named.items() if value is not None}


def assert_same(one: FacePrediction, other: FacePrediction, tolerance: float = 0.0) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        scale = float(value.abs().max().clamp(min=1))
        torch.testing.assert_close(second[key].to(value), value, rtol=0, atol=tolerance * scale, msg=key)


def loss_and_gradient(method: FaceMethod, batch: FaceBatch) -> tuple[float, float]:
    method.zero_grad()
    terms = method.terms(batch)
    loss = weighted_sum(terms, term_means(terms))
    loss.backward()
    gradients = [p.grad.double().norm() for p in method.parameters() if p.grad is not None]
    return float(loss.detach()), float(torch.stack(gradients).norm()) if gradients else 0.0


class NoNoise(Callback):
    """Trains with fixed statistics and without dropout: those of a batch and noise are those of a process."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.eval()


class MethodContract(ABC):
    """Subclasses say how to make a small method and its data; the tests are the same for all."""

    steps = 20
    """Steps on one batch after which the loss must have fallen."""
    falls_to = 0.9
    """To which part of the first at least."""
    tolerance = 1e-5
    """Of values that depend in their last bits on which samples are in a batch, over their size."""
    half_tolerance = 0.05
    """Of a prediction in bfloat16, over its size."""
    spoil = True
    """Whether a loss without a single target has a zero gradient (a regularised one has not)."""

    @abstractmethod
    def make(self, image_size: int = 32) -> FaceMethod:
        """A small method, the same each time."""

    def data(self, **options: Any) -> FaceDataModule:
        """Data of 32 pixels that it can be trained on."""
        return NoiseFaces(**options)

    def method(self, **options: Any) -> FaceMethod:
        torch.manual_seed(0)
        return self.make(**options)

    @pytest.fixture(scope="class")
    def batch(self) -> FaceBatch:
        return batch_of(self.data(), self.method())

    @property
    def descends(self) -> bool:
        return self.method().make_optimizer is not None

    def fitted(self, folder: Path, *callbacks: Any, **options: Any) -> tuple[FaceMethod, Trainer]:
        method = self.method()
        run = trainer(folder, list(callbacks), **{"max_epochs": 2, "num_sanity_val_steps": 0, **options})
        run.fit(method, self.data())
        return method.eval(), run

    def test_the_loss_falls_on_a_batch(self, batch: FaceBatch, tmp_path: Path) -> None:
        if not self.descends:
            before = self.method()
            method, _ = self.fitted(tmp_path, max_epochs=3)
            errors = [(m.predict_faces(batch).landmarks - batch["landmarks"])[..., :2].norm() for m in (before, method)]
            assert errors[1] < self.falls_to * errors[0]
            return
        method = self.method().train()
        optimizer: Any = method.configure_optimizers()
        optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        losses = []
        for _ in range(self.steps):
            torch.manual_seed(0)
            losses.append(loss_and_gradient(method, batch)[0])
            optimizer.step()
        assert np.isfinite(losses).all()
        assert np.mean(losses[-3:]) < self.falls_to * losses[0]

    def test_the_loss_is_finite_on_every_data_module_that_fits(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if not self.descends:
            pytest.skip("it has no loss")
        trained, method = [], self.method(image_size=64).train()
        for contract in data_modules.DataModuleContract.__subclasses__():
            if "train" not in contract.splits:
                continue
            try:
                batch = batch_of(contract().make(written(contract, tmp_path_factory), image_size=64), method, count=2)
            except ConfigurationError:
                continue  # it lacks a target, or has another face model or landmark scheme
            loss, gradient = loss_and_gradient(method, batch)
            assert np.isfinite([loss, gradient]).all(), contract.__name__
            assert gradient > 0, contract.__name__
            trained.append(contract.__name__)
        assert "TestSyntheticFaces" in trained

    def test_samples_without_a_target_count_nothing(self, batch: FaceBatch) -> None:
        if not self.descends:
            pytest.skip("it has no loss")
        method = self.method().eval()
        spoiled = copy.deepcopy(batch)
        for key, has in spoiled["has"].items():
            has[3:] = False
            spoiled[key][3:] = 0  # type: ignore[literal-required]
        torch.manual_seed(0)
        expected = loss_and_gradient(method, rows_of(batch, slice(3)))
        torch.manual_seed(0)
        assert loss_and_gradient(method, spoiled) == pytest.approx(expected, rel=20 * self.tolerance)
        for key, has in spoiled["has"].items():
            has[:] = False
            spoiled[key][:] = 0  # type: ignore[literal-required]
        loss, gradient = loss_and_gradient(method, spoiled)
        assert (loss, gradient) == (0.0, 0.0) if self.spoil else np.isfinite([loss, gradient]).all()
        assert method.terms(spoiled).keys() == method.terms(batch).keys()

    def test_uneven_batches_make_the_loss_of_the_whole(self, batch: FaceBatch) -> None:
        if not self.descends:
            pytest.skip("it has no loss")
        method = self.method().eval()
        whole, parts = TermMean(), TermMean()
        with torch.no_grad():
            whole.update(method.terms(batch))
            for rows in (slice(4), slice(4, 5)):
                parts.update(method.terms(rows_of(batch, rows)))
        assert float(parts.compute()) == pytest.approx(float(whole.compute()), rel=20 * self.tolerance)

    def test_predictions_are_pure(self, batch: FaceBatch) -> None:
        method = self.method().eval()
        before = copy.deepcopy(method.state_dict())
        with torch.no_grad():
            first = method.predict_named(batch)
            alone = method.predict_named(rows_of(batch, slice(2, 3)))
            again = method.predict_named(batch)
        assert tuple(first) == tuple(method.prediction_names)
        for name, prediction in first.items():
            assert_same(prediction, again[name])
            for key, value in tensors(alone[name]).items():
                size = float(value.abs().max().clamp(min=1))
                torch.testing.assert_close(
                    value[0], tensors(prediction)[key][2], rtol=0, atol=20 * self.tolerance * size
                )
        assert_same(first[method.prediction_names[-1]], method.predict_faces(batch))
        for key, value in method.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_precision(self, batch: FaceBatch) -> None:
        method = self.method().eval()
        with torch.no_grad():
            single = method.predict_faces(batch)
            with torch.autocast("cpu", torch.bfloat16):
                half = method.predict_faces(batch)
            double = self.method().double().eval().predict_faces(converted(batch, torch.float64))
        for key, value in tensors(half).items():
            assert value.dtype == torch.float32, key
        for key, value in tensors(double).items():
            assert value.dtype in (torch.float32, torch.float64), key
        scale = float(single.landmarks.abs().max())
        assert float((half.landmarks - single.landmarks).abs().max()) < self.half_tolerance * scale
        assert float((double.landmarks - single.landmarks).abs().max()) < 1e-3 * scale
        if self.descends:
            with torch.autocast("cpu", torch.bfloat16):
                terms = method.terms(batch)
            assert all(term.value.dtype == torch.float32 for term in terms.values())

    def test_a_checkpoint_gives_the_same_method(self, batch: FaceBatch, tmp_path: Path) -> None:
        method, _ = self.fitted(tmp_path, LastCheckpoint())
        loaded = load_method(tmp_path / "checkpoints" / "last.ckpt", method=type(method))
        assert loaded.num_parameters() == method.num_parameters()
        with torch.no_grad():
            assert_same(method.predict_faces(batch), loaded.predict_faces(batch))

    def test_a_test_leaves_a_record_of_each_prediction(self, tmp_path: Path) -> None:
        method, _ = self.fitted(tmp_path)
        run = trainer(tmp_path, [EvaluationRecord()])
        (logged,) = run.test(method, self.data(), verbose=False)
        assert np.isfinite(list(logged.values())).all()
        records = [read_record(path) for path in (tmp_path / "records").glob("*.json")]
        assert sorted(record.prediction for record in records) == sorted(method.prediction_names)
        for record in records:
            # Invalid faces are left out and counted.
            assert record.metrics["nme"].samples + sum(record.invalid.values()) == 13
            below = f"{record.prediction}/" if record.prediction != method.prediction_names[-1] else ""
            assert record.metrics["nme"].value == pytest.approx(logged[f"test/{below}nme"], rel=1e-9)

    @pytest.mark.slow
    def test_two_processes_are_as_good_as_one(self, tmp_path: Path) -> None:
        """Of the same batches: each process has half of what one has."""
        results = []
        for devices in (1, 2):
            method, data = self.method(), self.data(batch_size=4 // devices, train_size=16, test_size=13)
            options: dict[str, Any] = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
            fit = trainer(tmp_path / str(devices), [NoNoise()], max_epochs=2, num_sanity_val_steps=0, **options)
            fit.fit(method, data)
            results += trainer(tmp_path, [], **options).test(method, data, verbose=False)
        assert results[0].keys() == results[1].keys()
        for key, value in results[0].items():
            assert results[1][key] == pytest.approx(value, rel=1e-3), key

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_cuda_gives_the_same(self, batch: FaceBatch) -> None:
        method = self.method().eval()
        with torch.no_grad():
            expected = method.predict_faces(batch)
            moved: Any = data_to(batch, "cuda")
            assert_same(expected, method.cuda().predict_faces(moved), 1e-3)
        if self.descends:
            assert np.isfinite(loss_and_gradient(method.train(), moved)).all()


_WRITTEN: dict[str, Path] = {}


def written(contract: type[data_modules.DataModuleContract], paths: pytest.TempPathFactory) -> Path:
    """Folder of the tiny data set, written once in a test process."""
    if contract.__name__ not in _WRITTEN:
        _WRITTEN[contract.__name__] = paths.mktemp("data")
        contract.write(_WRITTEN[contract.__name__])
    return _WRITTEN[contract.__name__]


def data_to(batch: Any, device: str) -> Any:
    """A batch on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {key: data_to(value, device) for key, value in batch.items()} if isinstance(batch, dict) else batch
