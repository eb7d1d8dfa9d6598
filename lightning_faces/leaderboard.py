"""``lightning-faces leaderboard``: the records of all runs below some folders, as one table per data set."""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import json
import string
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_faces.bootstrap import bootstrap_means, interval
from lightning_faces.errors import ConfigurationError, DataError, LightningFacesError
from lightning_faces.files import write_atomic
from lightning_faces.records import MetricValue, Record, read_record, read_samples

BASELINE = "MeanLandmarks"
"""The method that stands first, outside the ranks: what the crop alone gives away."""
SHOWN = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "gte")
"""Metrics of the tables unless others are asked for."""
COLUMNS = (
    "method", "dataset", "metric", "value", "low", "high", "unit", "samples", "rank", "tied_with_best", "setting",
    "samples_seen", "epochs", "converged", "seed", "image_size", "margin", "parameters", "images_per_second", "device",
    "run", "fingerprint", "split", "config", "weights", "git_commit", "created",
)  # fmt: skip
"""Columns of the CSV file: one row per method, data set and metric; errors as fractions."""
PIPED_WIDTH = 200
NARROW = 140
CURVE_END = 0.10
CURVES = {
    "nme": "2D NME",
    "nme_3d_mean": "3D NME",
    "dense_nme": "dense 2D NME",
    "dense_nme_3d": "dense 3D NME",
    "icp": "error after ICP",
}
"""Errors whose cumulative curves the page draws where records have them; of 2D NME and ICP, those by yaw too."""
_DOWNLOADED = "from-wandb"
YAW_STEP = 10


@dataclass(frozen=True)
class Entry:
    """A record that was read, with its place."""

    path: Path
    record: Record
    samples: dict[str, NDArray[Any]]


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


@dataclass(frozen=True)
class Row:
    """A method on a board.

    Attributes:
        entry: Where it comes from.
        setting: Letter of the setting (samples seen, crop and seed) in which rows are compared.
        rank: Place in its setting by metric; none for the baseline.
        tied: Whether the difference to the best of the setting could be chance, by metric: its paired 95 % bootstrap
            interval includes 0.
    """

    entry: Entry
    setting: str
    rank: dict[str, int]
    tied: dict[str, bool]


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


def collect(folders: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Read the records below folders.

    Args:
        folders: Run folders, or folders of run folders.

    Returns:
        The good records, one per evaluation, and one sentence for each that is left out.

    Raises:
        ConfigurationError: If a folder does not exist.
    """
    entries: dict[tuple[Any, ...], Entry] = {}
    problems = []
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"There is no folder {folder}: give the folder of your runs, such as runs.")
        paths.update(dict.fromkeys(path.resolve() for path in sorted(folder.rglob("records/*.json"))))
    for path in paths:
        try:
            record = read_record(path)
            entry = Entry(path, record, read_samples(path, record))
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
                artifact.download(root=str(folder / artifact.name.replace(":", "-") / _DOWNLOADED / "records"))
    except (wandb.errors.Error, ValueError) as error:
        raise ConfigurationError(f"The W&B project {project} cannot be read: {error}") from error


def per_sample(entry: Entry, metric: str) -> NDArray[np.float64] | None:
    """Errors of the samples for a metric, NaN where not scored; None where the metric is no mean of them."""
    if metric in entry.record.metrics and metric in entry.samples:
        return np.asarray(entry.samples[metric], dtype=np.float64)
    bins = {"nme_0_30": (-1, 30), "nme_30_60": (30, 60), "nme_60_90": (60, np.inf)}
    if metric in bins:
        low, high = bins[metric]
        yaw = np.abs(entry.samples["yaw"])
        return np.where((yaw > low) & (yaw <= high), entry.samples["nme"], np.nan)
    return None


def is_tied(best: Entry, other: Entry, metric: str) -> bool:
    """Whether the mean difference on the samples that both scored could be 0, by a paired bootstrap."""
    first, second = per_sample(best, metric), per_sample(other, metric)
    if first is None or second is None:
        return False
    _, here, there = np.intersect1d(best.samples["index"], other.samples["index"], return_indices=True)
    difference = second[there] - first[here]
    if np.isnan(difference).all():
        return False
    low, high = interval(bootstrap_means(difference[:, None], best.samples["subject"][here])[:, 0])
    return low <= 0.0 <= high


def boards(entries: Sequence[Entry], dataset: str | None, metrics: Sequence[str] | None) -> list[Board]:
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
    every_metric = sorted({metric for entry in group for metric in entry.record.metrics})
    for number, (seen, size, margin, seed) in enumerate(
        sorted(ranked, key=lambda s: (*s[:3], s[3] or 0, s[3] is None))
    ):
        members = ranked[seen, size, margin, seed]
        letter = _letter(number)
        settings[letter] = f"{seen:,} samples seen, crop {size} px with margin {margin:g}, seed {seed}"
        ranks: dict[int, dict[str, int]] = {id(entry): {} for entry in members}
        tied: dict[int, dict[str, bool]] = {id(entry): {} for entry in members}
        for metric in every_metric:
            having = [entry for entry in members if metric in entry.record.metrics]
            having.sort(key=lambda e: _sign(e.record.metrics[metric]) * e.record.metrics[metric].value)
            for place, entry in enumerate(having):
                ranks[id(entry)][metric] = place + 1
                tied[id(entry)][metric] = place > 0 and is_tied(having[0], entry, metric)
        first = metrics[0] if metrics else ""
        members.sort(key=lambda e: (ranks[id(e)].get(first, 10**9), e.record.created))
        rows += [Row(entry, letter, ranks[id(entry)], tied[id(entry)]) for entry in members]
    return Board(title, rows, settings, metrics)


def _letter(number: int) -> str:
    return string.ascii_uppercase[number % 26] * (1 + number // 26)


def _sign(metric: MetricValue) -> float:
    return -1.0 if metric.higher_is_better else 1.0


def published() -> list[Published]:
    """The quoted values of the papers' tables, and what they show in figures only."""
    text = resources.files("lightning_faces").joinpath("published.json").read_text(encoding="utf-8")
    return [Published(**row) for row in json.loads(text)]


def number(value: float, unit: str) -> str:
    """A value for people: fractions in percent."""
    if unit == "fraction":
        return f"{100 * value:.2f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


def heading(metric: str, unit: str) -> str:
    """A metric's column heading with its unit."""
    shown = {"fraction": "%", "sd": "σ", "unstated": "no unit stated"}.get(unit, unit)
    return f"{metric} ({shown})"


def _unit(board: Board, metric: str) -> str:
    return next(row.entry.record.metrics[metric].unit for row in board.rows if metric in row.entry.record.metrics)


def _headings(board: Board) -> list[str]:
    metrics = [heading(metric, _unit(board, metric)) for metric in board.metrics]
    return ["rank", "method", "run", *metrics, "parameters", "images/s", "setting"]


def _cells(board: Board, row: Row, with_intervals: bool = True) -> list[str]:
    """Texts of a row; the metric that ranks always has its interval."""
    record = row.entry.record
    first = board.metrics[0] if board.metrics else ""
    rank = str(row.rank[first]) + ("=" if row.tied[first] else "") if first in row.rank else "–"
    method = record.method if record.training.converged or record.method == BASELINE else f"{record.method} †"
    cells = [rank, method, record.run]
    for metric in board.metrics:
        value = record.metrics.get(metric)
        if value is None:
            cells.append("–")
            continue
        low, high = number(value.low, value.unit), number(value.high, value.unit)
        cells.append(
            number(value.value, value.unit) + (f" [{low}, {high}]" if with_intervals or metric == first else "")
        )
    speed = record.speed.images_per_second
    return [*cells, f"{record.parameters:,}", f"{speed:.3g}" if speed < 100 else f"{speed:.0f}", row.setting or "–"]


def _notes(board: Board) -> list[str]:
    notes = [f"{letter}: {text}." for letter, text in board.settings.items()]
    if any(row.tied.get(metric) for row in board.rows for metric in board.metrics[:1]):
        notes.append("=: the difference to the best of the setting could be chance (paired bootstrap, 95 %).")
    if any(cells[1].endswith("†") for cells in (_cells(board, row) for row in board.rows)):
        notes.append("†: not trained to convergence.")
    if any(row.entry.record.method == BASELINE for row in board.rows):
        notes.append(f"{BASELINE} is the baseline: the training set's mean landmarks placed in the crop.")
    return ["Rows are ranked within a setting only; brackets hold 95 % bootstrap intervals.", *notes]


def _quoted_for(found: Sequence[Board]) -> list[Published]:
    shown = {row.entry.record.dataset for board in found for row in board.rows}
    return [row for row in published() if row.dataset in shown and row.value is not None]


_QUOTED_HEADINGS = ("data set", "method", "reported", "protocol", "stands in")


def _quoted_lines(rows: Iterable[Published]) -> list[tuple[str, ...]]:
    """One line per method and table: all metrics that it reports there."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        unit = {"fraction": " %", "unstated": ""}.get(row.unit, f" {row.unit}")
        text = "not available, figure only" if row.value is None else number(row.value, row.unit) + unit
        place = (row.dataset, row.method, row.protocol, f"{row.paper}, {row.source}")
        lines.setdefault(place, []).append(f"{row.metric} {text}")
    return [(place[0], place[1], ", ".join(texts), *place[2:]) for place, texts in lines.items()]


QUOTED_TITLE = "Quoted from the papers: not measured here, other training data and protocols"


def print_boards(console: Console, found: Sequence[Board]) -> None:
    """Print the boards, and below them what the papers report on the same data sets."""
    for board in found:
        table = Table(title=board.title, title_justify="left", title_style="bold", pad_edge=False)
        for i, name in enumerate(_headings(board)):
            table.add_column(name, justify="left" if i in (1, 2) else "right", overflow="fold")
        for row in board.rows:
            style = "dim" if row.entry.record.method == BASELINE else ""
            cells = _cells(board, row, with_intervals=console.width >= NARROW)
            table.add_row(*(cell.replace(" [", "\n[", 1) for cell in cells), style=style)
        console.print(table, markup=False)
        for note in _notes(board):
            console.print(f"  {note}", markup=False, highlight=False)
        console.print()
    quoted = _quoted_lines(_quoted_for(found))
    if quoted:
        table = Table(title=QUOTED_TITLE, title_justify="left", title_style="bold", pad_edge=False)
        for name in _QUOTED_HEADINGS:
            table.add_column(name, overflow="fold")
        for line in quoted:
            table.add_row(*line, style="dim")
        console.print(table, markup=False)


def to_csv(found: Sequence[Board], metrics: Sequence[str] | None) -> str:
    """The measured rows as CSV with the columns :data:`COLUMNS`; every metric unless some were asked for."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for board in found:
        for row in board.rows:
            writer.writerows(_long_rows(row, metrics))
    return buffer.getvalue()


def _long_rows(row: Row, metrics: Sequence[str] | None) -> list[list[Any]]:
    record = row.entry.record
    rows = []
    for name, metric in record.metrics.items():
        if metrics and name not in metrics:
            continue
        values = {
            "method": record.method, "dataset": record.dataset, "metric": name, "value": metric.value,
            "low": metric.low, "high": metric.high, "unit": metric.unit, "samples": metric.samples,
            "rank": row.rank.get(name), "tied_with_best": row.tied.get(name), "setting": row.setting,
            "samples_seen": record.training.samples_seen, "epochs": record.training.epochs,
            "converged": record.training.converged, "seed": record.training.seed, "image_size": record.image_size,
            "margin": record.margin, "parameters": record.parameters,
            "images_per_second": record.speed.images_per_second, "device": record.speed.device, "run": record.run,
            "fingerprint": record.fingerprint, "split": record.split, "config": record.config,
            "weights": record.weights, "git_commit": record.git_commit, "created": record.created,
        }  # fmt: skip
        rows.append([values[column] for column in COLUMNS])
    return rows


def to_markdown(found: Sequence[Board], problems: Sequence[str]) -> str:
    """The boards, the quoted values and the records left out as Markdown."""

    def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
        lines = [headings, ["---"] * len(headings), *rows]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]

    lines = []
    for board in found:
        lines += [f"## {board.title}", "", *table(_headings(board), [_cells(board, row) for row in board.rows])]
        lines += [*(f"- {note}" for note in _notes(board)), ""]
    lines += [f"## {QUOTED_TITLE}", "", *table(_QUOTED_HEADINGS, _quoted_lines(published()))]
    if problems:
        lines += ["## Records left out", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(lines)


# The page -----------------------------------------------------------------------------------------------------------

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c8c00")
_DASHES = ("", "6 3", "2 3")


def _label(row: Row) -> str:
    return f"{row.entry.record.method} · {row.entry.record.run}"


def _chart(
    name: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    x_max: float,
    y_max: float = 0.0,
) -> str:
    """A line chart as inline SVG; both axes start at 0, and y reaches ``y_max`` at least."""
    width, height, left, right, top, bottom = 560, 320, 52, 12, 28, 44
    y_max = max([y_max, *(y for _, points in series for _, y in points)]) or 1.0
    step = next(s for e in range(-3, 6) for s in (10**e, 2 * 10**e, 5 * 10**e) if y_max <= 6 * s)
    y_max = step * max(1, -(-y_max // step))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / x_max * (width - left - right),
            height - bottom - y / y_max * (height - top - bottom),
        )

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(name)}">',
        f'<text class="title" x="{left}" y="16">{html.escape(name)}</text>',
    ]
    for i in range(round(y_max / step) + 1):
        x, y = at(0, i * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{i * step:.4g}</text>')
    for i in range(6):
        x, y = at(x_max * i / 5, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{x_max * i / 5:.4g}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    side = height / 2
    parts.append(
        f'<text x="14" y="{side}" text-anchor="middle" transform="rotate(-90 14 {side})">{html.escape(y_label)}</text>'
    )
    for i, (label, points) in enumerate(series):
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        style = f'stroke="{_COLOURS[i % 8]}" stroke-dasharray="{_DASHES[i // 8 % 3]}"'
        parts.append(f'<polyline {style} points="{path}"><title>{html.escape(label)}</title></polyline>')
    return "".join(parts) + "</svg>"


def _legend(labels: Sequence[str]) -> str:
    items = []
    for i, label in enumerate(labels):
        line = (
            f'<line x1="0" y1="5" x2="26" y2="5" stroke="{_COLOURS[i % 8]}" stroke-dasharray="{_DASHES[i // 8 % 3]}"/>'
        )
        items.append(f'<li><svg width="26" height="10">{line}</svg> {html.escape(label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def error_curve(entry: Entry, metric: str = "nme") -> list[tuple[float, float]]:
    """Cumulative error distribution: (percent, fraction of faces) at each of 101 thresholds; empty without errors."""
    errors = entry.samples.get(metric, np.zeros(0))
    errors = np.sort(errors[~np.isnan(errors)])
    if not len(errors):
        return []
    thresholds = np.linspace(0, CURVE_END, 101)
    fractions = np.searchsorted(errors, thresholds, side="right") / len(errors)
    return list(zip((100 * thresholds).tolist(), fractions.tolist()))


def error_by_yaw(entry: Entry, metric: str = "nme") -> list[tuple[float, float]]:
    """Mean error in percent of the faces in each 10 degrees of ``|yaw|``, at their middle; 90 and beyond is one."""
    yaw = np.abs(entry.samples["yaw"])
    errors = entry.samples.get(metric, np.full(len(yaw), np.nan))
    points = []
    for start in range(0, 100, YAW_STEP):
        inside = (yaw >= start) & ((yaw < start + YAW_STEP) | (start >= 90)) & ~np.isnan(errors)
        if inside.any():
            points.append((start + YAW_STEP / 2, float(100 * errors[inside].mean())))
    return points


def _faces(row: Row) -> str:
    samples = row.entry.samples
    buffer = io.BytesIO()
    Image.fromarray(samples["faces"]).save(buffer, format="PNG", optimize=True)
    caption = ", ".join(
        f"{name} {100 * samples['nme'][at]:.2f} % ({samples['sample_id'][at]})"
        for name, at in zip(("best", "median", "worst"), samples["faces_row"].tolist())
    )
    text = html.escape(f"{_label(row)}: {caption}")
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{source}"></figure>'


def _html_table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[tuple[str, Any]]]]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in headings)
    body = []
    for kind, cells in rows:
        inside = "".join(f'<td data-value="{html.escape(str(v))}">{_two_lines(text)}</td>' for text, v in cells)
        body.append(f'<tr class="{kind}">{inside}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _two_lines(text: str) -> str:
    """A value with its interval below it."""
    value, bracket, end = html.escape(text).partition(" [")
    return f"{value}<br><small>[{end}</small>" if bracket else value


def _board_rows(board: Board) -> Iterable[tuple[str, list[tuple[str, Any]]]]:
    for row in board.rows:
        record = row.entry.record
        texts = _cells(board, row)
        first = board.metrics[0] if board.metrics else ""
        values: list[Any] = [row.rank.get(first, 0), record.method, record.run]
        values += [record.metrics[m].value if m in record.metrics else "" for m in board.metrics]
        values += [record.parameters, record.speed.images_per_second, row.setting]
        yield ("baseline" if record.method == BASELINE else "measured"), list(zip(texts, values))


def to_html(found: Sequence[Board], problems: Sequence[str]) -> str:
    """The whole leaderboard as one page without outside references."""
    parts = []
    if problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
        parts.append(
            f'<div class="problems" role="alert"><h2>{len(problems)} record(s) left out</h2><ul>{items}</ul></div>'
        )
    for board in found:
        parts.append(f"<article><h2>{html.escape(board.title)}</h2>")
        parts.append(_html_table(_headings(board), _board_rows(board)))
        parts.append("<ul class='notes'>" + "".join(f"<li>{html.escape(n)}</li>" for n in _notes(board)) + "</ul>")
        rows = [row for row in board.rows if "nme" in row.entry.samples]
        labels = [_label(row) for row in rows]
        parts.append('<div class="charts">')
        for metric, name in CURVES.items():
            # Every row has its line, empty or not, so that its colour is the same in all charts.
            curves = [(label, error_curve(row.entry, metric)) for label, row in zip(labels, rows)]
            if not any(points for _, points in curves):
                continue
            title = f"Cumulative error distribution, {name}"
            parts.append(_chart(title, curves, f"{name} (%)", "fraction of faces", 100 * CURVE_END, 1.0))
            by_yaw = [(label, error_by_yaw(row.entry, metric)) for label, row in zip(labels, rows)]
            if metric in ("nme", "icp") and any(points for _, points in by_yaw):
                title = f"Error by yaw, {name}"
                parts.append(_chart(title, by_yaw, "|yaw| (degrees, steps of 10)", f"mean {name} (%)", 100))
        parts.append("</div>" + _legend(labels))
        parts.append("<h3>Faces: true landmarks green, predicted red</h3>")
        parts += [_faces(row) for row in rows if "faces" in row.entry.samples]
        parts.append("</article>")
    quoted = [("quoted", [(text, text) for text in line]) for line in _quoted_lines(published())]
    parts.append(f"<article><h2>{QUOTED_TITLE}</h2>{_html_table(_QUOTED_HEADINGS, quoted)}</article>")
    template = resources.files("lightning_faces").joinpath("leaderboard.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(content="\n".join(parts))


def log_to_wandb(project: str, found: Sequence[Board]) -> None:
    """Put the table into a W&B project, as a run of its own."""
    import wandb

    entity, _, name = project.rpartition("/")
    run = wandb.init(project=name, entity=entity or None, job_type="leaderboard", settings=wandb.Settings(silent=True))
    rows = [line for board in found for row in board.rows for line in _long_rows(row, None)]
    run.log({"leaderboard": wandb.Table(columns=list(COLUMNS), data=rows)})
    run.finish()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-faces leaderboard",
        description="Compare the evaluation records of all runs below some folders.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders (default: runs)")
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--metric", action="append", help="show this metric (again for more); the first one ranks")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the measured rows as CSV (errors as fractions)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables, curves and faces")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="add the records of a W&B project")
    parser.add_argument("--wandb-table", metavar="ENTITY/PROJECT", help="log the table to a W&B project")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: Arguments after the subcommand; None reads ``sys.argv``.

    Returns:
        0.

    Raises:
        SystemExit: With 2 after one sentence on stderr, if an argument is wrong or there is nothing to show.
    """
    options = _parser().parse_args(args)
    complain = Console(stderr=True, style="bold red", highlight=False, soft_wrap=True)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folders = list(options.runs)
            if options.wandb:
                download(options.wandb, Path(temporary))
                folders.append(Path(temporary))
            entries, problems = collect(folders)
        for problem in problems:
            complain.print(f"left out: {problem}", markup=False)
        if not entries:
            where = ", ".join(map(str, options.runs))
            raise ConfigurationError(f"There is no usable record below {where}: run lightning-faces test first.")
        found = boards(entries, options.dataset, options.metric)
        print_boards(Console(width=None if sys.stdout.isatty() else PIPED_WIDTH), found)
        if options.csv:
            write_atomic(options.csv, to_csv(found, options.metric).encode())
        if options.markdown:
            write_atomic(options.markdown, to_markdown(found, problems).encode())
        if options.html:
            write_atomic(options.html, to_html(found, problems).encode())
        if options.wandb_table:
            log_to_wandb(options.wandb_table, found)
        if problems:
            complain.print(f"{len(problems)} record(s) left out, see above.", markup=False)
    except LightningFacesError as error:
        print(f"lightning-faces: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return 0
