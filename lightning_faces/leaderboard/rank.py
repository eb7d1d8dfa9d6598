"""Sorts records into boards, one per data set and protocol, and ranks them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.aggregate import is_tied
from lightning_faces.evaluation.records import MetricValue
from lightning_faces.leaderboard.collect import Entry

BASELINE = "MeanLandmarks"
"""The method that stands first, outside the ranks: what the crop alone gives away."""
SHOWN = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "gte")
"""Metrics of the tables unless others are asked for."""


@dataclass(frozen=True)
class Row:
    """A prediction of a method on a board.

    Attributes:
        entry: Where it comes from.
        setting: Letter of the setting (samples seen, crop and seed) in which rows are compared.
        rank: Place in its setting by metric; none for the baseline, and none without another row to compare with.
        tied: Whether the difference to the best of the setting could be chance, by metric: its paired 95 % bootstrap
            interval includes 0; None where it cannot be told.
    """

    entry: Entry
    setting: str
    rank: dict[str, int]
    tied: dict[str, bool | None]


@dataclass(frozen=True)
class Board:
    """All rows of one data set under one protocol.

    Attributes:
        title: Name of the data set and split, with the fingerprint where two of one name differ.
        rows: Baseline first, then by setting and rank of the first metric.
        settings: What each letter means.
        metrics: Metrics of the tables.
    """

    title: str
    rows: list[Row]
    settings: dict[str, str]
    metrics: list[str]


def boards(entries: Sequence[Entry], dataset: str | None = None, metrics: Sequence[str] | None = None) -> list[Board]:
    """Sort records into boards and rank them.

    Args:
        entries: What to compare.
        dataset: Only this data set.
        metrics: Metrics of the tables, the first of which orders them; None for :data:`SHOWN`.

    Returns:
        One board per data set (its content, not its name) and protocol.

    Raises:
        ConfigurationError: If there is no record of the data set, or none with a metric.
    """
    names = sorted({entry.record.dataset for entry in entries})
    if dataset is not None and dataset not in names:
        raise ConfigurationError(f"There is no record of the data set {dataset!r}: there are {', '.join(names)}.")
    chosen = [entry for entry in entries if dataset in (None, entry.record.dataset)]
    known = sorted({metric for entry in chosen for metric in entry.record.metrics})
    for metric in metrics or ():
        if metric not in known:
            raise ConfigurationError(f"No record has the metric {metric!r}: there are {', '.join(known)}.")
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in chosen:
        record = entry.record
        protocol = tuple(sorted(record.protocol.items()))
        groups.setdefault((record.dataset, record.split, record.fingerprint, protocol), []).append(entry)
    result = []
    for key, group in sorted(groups.items()):
        name, split, fingerprint, protocol = key
        namesakes = [other for other in groups if other[:2] == key[:2]]
        differing = [f"{k}: {v}" for k, v in protocol if any((k, v) not in other[3] for other in namesakes)]
        if any(other[2] != fingerprint for other in namesakes):
            differing.insert(0, f"content {fingerprint[:8]}")
        title = ", ".join([f"{name} ({split})", *differing])
        result.append(_board(title, group, list(metrics or SHOWN)))
    return result


def _board(title: str, group: list[Entry], wanted: list[str]) -> Board:
    metrics = [m for m in wanted if any(m in entry.record.metrics for entry in group)]
    baseline = [entry for entry in group if entry.record.method == BASELINE]
    ranked: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in group:
        if entry.record.method != BASELINE:
            ranked.setdefault(entry.record.setting(), []).append(entry)
    rows = [Row(entry, "", {}, {}) for entry in sorted(baseline, key=lambda e: e.record.created)]
    settings: dict[str, str] = {}
    for number, (seen, size, margin, seed) in enumerate(
        sorted(ranked, key=lambda s: (*s[:3], s[3] or 0, s[3] is None))
    ):
        letter = _letter(number)
        settings[letter] = f"{seen:,} samples seen, crop {size} px with margin {margin:g}, seed {seed}"
        rows += _ranked(ranked[seen, size, margin, seed], letter, metrics[0] if metrics else "")
    return Board(title, rows, settings, metrics)


def _ranked(members: list[Entry], letter: str, first: str) -> list[Row]:
    ranks: dict[int, dict[str, int]] = {id(entry): {} for entry in members}
    tied: dict[int, dict[str, bool | None]] = {id(entry): {} for entry in members}
    for metric in sorted({metric for entry in members for metric in entry.record.metrics}):
        having = [entry for entry in members if metric in entry.record.metrics]
        having.sort(key=lambda e: _sign(e.record.metrics[metric]) * e.record.metrics[metric].value)
        # Alone, a row is neither first nor last.
        for place, entry in enumerate(having if len(having) > 1 else ()):
            ranks[id(entry)][metric] = place + 1
            tied[id(entry)][metric] = place > 0 and is_tied(having[0].samples, entry.samples, metric)
    order = sorted(members, key=lambda e: (ranks[id(e)].get(first, 10**9), e.record.created))
    return [Row(entry, letter, ranks[id(entry)], tied[id(entry)]) for entry in order]


def _letter(number: int) -> str:
    return string.ascii_uppercase[number % 26] * (1 + number // 26)


def _sign(metric: MetricValue) -> float:
    return -1.0 if metric.higher_is_better else 1.0
