"""The leaderboard as one page without outside references."""

from __future__ import annotations

import base64
import io
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from lightning_faces.leaderboard.charts import charts, escaped
from lightning_faces.leaderboard.collect import published
from lightning_faces.leaderboard.rank import BASELINE, Board, Row
from lightning_faces.leaderboard.table import QUOTED_HEADINGS, QUOTED_TITLE, columns, notes, quoted_lines

Cell = tuple[str, str, str, Any]
"""Whether it is "words" or "digits", its text, the smaller text below it, and the value to sort by."""


def to_html(found: Sequence[Board], problems: Sequence[str]) -> str:
    """The whole leaderboard as one page."""
    parts = []
    if problems:
        items = "".join(f"<li>{escaped(problem)}</li>" for problem in problems)
        parts.append(
            f'<div class="problems" role="alert"><h2>{len(problems)} record(s) left out</h2><ul>{items}</ul></div>'
        )
    parts += [_article(board) for board in found]
    quoted = [("quoted", [("words", text, "", text) for text in line]) for line in quoted_lines(published())]
    parts.append(f"<article><h2>{escaped(QUOTED_TITLE)}</h2>{_table(QUOTED_HEADINGS, quoted)}</article>")
    template = resources.files("lightning_faces.leaderboard").joinpath("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(content="\n".join(parts))


def _article(board: Board) -> str:
    every = columns(board)
    rows = [
        (
            "baseline" if row.entry.record.method == BASELINE else "measured",
            [
                ("words" if column.left else "digits", column.text(row), column.interval(row), column.value(row))
                for column in every
            ],
        )
        for row in board.rows
    ]
    parts = [f"<article><h2>{escaped(board.title)}</h2>", _table([column.heading for column in every], rows)]
    parts.append("<ul class='notes'>" + "".join(f"<li>{escaped(note)}</li>" for note in notes(board)) + "</ul>")
    parts.append(charts([row.entry for row in board.rows], [_label(row) for row in board.rows]))
    faces = [_faces(row) for row in board.rows if "faces" in row.entry.samples]
    parts += ["<h3>Faces: true landmarks green, predicted red</h3>", *faces] if faces else []
    return "".join([*parts, "</article>"])


def _label(row: Row) -> str:
    return f"{row.entry.name} · {row.entry.record.run}"


def _faces(row: Row) -> str:
    samples = row.entry.samples
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(samples["faces"])).save(buffer, format="PNG", optimize=True)
    names = []
    for name, at in zip(("best", "median", "worst"), samples["faces_row"].tolist()):
        error = f" {100 * samples['nme'][at]:.2f} %" if "nme" in samples and np.isfinite(samples["nme"][at]) else ""
        names.append(f"{name}{error} ({samples['sample_id'][at]})")
    text = escaped(f"{_label(row)}: {', '.join(names)}")
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure class="faces"><figcaption>{text}</figcaption>'
        f'<img alt="{text}" src="data:image/png;base64,{source}"></figure>'
    )


def _two_lines(heading: str) -> str:
    """A heading with its unit below it."""
    name, bracket, unit = escaped(heading).partition(" (")
    return f"{name}<br>({unit}" if bracket else name


def _table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{_two_lines(name)}</button></th>' for name in headings)
    body = []
    for kind, cells in rows:
        inside = "".join(
            f'<td class="{kind_of_cell}" data-value="{escaped(str(value))}">{escaped(text)}'
            + (f"<br><small>{escaped(below)}</small></td>" if below else "</td>")
            for kind_of_cell, text, below, value in cells
        )
        body.append(f'<tr class="{kind}">{inside}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'
