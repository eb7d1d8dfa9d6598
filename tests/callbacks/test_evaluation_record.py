from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks.evaluation_record import EvaluationRecord
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec, collate_faces
from lightning_faces.errors import DataError
from lightning_faces.evaluation import aggregate
from lightning_faces.evaluation.records import MetricValue, read_record, read_samples
from lightning_faces.evaluation.scorer import Scorer
from lightning_faces.evaluation.scores import units
from lightning_faces.geometry import Camera
from lightning_faces.methods import FaceMethod
from lightning_faces.methods.base import Term
from tests.metrics import reference

COUNT, VERTICES, IDENTITY, EXPRESSION = 23, 40, 5, 3
SPEC = FaceSpec(
    image_size=32, face_model="m", face_model_hash="1234", num_identity=IDENTITY, num_expression=EXPRESSION,
    num_vertices=VERTICES,
)  # fmt: skip
SHAPES = {
    "landmarks": (68, 3), "landmark_mask": (68, 3), "visible": (68,), "face_size": (), "yaw": (), "pose": (6,),
    "coefficients": (IDENTITY + EXPRESSION,), "vertices": (VERTICES, 3),
}  # fmt: skip


def box_of(points: np.ndarray) -> float:
    return reference.box_size(points.astype(np.float64))


def summarise(table: dict[str, np.ndarray]) -> dict[str, MetricValue]:
    return aggregate.summarise(table, units())


class Faces(Dataset[dict[str, Any]]):
    """Random points as faces: three views per subject, and one face without landmarks."""

    name, image_size, margin = "RandomFaces", 32, 1.3

    def __len__(self) -> int:
        return COUNT

    def fingerprint(self) -> str:
        return "abc123"

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        landmarks = (rng.normal(size=(68, 3)) * 5 + 16).astype(np.float32)
        sample = {
            "index": index,
            "sample_id": f"face{index:03d}",
            "image": rng.random((3, 32, 32), dtype=np.float32),
            "box": np.array([0, 0, 31, 31]),
            "crop_to_file": np.eye(2, 3),
            "subject": index // 3,
            "view": index % 3,
            "landmarks": landmarks,
            "landmark_mask": np.ones((68, 3), dtype=bool),
            "visible": rng.random(68) < 0.7,
            "face_size": box_of(landmarks),
            "yaw": -88.0 + 8 * index,
            "pose": np.array([0.2, *rng.normal(size=3) * 0.3, 16, 16]),
            "coefficients": rng.normal(size=IDENTITY + EXPRESSION),
            "vertices": rng.normal(size=(VERTICES, 3)) * 5 + 16,
        }
        if index == 7:
            for key in SHAPES:
                del sample[key]
        return sample


class Data(LightningDataModule):
    spec = SPEC

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(Faces(), batch_size=5, collate_fn=lambda samples: collate_faces(samples, SHAPES))

    train_dataloader = val_dataloader = test_dataloader = _loader


class Noisy(FaceMethod):
    """The truth and noise that depends on the sample alone; ``shift`` is there to have a parameter."""

    spec = SPEC
    broken: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.0), None, "epoch")
        self.shift = torch.nn.Parameter(torch.zeros(3))

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        size = len(batch["index"])
        return {"shift": Term(self.shift.square().sum().expand(size), torch.ones(size))}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        def noise(key: str, size: float) -> Tensor:
            made = [np.random.default_rng(1000 + i).normal(size=SHAPES[key]) * size for i in batch["index"].tolist()]
            return batch[key] + torch.from_numpy(np.stack(made)).float()  # type: ignore[literal-required,no-any-return]

        landmarks = noise("landmarks", 1.0) + self.shift
        for index in self.broken:
            landmarks[batch["index"] == index] = float("nan")
        return FacePrediction(
            landmarks,
            noise("vertices", 0.5),
            coefficients=noise("coefficients", 0.3),
            camera=Camera.from_pose(noise("pose", 0.1)),
        )


def trainer(folder: Path, **options: Any) -> Trainer:
    options = {"callbacks": [EvaluationRecord(icp=True)], "logger": False, "max_epochs": 1, **options}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "experiment" / "run"
    trainer(folder).test(Noisy(), datamodule=Data(), verbose=False)
    return folder


def expected_nme() -> np.ndarray:
    errors = []
    for i in range(COUNT):
        if i != 7:
            face = Faces()[i]["landmarks"].astype(np.float64)
            noisy = face + np.random.default_rng(1000 + i).normal(size=(68, 3)).astype(np.float32)
            errors.append(reference.nme(noisy[:, :2], face[:, :2]))
    return np.array(errors)


def test_the_record_holds_every_metric_with_its_interval_and_the_samples_behind_it(written: Path) -> None:
    path = written / "records" / "randomfaces-test-32px.json"
    record = read_record(path)
    samples = read_samples(path, record)
    expected = expected_nme()
    np.testing.assert_allclose(samples["nme"], expected, atol=1e-6)
    assert samples["sample_id"].tolist() == [f"face{i:03d}" for i in range(COUNT) if i != 7]
    nme = record.metrics["nme"]
    assert nme.value == pytest.approx(expected.mean(), abs=1e-6)
    assert nme.low < nme.value < nme.high
    assert nme.samples == COUNT - 1
    assert set(record.metrics) == {
        "nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "nme_auc_7", "nme_failure_7", "nme_visible",
        "nme_3d_raw", "nme_3d_mean", "nme_3d_min", "nme_3d_similarity", "gte", "ape", "cvgtce", "cvgtce_printed",
        "dense_nme", "dense_nme_3d", "vertex_mm", "icp", "icp_0_30", "icp_30_60", "icp_60_90", "icp_mean", "pose_error",
        "pitch_deg", "yaw_deg", "roll_deg", "identity_error", "expression_error",
    }  # fmt: skip
    bins = [record.metrics[f"nme_{name}"].value for name in ("0_30", "30_60", "60_90")]
    assert record.metrics["nme_mean"].value == pytest.approx(np.mean(bins), abs=1e-12)
    assert record.metrics["cvgtce_printed"].value < record.metrics["cvgtce"].value
    assert record.metrics["identity_error"].value == pytest.approx(
        np.mean(
            [np.linalg.norm(np.random.default_rng(1000 + i).normal(size=8)[:5]) * 0.3 for i in range(COUNT) if i != 7]
        ),
        abs=1e-5,
    )
    assert {name: metric.unit for name, metric in record.metrics.items() if metric.unit != "fraction"} == {
        "ape": "px", "vertex_mm": "mm", "pose_error": "rad", "identity_error": "sd", "expression_error": "sd",
        **dict.fromkeys(("pitch_deg", "yaw_deg", "roll_deg"), "deg"),
    }  # fmt: skip
    assert record.metrics["nme_auc_7"].higher_is_better
    assert (record.method, record.run, record.parameters) == ("Noisy", "experiment/run", 3)
    assert (record.dataset, record.fingerprint, record.margin) == ("RandomFaces", "abc123", 1.3)
    assert record.protocol["samples"] == "22 of 23"
    assert record.speed.images_per_second > 0
    assert record.speed.batch_size == 5
    assert record.speed.peak_memory > 2**20
    assert record.packages["torch"].startswith("2.11")


def test_best_median_and_worst_faces_are_drawn(written: Path) -> None:
    path = written / "records" / "randomfaces-test-32px.json"
    samples = read_samples(path, read_record(path))
    order = np.argsort(expected_nme())
    assert samples["faces_row"].tolist() == [order[0], order[10], order[21]]
    for number in range(3):
        face = samples["faces"][:, number * 196 : (number + 1) * 196].astype(int)
        green = (face[..., 1] > 200) & (face[..., 0] < 80)
        red = (face[..., 0] > 240) & (face[..., 1] < 80)
        assert min(green.sum(), red.sum()) > 100


def test_the_same_run_twice_replaces_its_record(written: Path) -> None:
    before = read_record(written / "records" / "randomfaces-test-32px.json")
    trainer(written).test(Noisy(), datamodule=Data(), verbose=False)
    files = sorted(path.name for path in (written / "records").iterdir())
    assert len(files) == 2
    after = read_record(written / "records" / "randomfaces-test-32px.json")
    assert after.metrics == before.metrics
    assert after.key() == before.key()


def test_a_prediction_that_is_not_finite_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    method = Noisy()
    method.broken = (4, 19)
    with pytest.raises(DataError, match=r"2 of 22 .*face004 \(index 4\), face019 \(index 19\); no record"):
        trainer(tmp_path).test(method, datamodule=Data(), verbose=False)
    assert not (tmp_path / "records").exists()


def test_the_record_knows_the_training_of_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    fit = trainer(folder, max_epochs=2, limit_train_batches=3, limit_val_batches=1, num_sanity_val_steps=0)
    fit.fit(Noisy(), datamodule=Data())
    fit.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert json.loads((folder / "training.json").read_text()) == {"samples_seen": 30, "epochs": 2, "converged": False}
    # Another process later: a new trainer and a new callback.
    trainer(folder).test(Noisy(), datamodule=Data(), ckpt_path=folder / "checkpoints" / "last.ckpt", verbose=False)
    training = read_record(folder / "records" / "randomfaces-test-32px.json").training
    assert (training.samples_seen, training.epochs, training.converged) == (30, 2, False)
    # The training went on and converged; the checkpoint from before it did is then one of a converged training.
    (folder / "training.json").write_text(json.dumps({"samples_seen": 60, "epochs": 4, "converged": True}))
    trainer(folder).test(Noisy(), datamodule=Data(), ckpt_path=folder / "checkpoints" / "last.ckpt", verbose=False)
    assert read_record(folder / "records" / "randomfaces-test-32px.json").training.converged


@pytest.mark.parametrize(
    ("history", "converged"),
    [
        ([0.5, 0.4, 0.3], False),  # too short to tell
        ([0.5, 0.4, 0.3, 0.2, 0.15, 0.1], False),
        ([0.5, 0.2, 0.1, 0.0999, 0.0999, 0.0998], True),
        ([0.5, 0.2, 0.1, 0.1, 0.12, 0.13], True),
    ],
)
def test_converged_means_that_the_last_third_brought_less_than_one_percent(
    history: list[float], converged: bool
) -> None:
    callback = EvaluationRecord()
    callback.history = history
    assert callback.converged is converged


class Shifted(Noisy):
    """Some of the vertices, all moved in depth, and no pose."""

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        ids = torch.arange(10, 30, 2)
        vertices = batch["vertices"][:, ids] + torch.tensor((0.0, 0.0, 300.0))
        return FacePrediction(batch["landmarks"] + self.shift, vertices, ids)


def test_a_method_without_a_pose_is_scored_on_the_vertices_that_it_names(tmp_path: Path) -> None:
    trainer(tmp_path).test(Shifted(), datamodule=Data(), verbose=False)
    metrics = read_record(tmp_path / "records" / "randomfaces-test-32px.json").metrics
    assert metrics["dense_nme"].value == pytest.approx(0, abs=1e-6)
    assert metrics["dense_nme_3d"].value == pytest.approx(0, abs=1e-5)
    # Nearest points do not depend on where depth begins.
    assert metrics["icp"].value == pytest.approx(0, abs=1e-5)
    assert metrics["icp_60_90"].samples == 8
    assert metrics["vertex_mm"].value == pytest.approx(0, abs=1e-4)
    assert "pose_error" not in metrics


class Collapsed(Noisy):
    """A hundredth of the true size."""

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        middle = batch["vertices"][:, :1]
        return FacePrediction(
            batch["landmarks"] + self.shift,
            middle + 0.01 * (batch["vertices"] - middle),
            camera=Camera.from_pose(batch["pose"]),
        )


def test_a_collapsed_face_is_not_perfect_after_icp(tmp_path: Path) -> None:
    trainer(tmp_path).test(Collapsed(), datamodule=Data(), verbose=False)
    assert read_record(tmp_path / "records" / "randomfaces-test-32px.json").metrics["icp"].value > 0.2


def test_labels_without_depth_have_no_three_dimensional_metric() -> None:
    scorer = Scorer()
    samples = [Faces()[i] for i in range(5)]
    for sample in samples:
        sample["landmark_mask"][:, 2] = False
    batch = collate_faces(samples, {key: SHAPES[key] for key in ("landmarks", "landmark_mask", "face_size", "yaw")})
    scorer.update(FacePrediction(batch["landmarks"] + 1.0), batch)
    scored = scorer.gather()
    table = scored.table
    assert sorted(table) == ["index", "invalid", "nme", "sample_id", "subject", "yaw"]
    assert (
        "Without depth in the labels there are no scores nme_3d_raw, nme_3d_mean, nme_3d_min, nme_3d_similarity, "
        "gte, ape, cvgtce, cvgtce_printed."
    ) in scored.news
    metrics = summarise(table)
    assert "nme_mean" not in metrics  # these five faces look to one side
    sizes = [box_of(sample["landmarks"]) for sample in samples]
    assert metrics["nme"].value == pytest.approx(np.mean(2**0.5 / np.array(sizes)), rel=1e-5)


def test_balanced_draws_have_the_mean_of_the_bins_and_their_spread() -> None:
    # Sizes of the bins by AFLW's own yaw (FACTS.md C).
    sizes = np.array([1306, 462, 232])
    yaw = np.repeat([10.0, -45.0, 80.0], sizes)
    nme = np.random.default_rng(0).normal(np.repeat([0.03, 0.04, 0.05], sizes), 0.01)
    table = {"index": np.arange(2000), "sample_id": np.arange(2000).astype(str), "yaw": yaw, "nme": nme}
    table["subject"] = np.full(2000, -1)
    metrics = summarise(table)
    balanced, mean = metrics["nme_balanced"], metrics["nme_mean"]
    assert balanced.samples == 696
    assert balanced.value == pytest.approx(mean.value, abs=1e-4)
    # The mean of 232 drawn of n without repetition varies by s^2 / 232 (1 - 232 / n); all of the third bin are drawn.
    deviation = np.sqrt((0.01**2 / 232 * (1 - 232 / sizes)).sum()) / 3
    assert balanced.high - balanced.low == pytest.approx(2 * 1.96 * deviation, rel=0.3)
    assert "nme_balanced" not in summarise({key: column[:-1] for key, column in table.items()})


def test_wandb_gets_summary_table_curve_and_artifact(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    trainer(tmp_path / "x" / "y", logger=logger).test(Noisy(), datamodule=Data(), verbose=False)
    summary = dict(logger.experiment.summary)
    assert summary["RandomFaces-test/nme"] == pytest.approx(expected_nme().mean(), abs=1e-6)
    assert {"RandomFaces-test/metrics", "RandomFaces-test/ced_table"} <= set(summary)
    logger.experiment.finish()
    log = next((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    end = time.monotonic() + 30  # its service writes in the background
    while b"evaluation-record" not in log.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    assert b"evaluation-record" in log.read_bytes()
