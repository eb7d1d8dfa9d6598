"""Finds records below folders and in W&B projects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.evaluation.records import Record, read_record, read_samples
from lightning_faces.files.kinds import what_it_is

_DOWNLOADED = "from-wandb"


@dataclass(frozen=True)
class Entry:
    """A record that was read, with its place."""

    path: Path
    record: Record
    samples: dict[str, NDArray[Any]]

    @property
    def name(self) -> str:
        """The method, with the name of the prediction where it has several."""
        record = self.record
        return f"{record.method} ({record.prediction})" if record.prediction else record.method

    @property
    def faces(self) -> int:
        """Number of faces that were scored or should have been."""
        return len(self.samples["index"])

    @property
    def num_invalid(self) -> int:
        """Number of faces that the method gave up on."""
        return sum(self.record.invalid.values())


@dataclass(frozen=True)
class Published:
    """A value that a paper states, or None where it stands in a figure only."""

    paper: str
    source: str
    dataset: str
    protocol: str
    method: str
    metric: str
    value: float | None
    unit: str


def published() -> list[Published]:
    """The quoted values of the papers' tables, and what they show in figures only."""
    text = resources.files("lightning_faces.leaderboard").joinpath("published.json").read_text(encoding="utf-8")
    return [Published(**row) for row in json.loads(text)]


def collect(folders: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Read the records below folders.

    Args:
        folders: Run folders, folders of run folders, or a run's folder of records.

    Returns:
        The good records, one per evaluation, and one sentence for each that is left out.

    Raises:
        ConfigurationError: If one is no folder.
    """
    entries: dict[tuple[Any, ...], Entry] = {}
    problems = []
    for path in _record_files(folders):
        try:
            record = read_record(path)
            entry = Entry(path, record, read_samples(path, record))
            _check(entry)
        except DataError as error:
            problems.append(str(error))
            continue
        other = entries.get(record.key())
        if other is None:
            entries[record.key()] = entry
        elif other.record != record or path.parents[1].name != _DOWNLOADED:
            older, newer = sorted((other, entry), key=lambda e: e.record.created)
            entries[record.key()] = newer
            problems.append(
                f"{older.path} is a duplicate of {newer.path} (the same weights on the same data): remove one of them."
            )
    return list(entries.values()), problems


def _record_files(folders: Iterable[Path]) -> list[Path]:
    paths: dict[Path, None] = {}
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(
                f"{folder} is {what_it_is(folder) or 'a file'}, not a folder of runs: give the folder that your runs "
                "are in, such as runs."
            )
        if not folder.is_dir():
            raise ConfigurationError(f"There is no folder {folder}: give the folder of your runs, such as runs.")
        found = sorted(folder.rglob("records/*.json"))
        if folder.resolve().name == "records":
            found += sorted(folder.glob("*.json"))
        paths.update(dict.fromkeys(path.resolve() for path in found))
    return list(paths)


def _check(entry: Entry) -> None:
    """Refuse a record whose NPZ lacks the errors of one of its samples' scores."""
    for name, metric in entry.record.metrics.items():
        errors = entry.samples.get(name)
        if errors is not None and metric.samples != int((~np.isnan(errors.astype(np.float64))).sum()):
            raise DataError(f"{entry.path} counts {metric.samples} samples of {name!r:.60}, and its errors others.")


def download(project: str, folder: Path) -> None:
    """Fetch the records of a W&B project, one folder each, so that :func:`collect` finds them.

    Args:
        project: "entity/project".
        folder: Where to put them.

    Raises:
        ConfigurationError: If the project cannot be read.
    """
    import wandb
    import wandb.errors

    try:
        for collection in wandb.Api().artifact_type("evaluation-record", project).collections():
            for artifact in collection.artifacts():
                name = re.sub(r"[^\w-]+", "-", artifact.name)
                artifact.download(root=str(folder / name / _DOWNLOADED / "records"))
    except (wandb.errors.Error, ValueError) as error:
        raise ConfigurationError(f"The W&B project {project} cannot be read: {error}") from error
