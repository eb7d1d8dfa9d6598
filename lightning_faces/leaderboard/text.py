"""Boards as text: for a terminal of any width, as CSV, and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lightning_faces.files.plain_text import csv_cell, printable
from lightning_faces.leaderboard.collect import published
from lightning_faces.leaderboard.markdown import markdown_text
from lightning_faces.leaderboard.rank import BASELINE, Board, Row
from lightning_faces.leaderboard.table import (
    QUOTED_HEADINGS,
    QUOTED_TITLE,
    Column,
    columns,
    notes,
    quoted_for,
    quoted_lines,
)

CSV_COLUMNS = (
    "method", "dataset", "metric", "value", "low", "high", "unit", "samples", "rank", "tied_with_best", "setting",
    "samples_seen", "epochs", "converged", "seed", "image_size", "margin", "parameters", "images_per_second", "device",
    "run", "fingerprint", "split", "config", "weights", "git_commit", "created", "prediction", "backbone", "invalid",
)  # fmt: skip
"""Columns of the CSV file: one row per method, data set and metric; errors as fractions."""
PIPED_WIDTH = 200
_WIDE = 100_000
_LONGEST_NAME = 32
_QUOTED_AS_TABLE = 120


def print_boards(console: Console, found: Sequence[Board], piped: bool = False) -> None:
    """Print the boards, and below them what the papers report on the same data sets.

    Args:
        console: Where to.
        found: The boards.
        piped: Whether the console has no width of its own, so that nothing has to be left out.
    """
    for board in found:
        table, missing = _fitting(console, board, _WIDE if piped else console.width)
        _print(console, Group(_text(board.title, "bold"), table))
        lines = notes(board)
        if missing:
            lines.append(f"No room for {', '.join(missing)}: widen the terminal, or use --csv or --html.")
        for note in lines:
            _print(console, _text(f"  {note}"))
        console.print()
    quoted = quoted_lines(quoted_for(found))
    if quoted and console.width < _QUOTED_AS_TABLE:
        _print(console, _text(QUOTED_TITLE, "bold"))
        for data, method, reported, protocol, place in quoted:
            _print(console, _text(f"  {method} on {data}: {reported} ({protocol}; {place})", "dim"))
    elif quoted:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in QUOTED_HEADINGS:
            table.add_column(name, overflow="fold")
        for line in quoted:
            table.add_row(*(_text(cell, "dim") for cell in line))
        _print(console, Group(_text(QUOTED_TITLE, "bold"), table))


def _print(console: Console, what: Any) -> None:
    # A table that was chosen to be wider than the console, where that is no terminal, is not folded.
    wide = Measurement.get(console, console.options.update(max_width=_WIDE), what).maximum
    width = max(console.width, wide) if isinstance(what, Group) else None
    console.print(what, highlight=False, crop=False, width=width)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _fitting(console: Console, board: Board, width: int) -> tuple[Table, list[str]]:
    """The table with all columns and intervals that fit, numbers never broken, and the headings of the others."""
    every = columns(board)
    chosen = list(every)
    intervals = True
    while True:
        table = _table(board, chosen, intervals)
        needed = Measurement.get(console, console.options.update(max_width=_WIDE), table).maximum
        if needed <= width or len(chosen) <= 2:
            return table, [column.heading for column in every if column not in chosen]
        if intervals:
            intervals = False
        else:
            chosen.remove(min(chosen, key=lambda column: column.keep))


def _table(board: Board, chosen: Sequence[Column], intervals: bool) -> Table:
    """A table; the metric that ranks, behind the names, always has its interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    ranking = next((column for column in chosen if column.keep == 95), None)
    for column in chosen:
        name = printable(column.heading).replace(" (", "\n(", 1)
        if column.left:
            table.add_column(Text(name), max_width=_LONGEST_NAME, overflow="fold")
        else:
            table.add_column(Text(name), justify="right", no_wrap=True)
    for row in board.rows:
        cells = []
        for column in chosen:
            below = column.interval(row) if intervals or column is ranking else ""
            cells.append(Text(printable(column.text(row)) + (f"\n{below}" if below else "")))
        table.add_row(*cells, style="dim" if row.entry.record.method == BASELINE else "")
    return table


def to_csv(found: Sequence[Board], metrics: Sequence[str] | None) -> str:
    """The measured rows as CSV with the columns :data:`CSV_COLUMNS`; every metric unless some were asked for."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for board in found:
        for row in board.rows:
            writer.writerows([csv_cell(value) for value in line] for line in long_rows(row, metrics))
    return buffer.getvalue()


def long_rows(row: Row, metrics: Sequence[str] | None) -> list[list[Any]]:
    """A line of :data:`CSV_COLUMNS` for each metric of a row, or for those that were asked for."""
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
            "prediction": record.prediction, "backbone": record.backbone, "invalid": row.entry.num_invalid,
        }  # fmt: skip
        rows.append([values[column] for column in CSV_COLUMNS])
    return rows


def to_markdown(found: Sequence[Board], problems: Sequence[str]) -> str:
    """The boards, the quoted values and the records left out as Markdown."""
    lines = []
    for board in found:
        every = columns(board)
        rows = [[_with_interval(column, row) for column in every] for row in board.rows]
        lines += [f"## {markdown_text(board.title)}", "", *_markdown_table([c.heading for c in every], rows)]
        lines += [*(f"- {markdown_text(note)}" for note in notes(board)), ""]
    lines += [f"## {QUOTED_TITLE}", "", *_markdown_table(QUOTED_HEADINGS, quoted_lines(published()))]
    if problems:
        lines += ["## Records left out", "", *(f"- {markdown_text(problem)}" for problem in problems), ""]
    return "\n".join(lines)


def _with_interval(column: Column, row: Row) -> str:
    below = column.interval(row)
    return column.text(row) + (f" {below}" if below else "")


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [[markdown_text(name) for name in headings], ["---"] * len(headings)]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]
