"""Records: the schema of one evaluation.

A record is a JSON file ``NAME.json`` beside an NPZ with the errors of every sample. It carries its own digest, so that
a half-written or hand-edited record is noticed. Values are fractions (0.05 = 5 %) unless a metric's unit says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import types
import zipfile
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic

RECORD_VERSION = 1
"""Version of the schema; the leaderboard leaves out records of another one."""


@dataclass(frozen=True)
class MetricValue:
    """One metric of one evaluation.

    Attributes:
        value: Mean over the scored samples.
        low: Lower end of its 95 % bootstrap interval (subjects resampled where known, else samples).
        high: Upper end.
        samples: Number of scored samples.
        unit: "fraction", "px", "mm", "rad" or "sd" (standard deviations).
        higher_is_better: Direction.
    """

    value: float
    low: float
    high: float
    samples: int
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Training:
    """How the weights came about.

    Attributes:
        samples_seen: Training samples drawn until the checkpoint, over all ranks and epochs.
        epochs: Epochs begun until the checkpoint.
        seed: Seed of the training run; None if none was set.
        converged: Whether training ran until validation no longer improved (see ``callbacks.EvaluationRecord``).
    """

    samples_seen: int
    epochs: int
    seed: int | None
    converged: bool


@dataclass(frozen=True)
class Speed:
    """What prediction costs, measured after the evaluation with the same weights.

    Attributes:
        images_per_second: Batch size over the shortest time of ``predict_faces``, without loading.
        batch_size: Faces per call.
        device: Name of the device that it was measured on.
        threads: CPU threads of torch.
        peak_memory: Bytes: the most that torch allocated on a GPU, or the peak resident size of the process on a CPU.
    """

    images_per_second: float
    batch_size: int
    device: str
    threads: int
    peak_memory: int


@dataclass(frozen=True)
class Record:
    """One evaluation of one set of weights on one data set under one protocol.

    Attributes:
        version: ``RECORD_VERSION``.
        method: Class name of the method.
        run: Name of the run folder.
        parameters: Number of trainable parameters.
        weights: Hash of the weights.
        config: Hash of the method's class and constructor arguments.
        dataset: Name of the data set.
        split: Split of it.
        fingerprint: Content hash of the data set.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the face box.
        protocol: Normaliser, depth rules and whatever else the numbers depend on, in words.
        metrics: By name.
        samples_file: Name of the NPZ with per-sample errors, beside the record.
        samples_sha256: Its hash.
        training: How the weights came about.
        speed: What prediction costs.
        git_commit: Commit of the source tree, with "-dirty" if it was changed; None outside a repository.
        packages: Versions.
        created: UTC time, ISO 8601.
    """

    version: int
    method: str
    run: str
    parameters: int
    weights: str
    config: str
    dataset: str
    split: str
    fingerprint: str
    image_size: int
    margin: float
    protocol: dict[str, str]
    metrics: dict[str, MetricValue]
    samples_file: str
    samples_sha256: str
    training: Training
    speed: Speed
    git_commit: str | None
    packages: dict[str, str]
    created: str

    def key(self) -> tuple[Any, ...]:
        """What makes two records the same evaluation."""
        return (
            self.method, self.weights, self.dataset, self.split, self.fingerprint, self.image_size, self.margin,
            tuple(sorted(self.protocol.items())),
        )  # fmt: skip

    def setting(self) -> tuple[Any, ...]:
        """What rows must share to be compared: samples seen, crop and seed."""
        return (self.training.samples_seen, self.image_size, self.margin, self.training.seed)


def write_record(folder: str | Path, name: str, record: Record, samples: dict[str, NDArray[Any]]) -> Path:
    """Write ``NAME.json`` and its NPZ, replacing an earlier record of that name in one step.

    Args:
        folder: Folder of the run's records.
        name: Name without suffix.
        record: The record; its ``samples_file`` and ``samples_sha256`` are filled in here.
        samples: Arrays of the NPZ.

    Returns:
        Path of the JSON file.
    """
    folder = Path(folder)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **samples)  # type: ignore[arg-type]
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    samples_path = write_atomic(folder / f"{name}.{sha256[:8]}.npz", data)
    content = {**asdict(record), "samples_file": samples_path.name, "samples_sha256": sha256}
    content["digest"] = _digest(content)
    path = write_atomic(folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False).encode())
    for old in folder.glob(f"{name}.????????.npz"):
        if old != samples_path:
            old.unlink()
    return path


def read_record(path: str | Path) -> Record:
    """Read and check a record.

    Args:
        path: The JSON file.

    Returns:
        The record.

    Raises:
        DataError: In one sentence, if the file is no record, of another version, half-written or changed by hand, or if
            its per-sample file is missing or not the one that was written with it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a whole JSON file ({error}): run the evaluation again.") from None
    if not isinstance(content, dict) or "version" not in content:
        raise DataError(f"{path} is not an evaluation record (it has no version): remove it, or evaluate again.")
    if content["version"] != RECORD_VERSION:
        raise DataError(
            f"{path} is a record of version {content['version']}, and this program reads {RECORD_VERSION}: "
            "evaluate again with this version."
        )
    if content.pop("digest", None) != _digest(content):
        raise DataError(f"{path} was changed after it was written (its digest does not match): evaluate again.")
    record: Record = _build(Record, content, str(path))
    samples_path = path.with_name(record.samples_file)
    if not samples_path.is_file():
        raise DataError(f"{path} lacks its per-sample file {record.samples_file}: put it back, or evaluate again.")
    if hashlib.sha256(samples_path.read_bytes()).hexdigest() != record.samples_sha256:
        raise DataError(f"{samples_path} is not the file that was written with {path.name}: evaluate again.")
    return record


def read_samples(path: str | Path, record: Record) -> dict[str, NDArray[Any]]:
    """Per-sample arrays of the record at ``path``.

    Returns:
        ``index`` int64 ``[N]``, ``sample_id`` ``[N]``, ``yaw`` ``[N]`` degrees (NaN: unknown), ``subject`` int64
        ``[N]``, one float64 ``[N]`` array per metric (NaN: not scored), and the picture ``faces`` uint8
        ``[H, W, 3]`` of the best, median and worst sample side by side, with their positions ``faces_row`` ``[3]``.

    Raises:
        DataError: If the file cannot be read, or its picture is none.
    """
    samples_path = Path(path).with_name(record.samples_file)
    try:
        with np.load(samples_path, allow_pickle=False) as archive:
            samples = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{samples_path} cannot be read ({error}): evaluate again.") from None
    faces = samples.get("faces")
    if faces is not None and (faces.dtype != np.uint8 or faces.ndim != 3 or faces.shape[2] != 3):
        raise DataError(f"{samples_path} has a picture `faces` of shape {faces.shape}, not [H, W, 3]: evaluate again.")
    return samples


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps({k: v for k, v in content.items() if k != "digest"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _build(kind: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as the annotated type ``kind``, checked."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        optional = [argument for argument in arguments if argument is not type(None)]
        return value if value is None else _build(optional[0], value, where)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = {field.name for field in fields(kind)}
        if not isinstance(value, dict) or set(value) != names:
            found = set(value) if isinstance(value, dict) else set()
            wrong = sorted(names ^ found)
            raise DataError(f"{where} has missing or unknown fields ({', '.join(wrong)}): evaluate again.")
        make: Any = kind
        return make(**{name: _build(hints[name], value[name], f"{where}: {name}") for name in names})
    if origin is dict:
        if not isinstance(value, dict):
            raise DataError(f"{where} is not a mapping: evaluate again.")
        return {name: _build(arguments[1], item, f"{where}: {name}") for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{where} is {value!r}, not a finite {kind.__name__}: evaluate again.")
    return value
