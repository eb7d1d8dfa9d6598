"""One record per evaluation: what the leaderboard reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_info
from numpy.typing import NDArray

from callbacks.pictures import contact_sheet, faces_of_batch
from lightning_faces.batch import FaceBatch
from lightning_faces.errors import DataError
from lightning_faces.evaluation.aggregate import NO_SCORES, summarise
from lightning_faces.evaluation.records import RECORD_VERSION, Record, Speed, Training, read_record, write_record
from lightning_faces.evaluation.scorer import Scored, Scorer, shared_model
from lightning_faces.evaluation.scores import SCORES, units
from lightning_faces.evaluation.speed import measure_speed
from lightning_faces.files import write_atomic
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.checkpoint import read_checkpoint

PACKAGES = ("lightning-faces", "torch", "lightning", "torchmetrics", "numpy", "scipy", "timm", "easypytorch3d")
FACE_PIXELS = 192
BACKBONE_OPTIONS = ("backbone", "encoder")
"""Constructor arguments that name a method's backbone."""
_CHECKPOINT: dict[str, type | tuple[type, ...]] = {
    "samples_seen": int,
    "epochs": int,
    "history": list,
    "stopped": bool,
    "seed": (int, type(None)),
}


class EvaluationRecord(Callback):
    """Writes one record per test data set and prediction into ``records/`` below the run folder, with an NPZ of errors.

    Scored is what data and method have, of :data:`lightning_faces.evaluation.scores.SCORES`; what is left out, and why,
    stands in the record's notes. Each value has a 95 % bootstrap interval. Each named prediction has a record of its
    own. The same run on the same data replaces its records.

    During training it counts the samples seen and follows the method's monitored metric. A training counts as converged
    if the method says so, and else if early stopping ended it, if it has nothing to optimise step by step, or if the
    best value of the last third of at least six validations is less than 1 % better than the best before.

    Args:
        icp: Score the error after iterative closest points too, from each true vertex to the nearest predicted one
            (about a second per face of 19,000 points).
    """

    def __init__(self, icp: bool = False) -> None:
        super().__init__()
        self.icp = icp
        self.samples_seen = 0
        self.epochs = 0
        self.history: list[float] = []
        self.stopped = False
        self.seed: int | None = None
        self._tests: dict[int, _Evaluation] = {}

    # While training -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the seed."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        self.seed = int(seed) if seed is not None else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch."""
        self.epochs = trainer.current_epoch + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of all ranks."""
        self.samples_seen += len(batch["index"]) * trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the monitored metric."""
        value = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        if trainer.state.fn == "fit" and not trainer.sanity_checking and value is not None:
            self.history.append(float(value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``training.json``, so that an evaluation of an earlier checkpoint knows how the training ended."""
        stoppers = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        self.stopped = any(stopper.stopped_epoch > 0 for stopper in stoppers) or not trainer.optimizers
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            converged = pl_module.converged if isinstance(pl_module, FaceMethod) else None
            content = {
                "samples_seen": self.samples_seen,
                "epochs": self.epochs,
                "converged": self.converged if converged is None else converged,
            }
            write_atomic(Path(trainer.default_root_dir) / "training.json", json.dumps(content).encode())

    @property
    def converged(self) -> bool:
        """Judged by the validations; see the class."""
        third = len(self.history) // 3
        if self.stopped or third < 2:
            return self.stopped
        return min(self.history[-third:]) > 0.99 * min(self.history[:-third])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {key: getattr(self, key) for key in _CHECKPOINT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting; a value of another type, as a stranger's checkpoint may hold, is left out."""
        for key, kind in _CHECKPOINT.items():
            value = state_dict.get(key)
            numbers = not isinstance(value, list) or all(isinstance(item, float) for item in value)
            if isinstance(value, kind) and numbers:
                setattr(self, key, value)

    # While testing --------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew; a data set without a fingerprint is refused before any work."""
        self._tests = {
            number: _Evaluation(trainer, pl_module, loader, self.icp) for number, loader in enumerate(_loaders(trainer))
        }
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Score the predictions of a batch."""
        evaluation = self._tests[dataloader_idx]
        if evaluation.first_batch is None:
            evaluation.first_batch = batch
        for name, prediction in outputs["predictions"].items():
            evaluation.scorers[name].update(prediction, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' samples; rank 0 writes the records.

        Raises:
            DataError: If an error is not finite, naming the samples, or nothing could be scored; no record of the data
                set is written then.
        """
        for evaluation in self._tests.values():
            found = {name: scorer.gather() for name, scorer in evaluation.scorers.items()}
            for name, scored in found.items():
                _check(scored, evaluation.loader.dataset.name, name)
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._write(trainer, pl_module, evaluation, found)
        self._tests = {}

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: _Evaluation, found: Mapping[str, Scored]
    ) -> None:
        batch = evaluation.first_batch
        assert isinstance(pl_module, FaceMethod)
        assert batch is not None
        with trainer.precision_plugin.forward_context():
            speed = measure_speed(lambda: pl_module.predict_faces(batch), len(batch["index"]), pl_module.device)
        training = self._training(trainer, pl_module)
        weights = _weights_hash(pl_module)
        for name, scored in found.items():
            record, chosen = _record(trainer, pl_module, evaluation, name, scored, weights, training, speed)
            faces = _draw(trainer, pl_module, evaluation.loader, name, scored.table["index"][chosen].tolist())
            samples = {**scored.table, "faces": faces, "faces_row": chosen}
            folder = Path(trainer.default_root_dir).absolute() / "records"
            path = write_record(folder, file_name(record), record, samples)
            for note in scored.news:
                rank_zero_info(f"{record.dataset}{f' ({name})' if name else ''}: {note}")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    _log_to_wandb(logger, read_record(path), path, scored.table.get("nme"))

    def _training(self, trainer: Trainer, method: FaceMethod) -> Training:
        checkpoint = trainer.ckpt_path
        state: dict[str, Any] = self.state_dict()
        folder = Path(trainer.default_root_dir)
        if checkpoint:
            callbacks = read_checkpoint(checkpoint).get("callbacks")
            saved = callbacks.get(self.state_key) if isinstance(callbacks, dict) else None
            state = saved if isinstance(saved, dict) else EvaluationRecord().state_dict()
            folder = Path(checkpoint).absolute().parent.parent
        judge = EvaluationRecord()
        judge.load_state_dict(state)
        converged = judge.converged
        end = _end_of_training(folder / "training.json")
        if end is not None and end[0] >= judge.samples_seen:
            converged = end[1]
        if method.converged is not None:
            converged = method.converged
        return Training(judge.samples_seen, judge.epochs, judge.seed, converged)


class _Evaluation:
    """The scorers of one test data set, one for each prediction."""

    def __init__(self, trainer: Trainer, method: LightningModule, loader: Any, icp: bool) -> None:
        self.loader = loader
        self.fingerprint: str = loader.dataset.fingerprint()
        self.first_batch: FaceBatch | None = None
        shared = shared_model(method, trainer.datamodule)  # type: ignore[attr-defined]
        scores = [score for score in SCORES if icp or not score.slow]
        names = method.prediction_names if isinstance(method, FaceMethod) else ("",)
        self.scorers = {name: Scorer(scores, shared) for name in names}


def file_name(record: Record) -> str:
    """Name of a record's files, without suffix: another one for each data set, split, size and prediction."""
    text = f"{record.dataset}-{record.split}-{record.image_size}px".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", text).strip("-")
    return f"{slug}.{record.prediction}" if record.prediction else slug


def _check(scored: Scored, dataset: str, prediction: str) -> None:
    for name, bad in scored.not_finite.items():
        ids = dict(zip(scored.table["index"].tolist(), scored.table["sample_id"].tolist()))
        shown = ", ".join(f"{ids[i]} (index {i})" for i in bad[:5])
        total = int((~np.isnan(scored.table[name])).sum() + np.isnan(scored.table[name])[_rows(scored, bad)].sum())
        of = f" of the prediction {prediction}" if prediction else ""
        raise DataError(
            f"The {name}{of} of {len(bad)} of {total} samples of {dataset} is not finite: {shown}"
            f"{', ...' if len(bad) > 5 else ''}; no record was written. Look at these samples and at the method's "
            "output."
        )
    if not set(scored.table) - NO_SCORES:
        if scored.invalid:
            raise DataError(f"No face of {dataset} is valid, so there is nothing to score: {scored.notes[-1]}")
        raise DataError(f"No sample of {dataset} has landmarks or other labels: there is nothing to score.")


def _rows(scored: Scored, index: list[int]) -> NDArray[np.int64]:
    return np.searchsorted(scored.table["index"], index)


def _record(
    trainer: Trainer, method: FaceMethod, evaluation: _Evaluation, prediction: str, scored: Scored, weights: str,
    training: Training, speed: Speed,
) -> tuple[Record, NDArray[np.int64]]:  # fmt: skip
    """The record, and the rows of the best, median and worst face."""
    dataset, table = evaluation.loader.dataset, scored.table
    first = next(name for name in table if name not in NO_SCORES)
    order = np.argsort(table[first], kind="stable")[: int(np.isfinite(table[first]).sum())]
    # Without what the command line adds: the same whether the method was configured or loaded.
    options = {key: value for key, value in method.hparams.items() if not key.startswith("_")}
    hparams = json.dumps(options, sort_keys=True, default=str)
    name = type(method).__name__
    batch = evaluation.first_batch
    assert batch is not None
    landmarks = batch["landmarks"].shape[1] if "landmarks" in batch else "none"
    record = Record(
        version=RECORD_VERSION,
        method=name,
        prediction=prediction,
        run="/".join(Path(trainer.default_root_dir).absolute().parts[-2:]),
        backbone=next((v for k in BACKBONE_OPTIONS if isinstance(v := method.hparams.get(k), str)), None),
        parameters=method.num_parameters(),
        weights=weights,
        config=hashlib.sha256(f"{name} {hparams}".encode()).hexdigest()[:16],
        dataset=dataset.name,
        split="test",
        fingerprint=evaluation.fingerprint,
        image_size=int(dataset.image_size),
        margin=float(dataset.margin),
        protocol={
            "samples": f"{len(table['index'])} of {len(dataset)}",
            "landmarks": f"{landmarks}",
            "nme": "2D, sqrt(w h) of the true landmarks' box, all landmarks",
            "crop": f"square around the {getattr(dataset, 'box', 'tight')} box of the true landmarks",
            # Two lists of AFLW2000-3D's yaw angles are in use, and 242 faces change their bin between them.
            "yaw": hashlib.sha256(np.round(table["yaw"], 2).tobytes()).hexdigest()[:8],
            **method.protocol,
        },
        metrics=summarise(table, units([s for s in SCORES if s.name in table])),
        invalid=scored.invalid,
        notes=scored.notes,
        samples_file="",
        samples_sha256="",
        training=training,
        speed=speed,
        git_commit=_git_commit(),
        packages={"python": sys.version.split()[0], **_versions()},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return record, order[[0, (len(order) - 1) // 2, len(order) - 1]]


def _weights_hash(method: LightningModule) -> str:
    weights = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()[:16]


def _end_of_training(path: Path) -> tuple[int, bool] | None:
    """Samples seen and whether it converged, as ``on_train_end`` wrote them; None without such a file."""
    if not path.is_file():
        return None
    try:
        end = json.loads(path.read_text(encoding="utf-8"))
        return int(end["samples_seen"]), bool(end["converged"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        warnings.warn(f"{path} is left out, since it is damaged ({error}): remove it.", stacklevel=2)
        return None


def _loaders(trainer: Trainer) -> list[Any]:
    loaders = trainer.test_dataloaders
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def _draw(trainer: Trainer, method: FaceMethod, loader: Any, prediction: str, indices: list[int]) -> NDArray[np.uint8]:
    """The samples side by side with true (green) and predicted (red) landmarks, uint8 ``[H, W, 3]``."""
    batch = loader.collate_fn([loader.dataset[i] for i in indices])
    batch = trainer.strategy.batch_to_device(batch, method.device)
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        predictions = method.predict_named(batch)
    faces = faces_of_batch(batch, predictions[prediction], len(indices))
    return np.asarray(contact_sheet(faces, tile=FACE_PIXELS, columns=len(faces)))


def _versions() -> dict[str, str]:
    installed = {str(d.metadata["Name"]).lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _git_commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` where tracked files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _log_to_wandb(logger: WandbLogger, record: Record, path: Path, errors: NDArray[np.float64] | None) -> None:
    """Summary, table, cumulative curve, and the record as an artifact of type ``evaluation-record``."""
    import wandb

    run = logger.experiment
    prefix = "/".join(filter(None, (f"{record.dataset}-{record.split}", record.prediction)))
    run.summary.update({f"{prefix}/{name}": metric.value for name, metric in record.metrics.items()})
    columns = ["method", "prediction", "dataset", "metric", "value", "low", "high", "samples", "unit"]
    rows = [
        [record.method, record.prediction, record.dataset, name, m.value, m.low, m.high, m.samples, m.unit]
        for name, m in record.metrics.items()
    ]
    logged: dict[str, Any] = {f"{prefix}/metrics": wandb.Table(data=rows, columns=columns)}
    if errors is not None:
        thresholds = np.linspace(0, 0.1, 101)
        curve = (np.sort(errors[~np.isnan(errors)])[None] <= thresholds[:, None]).mean(axis=1)
        axes = ["NME (%)", "fraction of faces"]
        data = [[100 * x, y] for x, y in zip(thresholds.tolist(), curve.tolist())]
        logged[f"{prefix}/ced"] = wandb.plot.line(wandb.Table(data=data, columns=axes), *axes, title="CED")
    run.log(logged)
    name = re.sub(r"[^\w.-]+", "-", f"{record.method}-{prefix}-{record.weights}")
    artifact = wandb.Artifact(name, type="evaluation-record", metadata={"version": record.version})
    artifact.add_file(str(path), name=path.name)
    artifact.add_file(str(path.with_name(record.samples_file)))
    run.log_artifact(artifact)
