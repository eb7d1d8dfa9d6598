"""``predictions.jsonl``: a line per photograph or frame, written as prediction goes on, and continued by a rerun."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from lightning_faces.errors import DataError

FILE = "predictions.jsonl"
MOST_LINE = 2**26
"""Bytes of a line, beyond which the file is something else."""
Key = tuple[str, int]


class Journal:
    """The lines of a folder of predictions.

    A line is written and synced as a whole; one that was cut off, as by a crash, is taken off before the next is added.
    Where a photograph has several lines, the last counts; :meth:`close` leaves out the others.

    Args:
        folder: Of the predictions; it exists.

    Raises:
        DataError: If there is such a file with other content.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._done: dict[Key, tuple[Any, ...]] = {}
        self._last: dict[Key, int] = {}
        self._lines = 0
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        while line := self._file.readline(MOST_LINE):
            if not line.endswith(b"\n"):
                if len(line) == MOST_LINE:
                    raise DataError(f"{self.path} is no list of predictions: choose another --out.")
                break
            end += len(line)
            try:
                content = json.loads(line)
                self._remember(content)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{self.path} line {self._lines + 1} is no prediction: choose another --out, or remove the file."
                ) from error
        self._file.truncate(end)

    def _remember(self, line: dict[str, Any]) -> None:
        key = str(line["image"]), int(line.get("frame", -1))
        self._last[key] = self._lines
        self._lines += 1
        if "skipped" in line:
            self._done.pop(key, None)
        elif key[1] < 0:
            self._done[key] = (line["settings"], line["bytes"], line["modified"])

    def has(self, name: str, settings: str, size: int, modified: int) -> bool:
        """Whether a photograph was predicted with the same settings, and its file has not changed since."""
        return self._done.get((name, -1)) == (settings, size, modified)

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Append lines, which are on the disk when this returns."""
        data = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in lines:
            self._remember(line)

    def close(self) -> None:
        """Close the file; lines that later ones replace are left out of it."""
        self._file.close()
        if self._lines == len(self._last):
            return
        kept = set(self._last.values())
        temporary = self.path.with_name(f".{FILE}.tmp")
        with self.path.open("rb") as before, temporary.open("wb") as after:
            for number, line in enumerate(before):
                if number in kept:
                    after.write(line)
            after.flush()
            os.fsync(after.fileno())
        temporary.replace(self.path)
