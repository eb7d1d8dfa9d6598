"""Records: the schema of one evaluation.

A record is a JSON file ``NAME.json`` beside an NPZ with the errors of every sample. It carries its own digest, so that
a half-written or hand-edited record is noticed. Values are fractions (0.05 = 5 %) unless a metric's unit says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.npz import read_npz

RECORD_VERSION = 2
"""Version of the schema that is written; those of version 1, which lack :data:`_NEW_IN_2`, are read too."""
_NEW_IN_2: dict[str, Any] = {"prediction": "", "backbone": None, "invalid": {}, "notes": []}
_MOST_JSON, _MOST_SAMPLES = 16 * 2**20, 256 * 2**20
_MOST_TEXT, _MOST_ITEMS = 4000, 4000
"""Bounds of what a record may hold, far beyond what is written."""
_PREDICTION = re.compile(r"[a-z0-9_]*")
_MOST_PIXELS = 8192


@dataclass(frozen=True)
class MetricValue:
    """One metric of one evaluation.

    Attributes:
        value: Mean over the scored samples (a method's invalid faces are none, see ``Record.invalid``).
        low: Lower end of its 95 % bootstrap interval (subjects resampled where known, else samples).
        high: Upper end.
        samples: Number of scored samples.
        unit: "fraction", "px", "mm", "rad", "deg" or "sd" (standard deviations).
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
    """What prediction costs, measured after the evaluation with the same weights, of a method's default prediction.

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
    """One evaluation of one prediction of one set of weights on one data set under one protocol.

    Attributes:
        version: Version of the schema that the record was written in.
        method: Class name of the method.
        prediction: Name of the prediction, of a method that has several; else empty.
        run: Name of the run folder.
        backbone: Its encoder, where the method names one.
        parameters: What the method counts as its parameters.
        weights: Hash of the weights.
        config: Hash of the method's class and constructor arguments.
        dataset: Name of the data set.
        split: Split of it.
        fingerprint: Content hash of the data set.
        image_size: Side of the crop in pixels.
        margin: Side of the crop over the longer side of the face box.
        protocol: Normaliser, depth rules and whatever else the numbers depend on, in words.
        metrics: By name.
        invalid: How many faces the method gave up on, by its reason.
        notes: Sentences on what was not scored and why, and remarks of the metrics.
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
    prediction: str
    run: str
    backbone: str | None
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
    invalid: dict[str, int]
    notes: list[str]
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
            self.method, self.prediction, self.weights, self.dataset, self.split, self.fingerprint, self.image_size,
            self.margin, tuple(sorted(self.protocol.items())),
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
    content = _read_json(path)
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= RECORD_VERSION:
        raise DataError(
            f"{path} is a record of version {version!r:.40}, and this program reads 1 to {RECORD_VERSION}: evaluate "
            "again with this version."
        )
    if content.pop("digest", None) != _digest(content):
        raise DataError(f"{path} was changed after it was written (its digest does not match): evaluate again.")
    if version == 1:
        content = {**content, **_NEW_IN_2}
    record: Record = _build(Record, content, str(path))
    name = record.samples_file
    if not name.endswith(".npz") or Path(name).name != name or "\\" in name or not name.isprintable():
        raise DataError(f"{path} names {name!r} as its per-sample file, which is none beside it: evaluate again.")
    if _PREDICTION.fullmatch(record.prediction) is None:
        raise DataError(f"{path}: prediction is {record.prediction!r}, not of the letters a-z0-9_: evaluate again.")
    if _sha256(path.with_name(name), path) != record.samples_sha256:
        raise DataError(f"{path.with_name(name)} is not the file that was written with {path.name}: evaluate again.")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise DataError(f"{path} is no file: remove it, or evaluate again.")
        if path.stat().st_size > _MOST_JSON:
            raise DataError(f"{path} has more than {_MOST_JSON:,} bytes, which no record has: remove it.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except DataError:
        raise
    # Not JSON, not UTF-8, a number of more digits than Python reads, or nested too deep.
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path} is not a whole JSON file ({error!s:.200}): run the evaluation again.") from None
    if not isinstance(content, dict) or "version" not in content:
        raise DataError(f"{path} is not an evaluation record (it has no version): remove it, or evaluate again.")
    return content


def _sha256(path: Path, record: Path) -> str:
    try:
        if not path.is_file():
            raise DataError(f"{record} lacks its per-sample file {path.name}: put it back, or evaluate again.")
        if path.stat().st_size > _MOST_SAMPLES:
            raise DataError(f"{path} has more than {_MOST_SAMPLES:,} bytes, which no record has: remove it.")
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): evaluate again.") from None


def read_samples(path: str | Path, record: Record) -> dict[str, NDArray[Any]]:
    """Per-sample arrays of the record at ``path``.

    Returns:
        ``index`` int64 ``[N]``, ``sample_id`` ``[N]``, ``yaw`` ``[N]`` degrees (NaN: unknown), ``subject`` int64
        ``[N]``, ``invalid`` bool ``[N]`` (absent in version 1), one float64 ``[N]`` array per score (NaN: not scored),
        and the picture ``faces`` uint8 ``[H, W, 3]`` of the best, median and worst sample side by side, with their
        positions ``faces_row`` ``[3]``.

    Raises:
        DataError: If the file cannot be read, or its arrays are not these.
    """
    samples_path = Path(path).with_name(record.samples_file)
    samples = read_npz(samples_path, fix="evaluate again")
    index = samples.get("index")
    count = -1 if index is None or index.ndim != 1 else len(index)
    for name, kinds in {"index": "i", "sample_id": "U", "yaw": "f", "subject": "i"}.items():
        array = samples.get(name)
        if array is None or array.dtype.kind not in kinds or array.shape != (count,):
            raise DataError(f"{samples_path} has no array {name} of one value per sample: evaluate again.")
    if (np.diff(samples["index"]) <= 0).any():
        raise DataError(f"{samples_path} has samples that are not in the order of their index: evaluate again.")
    for name, array in samples.items():
        if name in ("faces", "faces_row"):
            continue
        if array.shape != (count,) or array.dtype.kind not in ("b" if name == "invalid" else "fiU"):
            raise DataError(f"{samples_path} has an array {name[:40]!r} that is no column of errors: evaluate again.")
        if array.dtype.kind == "f" and np.isinf(array).any():
            raise DataError(f"{samples_path} has infinite values in {name[:40]!r}: evaluate again.")
    faces, rows = samples.get("faces"), samples.get("faces_row")
    if faces is not None:
        fits = faces.dtype == np.uint8 and faces.ndim == 3 and faces.shape[2] == 3
        if not fits or not 0 < min(faces.shape) <= max(faces.shape) <= _MOST_PIXELS:
            shape = faces.shape
            raise DataError(f"{samples_path} has a picture `faces` of shape {shape}, not [H, W, 3]: evaluate again.")
        if rows is None or rows.dtype.kind != "i" or rows.shape != (3,) or rows.min() < 0 or rows.max() >= count:
            raise DataError(f"{samples_path} has no three samples `faces_row` to its picture: evaluate again.")
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
            raise DataError(f"{where} has missing or unknown fields ({', '.join(wrong):.200}): evaluate again.")
        make: Any = kind
        return make(**{name: _build(hints[name], value[name], f"{where}: {name}") for name in names})
    if origin is list:
        if not isinstance(value, list) or len(value) > _MOST_ITEMS:
            raise DataError(f"{where} is not a list of at most {_MOST_ITEMS} items: evaluate again.")
        return [_build(arguments[0], item, where) for item in value]
    if origin is dict:
        if not isinstance(value, dict) or len(value) > _MOST_ITEMS or any(len(name) > _MOST_TEXT for name in value):
            raise DataError(f"{where} is not a mapping of at most {_MOST_ITEMS} items: evaluate again.")
        return {name: _build(arguments[1], item, f"{where}: {name:.60}") for name, item in value.items()}
    if type(value) is int and abs(value) >= 2**63:
        raise DataError(f"{where} is a number of {len(str(value))} digits: evaluate again.")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{where} is {value!r:.80}, not a finite {kind.__name__}: evaluate again.")
    if isinstance(value, str) and len(value) > _MOST_TEXT:
        raise DataError(f"{where} has {len(value):,} characters, more than {_MOST_TEXT:,}: evaluate again.")
    return value
