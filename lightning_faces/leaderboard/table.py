"""The columns and notes of a board, for every way of writing it; texts are as records have them, not yet escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_faces.leaderboard.collect import Published, published
from lightning_faces.leaderboard.rank import BASELINE, Board, Row

NONE = "–"
QUOTED_TITLE = "Quoted from the papers: not measured here, other training data and protocols"
QUOTED_HEADINGS = ("data set", "method", "reported", "protocol", "stands in")


@dataclass(frozen=True)
class Column:
    """A column of a board.

    Attributes:
        heading: Its heading, with the unit.
        text: What a row shows.
        value: What it is sorted by.
        interval: What a row shows below its text.
        left: Whether it is words.
        keep: The higher, the longer it stays where there is no room for all.
    """

    heading: str
    text: Callable[[Row], str]
    value: Callable[[Row], Any]
    interval: Callable[[Row], str] = lambda row: ""
    left: bool = False
    keep: int = 0


def number(value: float, unit: str) -> str:
    """A value for people: fractions in percent.

    Example:
        >>> number(0.03518, "fraction"), number(0.1234567, "mm")
        ('3.52', '0.123')
    """
    if unit == "fraction":
        return f"{100 * value:.2f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


def heading(metric: str, unit: str) -> str:
    """A metric's column heading with its unit."""
    shown = {"fraction": "%", "sd": "σ", "deg": "°", "unstated": "no unit stated"}.get(unit, unit)
    return f"{metric} ({shown})"


def columns(board: Board) -> list[Column]:
    """Columns of a board, the first metric behind the names."""
    first = board.metrics[0] if board.metrics else ""

    def rank(row: Row) -> str:
        return str(row.rank[first]) + ("=" if row.tied[first] else "") if first in row.rank else NONE

    names = [row.entry.name for row in board.rows]
    keep_run = 50 if len(set(names)) < len(names) else 12
    found = [
        Column("rank", rank, lambda row: row.rank.get(first, 0), keep=90),
        Column("method", method_text, lambda row: row.entry.name, left=True, keep=100),
        Column("run", lambda row: row.entry.record.run, lambda row: row.entry.record.run, left=True, keep=keep_run),
    ]
    if any(row.entry.record.backbone for row in board.rows):
        found.append(Column("backbone", _backbone, _backbone, left=True, keep=30))
    for place, metric in enumerate(board.metrics):
        found.append(_metric_column(board, metric, keep=95 if place == 0 else 49 - min(place, 18)))
    return [
        *found,
        Column("parameters", lambda r: f"{r.entry.record.parameters:,}", lambda r: r.entry.record.parameters, keep=10),
        Column("images/s", _speed, lambda row: row.entry.record.speed.images_per_second, keep=11),
        Column("setting", lambda row: row.setting or NONE, lambda row: row.setting, keep=80),
    ]


def method_text(row: Row) -> str:
    """Name of the method with its marks, which :func:`notes` explains."""
    record = row.entry.record
    marks = ("" if record.training.converged or record.method == BASELINE else " †") + (" ‡" if record.invalid else "")
    return row.entry.name + marks


def _backbone(row: Row) -> str:
    return row.entry.record.backbone or NONE


def _speed(row: Row) -> str:
    speed = row.entry.record.speed.images_per_second
    return f"{speed:.3g}" if speed < 100 else f"{speed:.0f}"


def _metric_column(board: Board, metric: str, keep: int) -> Column:
    def text(row: Row) -> str:
        found = row.entry.record.metrics.get(metric)
        return NONE if found is None else number(found.value, found.unit)

    def interval(row: Row) -> str:
        found = row.entry.record.metrics.get(metric)
        return "" if found is None else f"[{number(found.low, found.unit)}, {number(found.high, found.unit)}]"

    def value(row: Row) -> Any:
        found = row.entry.record.metrics.get(metric)
        return "" if found is None else found.value

    unit = next(row.entry.record.metrics[metric].unit for row in board.rows if metric in row.entry.record.metrics)
    return Column(heading(metric, unit), text, value, interval, keep=keep)


def notes(board: Board) -> list[str]:
    """Sentences below a board."""
    records = [row.entry.record for row in board.rows]
    found = ["Rows are ranked within a setting only; brackets hold 95 % bootstrap intervals."]
    found += [f"{letter}: {text}." for letter, text in board.settings.items()]
    if any(row.tied.get(metric) for row in board.rows for metric in board.metrics[:1]):
        found.append("=: the difference to the best of the setting could be chance (paired bootstrap, 95 %).")
    if any(not row.rank for row in board.rows if row.setting):
        found.append(f"{NONE}: alone in its setting, and so without a rank.")
    if any(not record.training.converged for record in records if record.method != BASELINE):
        found.append("†: not trained to convergence.")
    for row in board.rows:
        if row.entry.record.invalid:
            listed = "; ".join(f"{count}: {why}" for why, count in row.entry.record.invalid.items())
            found.append(
                f"‡ {row.entry.name}, {row.entry.record.run}: {row.entry.num_invalid} of {row.entry.faces} faces are "
                f"not valid and left out of the means ({listed})."
            )
    if any(record.method == BASELINE for record in records):
        found.append(f"{BASELINE} is the baseline: the training set's mean landmarks placed in the crop.")
    return found


def quoted_for(found: Sequence[Board]) -> list[Published]:
    """What the papers report on the data sets of some boards."""
    shown = {row.entry.record.dataset for board in found for row in board.rows}
    return [row for row in published() if row.dataset in shown and row.value is not None]


def quoted_lines(rows: Iterable[Published]) -> list[tuple[str, ...]]:
    """One line per method and table, below :data:`QUOTED_HEADINGS`: all metrics that it reports there."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        unit = {"fraction": " %", "unstated": ""}.get(row.unit, f" {row.unit}")
        text = "not available, figure only" if row.value is None else number(row.value, row.unit) + unit
        place = (row.dataset, row.method, row.protocol, f"{row.paper}, {row.source}")
        lines.setdefault(place, []).append(f"{row.metric} {text}")
    return [(place[0], place[1], ", ".join(texts), *place[2:]) for place, texts in lines.items()]
