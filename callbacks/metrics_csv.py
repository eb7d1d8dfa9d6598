"""A logger that keeps the history of a run in one CSV file, over restarts."""

from __future__ import annotations

import csv
import io
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_faces.files import write_atomic
from lightning_faces.files.history import FIRST_COLUMNS, read_history


class MetricsCSV(Logger):
    """Writes ``metrics.csv``: a row per logged step, a column per metric.

    Lightning's ``CSVLogger`` deletes the file of an earlier process. This one goes on with it; where a resumed training
    repeats steps, its values take the place of those that the interrupted process wrote. Each row is on the disk when
    ``log_metrics`` returns.

    Args:
        save_dir: Folder of ``metrics.csv``.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None
        self._earlier: list[dict[str, str]] = []
        self._seen: set[str] = set()
        self._rows: list[dict[str, str]] = []

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """None is kept: the folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of ``metrics.csv``."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """Folder of ``metrics.csv``."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        if self._columns is None:
            self._open()
        assert self._columns is not None
        row = {"step": "" if step is None else str(step), **{key: f"{value:.9g}" for key, value in metrics.items()}}
        new = set(row) - self._seen
        repeated = step is not None and self._drop_repeated(new, step)
        self._seen |= new
        self._rows.append(row)
        missing = [key for key in row if key not in self._columns]
        if missing or repeated or not self.path.exists():
            self._columns = [c for c in FIRST_COLUMNS if c in (*self._columns, *missing)] + sorted(
                {*self._columns, *missing} - set(FIRST_COLUMNS)
            )
            write_atomic(self.path, self._text(self._earlier + self._rows, header=True))
            return
        with self.path.open("ab") as file:
            file.write(self._text([row], header=False))

    def _open(self) -> None:
        self._columns, self._earlier, bad = read_history(self.path)
        if bad:
            # What is good is kept here, and all of it there.
            kept = self.path.with_name("metrics-damaged.csv")
            kept.write_bytes(self.path.read_bytes())
            said = f"{bad} rows of {self.path} are damaged and left out; {kept.name} has them."
            print(f"lightning-faces: {said}", file=sys.stderr)
        if self.path.exists():
            # A row that a kill cut short would go on with the next one.
            write_atomic(self.path, self._text(self._earlier, header=True))

    def _drop_repeated(self, columns: set[str], step: int) -> bool:
        """Blank ``columns`` in rows of earlier processes from ``step`` on; whether anything was there."""
        found = False
        for row in self._earlier:
            if row.get("step") and int(row["step"]) >= step:
                for column in columns - set(FIRST_COLUMNS):
                    found = bool(row.pop(column, "")) or found
        self._earlier = [row for row in self._earlier if any(row[c] for c in row if c not in FIRST_COLUMNS)]
        return found

    def _text(self, rows: list[dict[str, str]], header: bool) -> bytes:
        assert self._columns is not None
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue().encode()
