"""A method with several predictions, of which some faces are not valid: logged, recorded, drawn and ranked by name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks import ContactSheet, DenseSheet, EvaluationRecord
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.commands.leaderboard import main as leaderboard
from lightning_faces.errors import DataError
from lightning_faces.evaluation.records import read_record, read_samples
from tests.callbacks.test_evaluation_record import Data, Noisy, expected_nme, trainer

NAMES = ("first", "second", "last_1")


class Passes(Noisy):
    """Passes that halve the error; the first gives up on two faces, one of which has no labels."""

    prediction_names = NAMES
    given_up: tuple[int, ...] = (3, 7)

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        found = {}
        for number, name in enumerate(NAMES):
            noisy = super().predict_faces(batch)
            noisy.landmarks = batch["landmarks"] + (noisy.landmarks - batch["landmarks"]) / 2**number
            if number == 0:
                noisy.valid = torch.tensor([i not in self.given_up for i in batch["index"].tolist()])
                noisy.reason = ["" if good else "too few pixels" for good in noisy.valid.tolist()]
                noisy.landmarks[~noisy.valid] = float("nan")
            found[name] = noisy
        return found

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        return self.predict_named(batch)["last_1"]

    def num_parameters(self) -> int:
        return 77

    @property
    def converged(self) -> bool:
        return True


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "experiment" / "run"
    callbacks = [EvaluationRecord(), ContactSheet(), DenseSheet()]
    method = Passes()
    fit = trainer(folder, callbacks=callbacks, limit_train_batches=1, num_sanity_val_steps=1)
    fit.fit(method, datamodule=Data())
    nme = expected_nme()
    assert float(fit.callback_metrics["val/nme"]) == pytest.approx(nme.mean() / 4, rel=1e-5)
    assert float(fit.callback_metrics["val/second/nme"]) == pytest.approx(nme.mean() / 2, rel=1e-5)
    assert float(fit.callback_metrics["val/first/nme"]) == pytest.approx(np.delete(nme, 3).mean(), rel=1e-5)
    results = fit.test(method, datamodule=Data(), verbose=False)[0]
    assert results["test/second/nme_60_90"] == pytest.approx(2 * results["test/nme_60_90"], rel=1e-5)
    return folder


def test_each_prediction_has_a_record_with_its_own_errors(run: Path) -> None:
    nme = expected_nme()
    files = sorted(path.name for path in (run / "records").glob("*.json"))
    assert files == [f"randomfaces-test-32px.{name}.json" for name in sorted(NAMES)]
    assert len(list((run / "records").iterdir())) == 6
    for number, name in enumerate(NAMES):
        path = run / "records" / f"randomfaces-test-32px.{name}.json"
        record = read_record(path)
        samples = read_samples(path, record)
        assert (record.prediction, record.method, record.parameters) == (name, "Passes", 77)
        assert record.training.converged
        expected = nme / 2**number
        if number == 0:
            expected[3] = np.nan
            assert record.invalid == {"too few pixels": 1}
            assert samples["invalid"].nonzero()[0].tolist() == [3]
            assert record.metrics["nme"].samples == 21
        else:
            assert record.invalid == {}
        np.testing.assert_allclose(samples["nme"], expected, atol=1e-6)
        assert record.protocol["samples"] == "22 of 23"


def test_each_prediction_is_drawn(run: Path) -> None:
    pictures = {path.name for path in (run / "pictures").iterdir()}
    assert pictures == {
        f"{split}{kind}-{when}.{name}.png"
        for name in NAMES
        for kind in ("", "-dense")
        for split, when in (("val", "epoch0000"), ("val", "last"), ("test", "data"))
    }
    faces = [read_samples(p, read_record(p))["faces"] for p in sorted((run / "records").glob("*.json"))]
    assert not np.array_equal(faces[0], faces[2])


def test_predictions_are_ranked_as_variants(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaderboard([str(run.parents[1]), "--csv", str(tmp_path / "board.csv")])
    with (tmp_path / "board.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "nme"]
    assert [(row["prediction"], row["rank"], row["invalid"]) for row in rows] == [
        ("last_1", "1", "0"), ("second", "2", "0"), ("first", "3", "1")
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "Passes (first) ‡" in out
    assert "1 of 22 faces are not valid and left out of the means (1: too few pixels)" in " ".join(out.split())


class Nothing(Passes):
    """Gives up on every face."""

    given_up = tuple(range(23))


def test_a_method_that_gives_up_on_all_faces_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No face of RandomFaces is valid.*22 of 22.*too few pixels"):
        trainer(tmp_path, callbacks=[EvaluationRecord()]).test(Nothing(), datamodule=Data(), verbose=False)
    assert not (tmp_path / "records").exists()
