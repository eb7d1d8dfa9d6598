"""``metrics.csv``: the history of a run, read with bounds, as much of it as is good."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

FIRST_COLUMNS = ("step", "epoch")
LARGEST = 2**28
"""Bytes that are read of a history; a training of a million rows has about as many."""
MOST_COLUMNS = 10_000
COLUMN = re.compile(r"[\w/ .:%()+=-]{1,200}")
NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,4})?|inf|nan)")


def read_history(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """The history in a ``metrics.csv``, which a kill or a disk may have damaged.

    Args:
        path: The file; it need not exist.

    Returns:
        Column names, the rows (name to a number as text, or ""), and how many rows were left out as they are damaged;
        one that a kill cut short at the end is not counted.
    """
    if not path.exists():
        return [], [], 0
    with path.open("rb") as file:
        data = file.read(LARGEST)
    # A kill while a row was written leaves it without its end, perhaps with a number cut short.
    whole = data[: data.rfind(b"\n") + 1]
    text = whole.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    lines = csv.reader(io.StringIO(text))
    rows: list[dict[str, str]] = []
    bad = 0
    columns: list[str] = []
    try:
        columns = next(lines, [])
        if (
            not all(COLUMN.fullmatch(name) for name in columns)
            or len(set(columns)) < len(columns)
            or len(columns) > MOST_COLUMNS
        ):
            return [], [], text.count("\n")
        for cells in lines:
            fits = len(cells) == len(columns) and all(not cell or NUMBER.fullmatch(cell) for cell in cells)
            row = dict(zip(columns, cells))
            if fits and re.fullmatch(r"\d{0,15}", row.get("step", "")):
                rows.append(row)
            else:
                bad += 1
    except csv.Error:
        bad += 1
    return columns, rows, bad


def read_values(path: Path, metric: str) -> list[float]:
    r"""The values of a metric in a ``metrics.csv``, oldest first.

    Example:
        >>> _ = Path("metrics.csv").write_text("step,val/nme\n0,0.5\n1,\n2,0.25\n")
        >>> read_values(Path("metrics.csv"), "val/nme")
        [0.5, 0.25]
    """
    return [float(row[metric]) for row in read_history(path)[1] if row.get(metric)]
