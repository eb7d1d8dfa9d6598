"""The trials of a sweep for people: a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.table import Table
from rich.text import Text

from lightning_faces.files import write_atomic
from lightning_faces.files.plain_text import csv_cell, printable
from lightning_faces.sweep.definition import argument
from lightning_faces.sweep.trials import Trial


def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """All trials, the best first and those without a value last."""
    sign = -1 if goal == "maximize" else 1

    def key(trial: Trial) -> tuple[bool, float]:
        best = trial.best(goal)
        return best is None, 0.0 if best is None else sign * best

    return sorted(trials, key=key)


def parameter_names(trials: Sequence[Trial]) -> list[str]:
    """Names of all parameters, in the order of the sweep."""
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))


def table(title: str, trials: Sequence[Trial], metric: str, goal: str) -> Table:
    """The trials, for people.

    Args:
        title: Name and method of the sweep.
        trials: In any order.
        metric: Name of what is compared.
        goal: "minimize" or "maximize".
    """
    names = parameter_names(trials)
    shown = Table(title=Text(printable(f"{title} over {len(names)} parameters")))
    for heading in ("trial", "state", "time", metric, *(name.rsplit(".", 1)[-1] for name in names)):
        shown.add_column(Text(printable(heading)))
    for trial in ranked(trials, goal):
        best = trial.best(goal)
        values = [_short(trial.parameters.get(name)) for name in names]
        minutes = f"{int(trial.seconds) // 60}:{int(trial.seconds) % 60:02d}"
        cells = (trial.name, trial.state, minutes, "" if best is None else f"{best:.4g}", *values)
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    return shown


def write_results(folder: Path, trials: Sequence[Trial], metric: str, goal: str) -> list[Path]:
    """Write ``results.csv`` and, where a trial has a value, ``parallel.png``; gives what was written."""
    names = parameter_names(trials)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([csv_cell(heading) for heading in ("trial", "state", "seconds", metric, *names)])
    for trial in ranked(trials, goal):
        best = trial.best(goal)
        values = [trial.parameters.get(name, "") for name in names]
        cells = [csv_cell(value) if isinstance(value, str) else argument(value) for value in values]
        writer.writerow([trial.name, trial.state, f"{trial.seconds:.1f}", "" if best is None else best, *cells])
    written = [write_atomic(folder / "results.csv", buffer.getvalue().encode())]
    scored = [trial for trial in ranked(trials, goal) if trial.best(goal) is not None]
    if scored:
        rows = [{**trial.parameters, metric: trial.best(goal)} for trial in scored]
        picture = io.BytesIO()
        parallel_coordinates(rows, [*names, metric], goal).save(picture, "PNG")
        written.append(write_atomic(folder / "parallel.png", picture.getvalue()))
    return written


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _positions(values: list[Any]) -> tuple[list[float], str, str]:
    """Heights in [0, 1] on an axis and the labels of its two ends; logarithmic where values span 20 times or more."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        scale = math.log if low > 0 and high / low >= 20 else float
        span = scale(high) - scale(low)
        heights = [(scale(v) - scale(low)) / span if span else 0.5 for v in numbers]
        return heights, _short(float(low)), _short(float(high))
    kinds = sorted({argument(v) for v in values})
    heights = [kinds.index(argument(v)) / max(1, len(kinds) - 1) if len(kinds) > 1 else 0.5 for v in values]
    return heights, kinds[0], kinds[-1]


def parallel_coordinates(rows: Sequence[dict[str, Any]], axes: Sequence[str], goal: str) -> Image.Image:
    """Draw each row as a line over one axis per parameter, the better the brighter.

    Args:
        rows: Parameter to value, the metric included.
        axes: Names of the axes, the metric last.
        goal: "minimize" or "maximize".

    Returns:
        An RGB image.
    """
    step, top, height, left = 170, 50, 320, 90
    image = Image.new("RGB", (2 * left + step * (len(axes) - 1), top + height + 40), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    heights: dict[str, list[float]] = {}
    for number, axis in enumerate(axes):
        heights[axis], low, high = _positions([row.get(axis, "") for row in rows])
        x = left + step * number
        draw.line((x, top, x, top + height), fill=(120, 120, 120))
        draw.text((x, top - 34), axis.rsplit(".", 1)[-1][:26], fill=(0, 0, 0), anchor="ma")
        draw.text((x, top - 16), high[:26], fill=(90, 90, 90), anchor="ma")
        draw.text((x, top + height + 6), low[:26], fill=(90, 90, 90), anchor="ma")
    quality = [1 - h if goal == "minimize" else h for h in heights[axes[-1]]]
    for row in sorted(range(len(rows)), key=lambda i: quality[i]):
        good = quality[row]
        colour = (int(205 - 175 * good), int(210 - 100 * good), int(225 - 45 * good))
        points = [(left + step * n, top + height * (1 - heights[axis][row])) for n, axis in enumerate(axes)]
        draw.line(points, fill=colour, width=1 + round(2 * good))
    return image
