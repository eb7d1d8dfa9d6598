"""One record per evaluation: what the leaderboard reads."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from torch import Tensor

from callbacks.pictures import contact_sheet, faces_of_batch
from datamodules.splits import balanced_draw, yaw_bin
from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.bootstrap import bootstrap_means, interval
from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.metrics import (
    YAW_BINS,
    AveragePointError,
    CrossViewConsistencyError,
    GroundTruthError,
    ICPError,
    NormalizedMeanError,
    ParameterError,
    PerSampleMetric,
    PerVertexError,
    landmark_arguments,
    yaw_bin_mask,
)
from lightning_faces.metrics.functional import DepthRule, area_contribution, failure_contribution
from lightning_faces.records import (
    RECORD_VERSION,
    MetricValue,
    Record,
    Speed,
    Training,
    read_record,
    write_record,
)

BALANCED = 232
"""Samples of each yaw bin in the balanced subset of AFLW2000-3D (FAN, PRNet)."""
THRESHOLD = 0.07
"""End of the cumulative error curve for area and failure rate (FAN)."""
UNITS = {
    "ape": "px",
    "vertex_mm": "mm",
    "pose_error": "rad",
    "identity_error": "sd",
    "expression_error": "sd",
}
"""Units of the metrics that are no fractions."""
PACKAGES = ("lightning-faces", "torch", "lightning", "torchmetrics", "numpy", "scipy", "timm", "easypytorch3d")
SPEED_SECONDS = 1.0
FACE_PIXELS = 192


class EvaluationRecord(Callback):
    """Writes one record per test data set into ``records/`` below the run folder, with an NPZ of per-sample errors.

    Scored is what the data and the method have: 2D and 3D NME (every depth rule), GTE, APE, CVGTCE where subjects have
    several views, dense NME and per-vertex millimetres where both sides have vertices, and PARM's parameter errors.
    Scored are the vertices that a prediction has.
    Each value has a 95 % bootstrap interval. The same run on the same data replaces its record.

    During training it counts the samples seen and follows the method's monitored metric. A training counts as converged
    if early stopping ended it, if it has nothing to optimise step by step, or if the best value of the last third of at
    least six validations is less than 1 % better than the best before.

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
            content = {"samples_seen": self.samples_seen, "epochs": self.epochs, "converged": self.converged}
            write_atomic(Path(trainer.default_root_dir) / "training.json", json.dumps(content).encode())

    @property
    def converged(self) -> bool:
        """See the class."""
        third = len(self.history) // 3
        if self.stopped or third < 2:
            return self.stopped
        return min(self.history[-third:]) > 0.99 * min(self.history[:-third])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        keys = ("samples_seen", "epochs", "history", "stopped", "seed")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        for key, value in state_dict.items():
            setattr(self, key, value)

    # While testing --------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew; a data set without a fingerprint is refused before any work."""
        self._tests = {}
        num_identity = _shared_num_identity(trainer, pl_module)
        for number, loader in enumerate(_loaders(trainer)):
            self._tests[number] = _Evaluation(loader, num_identity, self.icp)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Score a batch."""
        self._tests[dataloader_idx].update(outputs["prediction"], batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' samples; rank 0 writes the records.

        Raises:
            DataError: If an error is not finite, naming the samples; nothing is written then.
        """
        for evaluation in self._tests.values():
            table = evaluation.gather()
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._write(trainer, pl_module, evaluation, table)
        self._tests = {}

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: _Evaluation, table: dict[str, NDArray[Any]]
    ) -> None:
        dataset = evaluation.loader.dataset
        method = type(pl_module).__name__
        weights = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        hparams = json.dumps(dict(pl_module.hparams), sort_keys=True, default=str)
        count = len(table["index"])
        order = np.argsort(table["nme"], kind="stable")[: int(np.isfinite(table["nme"]).sum())]
        chosen = order[[0, (len(order) - 1) // 2, len(order) - 1]]
        faces = _draw(trainer, pl_module, evaluation.loader, table["index"][chosen].tolist())
        folder = Path(trainer.default_root_dir).absolute()
        record = Record(
            version=RECORD_VERSION,
            method=method,
            run="/".join(folder.parts[-2:]),
            parameters=sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            weights=weights.hexdigest()[:16],
            config=hashlib.sha256(f"{method} {hparams}".encode()).hexdigest()[:16],
            dataset=dataset.name,
            split="test",
            fingerprint=evaluation.fingerprint,
            image_size=int(dataset.image_size),
            margin=float(dataset.margin),
            protocol={
                "samples": f"{count} of {len(dataset)}",
                "landmarks": f"{evaluation.landmarks}",
                "nme": "2D, sqrt(w h) of the true landmarks' box, all landmarks",
                "crop": f"square around the {getattr(dataset, 'box', 'tight')} box of the true landmarks",
                # Two lists of AFLW2000-3D's yaw angles are in use, and 242 faces change their bin between them.
                "yaw": hashlib.sha256(np.round(table["yaw"], 2).tobytes()).hexdigest()[:8],
                **getattr(pl_module, "protocol", {}),
            },
            metrics=summarise(table),
            samples_file="",
            samples_sha256="",
            training=self._training(trainer),
            speed=_speed(trainer, pl_module, evaluation.first_batch),
            git_commit=_git_commit(),
            packages={"python": sys.version.split()[0], **_versions()},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        name = re.sub(r"[^a-z0-9]+", "-", f"{dataset.name}-{record.split}-{dataset.image_size}px".lower()).strip("-")
        path = write_record(folder / "records", name, record, {**table, "faces": faces, "faces_row": chosen})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_to_wandb(logger, read_record(path), path, table["nme"])

    def _training(self, trainer: Trainer) -> Training:
        checkpoint = trainer.ckpt_path
        state: dict[str, Any] = self.state_dict()
        folder = Path(trainer.default_root_dir)
        if checkpoint:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            state = content.get("callbacks", {}).get(self.state_key) or EvaluationRecord().state_dict()
            folder = Path(checkpoint).absolute().parent.parent
        judge = EvaluationRecord()
        judge.load_state_dict(state)
        converged = judge.converged
        if (folder / "training.json").is_file():
            end = json.loads((folder / "training.json").read_text())
            if end["samples_seen"] >= judge.samples_seen:
                converged = bool(end["converged"])
        return Training(judge.samples_seen, judge.epochs, judge.seed, converged)


class _Subject(PerSampleMetric):
    """Keeps each sample's subject."""

    def __init__(self) -> None:
        super().__init__("error")

    def update(self, index: Tensor, subject: Tensor, yaw: Tensor | None = None) -> None:
        self._store(index, yaw, index >= 0, error=subject.double())


class _Evaluation:
    """The metrics of one test data set."""

    def __init__(self, loader: Any, num_identity: int | None, icp: bool) -> None:
        self.loader = loader
        self.fingerprint: str = loader.dataset.fingerprint()
        self.num_identity = num_identity
        self.sample_ids: dict[int, str] = {}
        self.landmarks = 0
        self.first_batch: FaceBatch | None = None
        depths = {f"nme_3d_{depth}": NormalizedMeanError(3, depth=depth) for depth in get_args(DepthRule)}
        self.groups: dict[str, dict[str, PerSampleMetric]] = {
            "landmarks": {
                "subject": _Subject(),
                "nme": NormalizedMeanError(),
                **depths,
                "gte": GroundTruthError(),
                "ape": AveragePointError(),
                "cvgtce": CrossViewConsistencyError(),
                "cvgtce_printed": CrossViewConsistencyError("unsquared"),
            },
            "visible": {"nme_visible": NormalizedMeanError(visible_only=True)},
            "pose": {"pose_error": ParameterError("pose")},
            "coefficients": {
                "identity_error": ParameterError("identity", num_identity or 0),
                "expression_error": ParameterError("expression", num_identity or 0),
            },
            "dense": {
                "dense_nme": NormalizedMeanError(),
                "dense_nme_3d": NormalizedMeanError(3),
                "vertex_mm": PerVertexError(),
            },
            "reconstruction": {"icp": ICPError()} if icp else {},
        }

    def update(self, prediction: FacePrediction, batch: FaceBatch) -> None:
        """Score a batch.

        Every group is updated on every rank, if need be with no rows, so that all can gather it.
        """
        if self.first_batch is None:
            self.first_batch = batch
        self.sample_ids.update(zip(batch["index"].tolist(), batch["sample_id"]))
        self.landmarks = batch["landmarks"].shape[1]
        has = batch["has"]
        values = landmark_arguments(prediction.landmarks, batch)
        self._add("landmarks", values)
        if "visible" in has:
            rows = has["visible"][has["landmarks"]]
            shown = {key: value[rows] for key, value in values.items()}
            self._add("visible", {**shown, "visible": batch["visible"][has["landmarks"]][rows]})
        if prediction.pose is None or "pose" not in has:
            return
        rows = has["pose"] & has["landmarks"]
        values = {
            "index": batch["index"][rows],
            "preds_pose": prediction.pose[rows],
            "target_pose": batch["pose"][rows],
        }
        values["preds_coefficients"] = values["target_coefficients"] = values["preds_pose"][:, :0]
        self._add("pose", values)
        if self.num_identity is None:
            return
        if prediction.coefficients is not None and "coefficients" in has:
            rows = rows & has["coefficients"]
            values = {
                "index": batch["index"][rows],
                "preds_pose": prediction.pose[rows],
                "target_pose": batch["pose"][rows],
                "preds_coefficients": prediction.coefficients[rows],
                "target_coefficients": batch["coefficients"][rows],
            }
            self._add("coefficients", values)
        if prediction.vertices is not None and "vertices" in has:
            rows = has["pose"] & has["landmarks"] & has["vertices"]
            preds, target = prediction.vertices[rows], batch["vertices"][rows]
            if prediction.vertex_ids is not None:
                target = target[:, prediction.vertex_ids]
            dense = {
                "index": batch["index"][rows],
                "preds": preds,
                "target": target,
                "reference": batch["landmarks"][rows],
                "pose": batch["pose"][rows],
            }
            self._add("dense", dense)
            # Depth has no origin, and nearest points need one. Each true point looks for a predicted one: the other way
            # round, a prediction that shrinks to one spot of the surface would be perfect.
            preds, target = (
                torch.cat((points[..., :2], points[..., 2:] - points[..., 2:].mean(dim=1, keepdim=True)), dim=-1)
                for points in (preds, target)
            )
            self._add("reconstruction", {**dense, "preds": target, "target": preds})

    def _add(self, group: str, values: dict[str, Tensor]) -> None:
        for metric in self.groups[group].values():
            metric.to(values["index"].device)
            metric.update(**metric._filter_kwargs(**values))

    def gather(self) -> dict[str, NDArray[Any]]:
        """Per-sample arrays over all ranks; see ``records.read_samples``."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, self.sample_ids)
            for ids in everyone:
                self.sample_ids.update(ids)
        table: dict[str, NDArray[Any]] = {}
        metrics = {name: metric for group in self.groups.values() for name, metric in group.items()}
        for name, metric in metrics.items():
            if not metric.update_called:
                continue
            with metric.sync_context():
                rows = metric.per_sample()
            scored, error = rows.index.cpu().numpy(), rows.error.cpu().numpy()
            if name == "subject":
                if len(scored) == 0:
                    raise DataError(
                        f"No sample of {self.loader.dataset.name} has landmarks: there is nothing to score."
                    )
                index = scored
                table["index"] = index
                table["sample_id"] = np.array([self.sample_ids[i] for i in index.tolist()])
                table["yaw"] = rows.yaw.cpu().numpy()
                table["subject"] = error.astype(np.int64)
                continue
            bad = scored[~np.isfinite(error)].tolist()
            if bad:
                shown = ", ".join(f"{self.sample_ids[i]} (index {i})" for i in bad[:5])
                raise DataError(
                    f"The {name} of {len(bad)} of {len(scored)} samples of {self.loader.dataset.name} is not finite: "
                    f"{shown}{', ...' if len(bad) > 5 else ''}; no record was written. Look at these samples and at "
                    "the method's output."
                )
            if len(scored):
                column = np.full(len(index), np.nan)
                column[np.searchsorted(index, scored)] = error
                table[name] = column
        return table


def summarise(table: Mapping[str, NDArray[Any]]) -> dict[str, MetricValue]:
    """Means and 95 % bootstrap intervals of all metrics of a per-sample table.

    Args:
        table: ``index``, ``sample_id``, ``yaw``, ``subject`` and one column per metric, ``nme`` among them.

    Returns:
        Each column's mean, the three yaw bins of ``nme`` and ``icp`` and their means ``nme_mean`` and ``icp_mean``, the
        area under the cumulative curve of ``nme`` and the failure rate at 7 %, and, where each yaw bin has 232 samples,
        ``nme_balanced``: over 100 of the draws of 232 a bin that AFLW2000-3D is reported on, the mean NME and the range
        of 95 % of the draws.
    """
    errors = {k: v for k, v in table.items() if k not in ("index", "sample_id", "yaw", "subject")}
    nme = torch.from_numpy(errors["nme"])
    yaw = torch.from_numpy(table["yaw"])
    binned = [metric for metric in ("nme", "icp") if metric in errors]
    for metric in binned:
        for name, _, _ in YAW_BINS:
            inside = yaw_bin_mask(yaw, name).numpy()
            errors[f"{metric}_{name}"] = np.where(inside, errors[metric], float("nan"))
    percent = round(100 * THRESHOLD)
    errors[f"nme_auc_{percent}"] = area_contribution(nme, THRESHOLD).numpy()
    errors[f"nme_failure_{percent}"] = failure_contribution(nme, THRESHOLD).numpy()
    errors = {name: column for name, column in errors.items() if not np.isnan(column).all()}
    names = list(errors)
    values = np.stack([errors[name] for name in names], axis=1)
    means, draws = np.nanmean(values, axis=0), bootstrap_means(values, table["subject"])
    metrics = {}
    for i, name in enumerate(names):
        low, high = interval(draws[:, i])
        count = int((~np.isnan(values[:, i])).sum())
        metrics[name] = MetricValue(float(means[i]), low, high, count, UNITS.get(name, "fraction"), "auc" in name)
    for metric in binned:
        bins = [f"{metric}_{name}" for name, _, _ in YAW_BINS]
        if all(name in metrics for name in bins):
            columns = [names.index(name) for name in bins]
            low, high = interval(draws[:, columns].mean(axis=1))
            count = sum(metrics[name].samples for name in bins)
            metrics[f"{metric}_mean"] = MetricValue(float(means[columns].mean()), low, high, count, "fraction", False)
    known = np.isfinite(table["yaw"]) & ~np.isnan(table["nme"])
    known_yaw, known_nme = table["yaw"][known], table["nme"][known]
    if np.bincount(yaw_bin(known_yaw), minlength=3).min() >= BALANCED:
        drawn = [known_nme[balanced_draw(known_yaw, seed, BALANCED)].mean() for seed in range(100)]
        low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
        metrics["nme_balanced"] = MetricValue(float(np.mean(drawn)), low, high, 3 * BALANCED, "fraction", False)
    return metrics


def _loaders(trainer: Trainer) -> list[Any]:
    loaders = trainer.test_dataloaders
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def _shared_num_identity(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Number of identity coefficients if data and method have one face model, so that these can be compared."""
    data = getattr(trainer.datamodule, "spec", None)  # type: ignore[attr-defined]
    method = getattr(pl_module, "spec", None)
    if data is None or method is None or not data.face_model_hash == method.face_model_hash is not None:
        return None
    return int(data.num_identity or 0)


def _draw(trainer: Trainer, pl_module: LightningModule, loader: Any, indices: list[int]) -> NDArray[np.uint8]:
    """The samples side by side with true (green) and predicted (red) landmarks, uint8 ``[H, W, 3]``."""
    batch = loader.collate_fn([loader.dataset[i] for i in indices])
    batch = trainer.strategy.batch_to_device(batch, pl_module.device)
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        prediction = pl_module.predict_faces(batch)  # type: ignore[operator]
    faces = faces_of_batch(batch, prediction, len(indices))
    return np.asarray(contact_sheet(faces, tile=FACE_PIXELS, columns=len(faces)))


def _speed(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Speed:
    device = pl_module.device
    times: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.no_grad(), trainer.precision_plugin.forward_context():
        pl_module.predict_faces(batch)  # type: ignore[operator]
        while sum(times) < SPEED_SECONDS and len(times) < 50:
            start = now()
            pl_module.predict_faces(batch)  # type: ignore[operator]
            times.append(now() - start)
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    else:
        name, memory = _cpu_name(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    count = len(batch["index"])
    return Speed(count / min(times), count, name, torch.get_num_threads(), int(memory))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"CPU {found[1].strip() if found else platform.machine()}"


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


def _log_to_wandb(logger: WandbLogger, record: Record, path: Path, errors: NDArray[np.float64]) -> None:
    """Summary, table, cumulative curve, and the record as an artifact of type ``evaluation-record``."""
    import wandb

    run = logger.experiment
    prefix = f"{record.dataset}-{record.split}"
    run.summary.update({f"{prefix}/{name}": metric.value for name, metric in record.metrics.items()})
    columns = ["method", "dataset", "metric", "value", "low", "high", "samples", "unit"]
    rows = [
        [record.method, record.dataset, name, m.value, m.low, m.high, m.samples, m.unit]
        for name, m in record.metrics.items()
    ]
    thresholds = np.linspace(0, 0.1, 101)
    curve = (np.sort(errors)[None] <= thresholds[:, None]).mean(axis=1)
    data = [[100 * x, y] for x, y in zip(thresholds.tolist(), curve.tolist())]
    plot = wandb.plot.line(
        wandb.Table(data=data, columns=["NME (%)", "fraction of faces"]), "NME (%)", "fraction of faces", title="CED"
    )
    run.log({f"{prefix}/metrics": wandb.Table(data=rows, columns=columns), f"{prefix}/ced": plot})
    name = re.sub(r"[^\w.-]+", "-", f"{record.method}-{prefix}-{record.weights}")
    artifact = wandb.Artifact(name, type="evaluation-record", metadata={"version": record.version})
    artifact.add_file(str(path), name=path.name)
    artifact.add_file(str(path.with_name(record.samples_file)))
    run.log_artifact(artifact)
