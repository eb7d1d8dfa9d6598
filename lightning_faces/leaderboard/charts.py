"""Line charts as inline SVG, and the curves that they draw."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_faces.files.plain_text import printable
from lightning_faces.leaderboard.collect import Entry
from lightning_faces.leaderboard.rank import BASELINE

Points = list[tuple[float, float]]
CURVES = {
    "nme": "2D NME",
    "nme_3d_mean": "3D NME",
    "dense_nme": "dense 2D NME",
    "dense_nme_3d": "dense 3D NME",
    "icp": "error after ICP",
}
"""Errors whose cumulative curves the page draws where records have them; of 2D NME and ICP, those by yaw too."""
BY_YAW = ("nme", "icp")
YAW_STEP = 10
CURVE_END = 0.10
"""End of the error axis, as in the papers, where the methods' errors are below it."""
_SHOWN_PART = 0.9
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c8c00")
_DASHES = ("", "6 3", "2 3")
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def escaped(text: str) -> str:
    """Text for HTML."""
    return html.escape(printable(text))


def _errors(entry: Entry, metric: str) -> NDArray[np.float64]:
    errors = entry.samples.get(metric)
    return np.full(entry.faces, np.nan) if errors is None else np.asarray(errors, dtype=np.float64)


def round_up(value: float) -> float:
    """The next number that an axis can end at.

    Example:
        >>> round_up(0.0101), round_up(37.0)
        (0.015, 40.0)
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * next((step for step in _STEPS if step * power >= value * (1 - 1e-9)), 10.0))


def curve_end(entries: Sequence[Entry], metric: str) -> float:
    """End of the error axis: 10 %, or where nine tenths of each method's faces are, if that is further.

    The baseline counts only where it is alone, since it would squeeze the others to the left.
    """
    methods = [entry for entry in entries if entry.record.method != BASELINE] or list(entries)
    far = CURVE_END
    for entry in methods:
        errors = _errors(entry, metric)
        if not np.isnan(errors).all():
            far = max(far, float(np.nanquantile(errors, _SHOWN_PART)))
    return CURVE_END if far <= CURVE_END else round_up(far)


def error_curve(entry: Entry, metric: str = "nme", end: float = CURVE_END) -> Points:
    """Cumulative error distribution: (percent, fraction of faces) at each of 101 thresholds; empty without errors.

    Faces that the method gave up on count as failures at every threshold.

    Args:
        entry: The record.
        metric: A score of it.
        end: The last threshold, a fraction.
    """
    errors = _errors(entry, metric)
    errors = np.sort(errors[~np.isnan(errors)])
    if not len(errors):
        return []
    thresholds = np.linspace(0, end, 101)
    fractions = np.searchsorted(errors, thresholds, side="right") / (len(errors) + entry.num_invalid)
    return list(zip((100 * thresholds).tolist(), fractions.tolist()))


def error_by_yaw(entry: Entry, metric: str = "nme") -> Points:
    """Mean error in percent of the faces in each 10 degrees of ``|yaw|``, at their middle; 90 and beyond is one."""
    yaw, errors = np.abs(entry.samples["yaw"]), _errors(entry, metric)
    points = []
    for start in range(0, 100, YAW_STEP):
        inside = (yaw >= start) & ((yaw < start + YAW_STEP) | (start >= 90)) & ~np.isnan(errors)
        if inside.any():
            points.append((start + YAW_STEP / 2, float(100 * errors[inside].mean())))
    return points


def chart(
    name: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    x_max: float,
    y_max: float | None = None,
) -> str:
    """A line chart as inline SVG; both axes start at 0, and y ends at ``y_max`` or follows the data."""
    width, height, left, right, top, bottom = 560, 320, 52, 12, 28, 44
    end = round_up(max((y for _, points in series for _, y in points), default=1.0)) if y_max is None else y_max

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / x_max * (width - left - right), height - bottom - y / end * (height - top - bottom)

    title = escaped(name)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f'<text class="title" x="{left}" y="16">{title}</text>',
    ]
    for i in range(6):
        x, y = at(0, end * i / 5)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{end * i / 5:.4g}</text>')
        x, y = at(x_max * i / 5, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{x_max * i / 5:.4g}</text>')
    middle, side = (left + width - right) / 2, height / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{escaped(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{side}" text-anchor="middle" transform="rotate(-90 14 {side})">{escaped(y_label)}</text>'
    )
    for i, (label, points) in enumerate(series):
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline {_stroke(i)} points="{path}"><title>{escaped(label)}</title></polyline>')
    return "".join(parts) + "</svg>"


def legend(labels: Sequence[str]) -> str:
    """What the lines of all charts of a board mean."""
    items = [
        f'<li><svg width="26" height="10"><line x1="0" y1="5" x2="26" y2="5" {_stroke(i)}/></svg> {escaped(label)}</li>'
        for i, label in enumerate(labels)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _stroke(place: int) -> str:
    return f'stroke="{_COLOURS[place % 8]}" stroke-dasharray="{_DASHES[place // 8 % 3]}"'


def charts(entries: Sequence[Entry], labels: Sequence[str]) -> str:
    """All charts of a board's rows, with a legend; a row all of whose errors are beyond an axis is named below it."""
    parts = []
    for metric, name in CURVES.items():
        end = curve_end(entries, metric)
        # Every row has its line, empty or not, so that its colour is the same in all charts.
        curves = [(label, error_curve(entry, metric, end)) for label, entry in zip(labels, entries)]
        if any(points for _, points in curves):
            title = f"Cumulative error distribution, {name}"
            drawn = chart(title, curves, f"{name} (%)", "fraction of faces", 100 * end, 1.0)
            beyond = [label for label, points in curves if points and points[-1][1] == 0]
            text = f"All errors beyond {100 * end:g} %: {', '.join(beyond)}." if beyond else ""
            parts.append(f"<figure>{drawn}<figcaption>{escaped(text)}</figcaption></figure>")
        by_yaw = [(label, error_by_yaw(entry, metric)) for label, entry in zip(labels, entries)]
        if metric in BY_YAW and any(points for _, points in by_yaw):
            title = f"Error by yaw, {name}"
            drawn = chart(title, by_yaw, "|yaw| (degrees, steps of 10)", f"mean {name} (%)", 100)
            parts.append(f"<figure>{drawn}</figure>")
    return f'<div class="charts">{"".join(parts)}</div>{legend(labels)}' if parts else ""
