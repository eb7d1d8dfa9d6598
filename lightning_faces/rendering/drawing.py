"""Landmarks, depths and captions on pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw
from torch import Tensor

CURVES_68 = (range(17), range(17, 22), range(22, 27), range(27, 31), range(31, 36))
LOOPS_68 = (range(36, 42), range(42, 48), range(48, 60), range(60, 68))
"""Landmarks of the 68-point scheme that one line joins: open, and closed."""
STOPS = np.array([[0.19, 0.07, 0.23], [0.16, 0.47, 0.92], [0.64, 0.99, 0.24], [0.98, 0.6, 0.15], [0.48, 0.02, 0.01]])


def draw_landmarks(
    draw: ImageDraw.ImageDraw, points: Tensor, shown: Tensor, colour: tuple[int, int, int], width: int = 1
) -> None:
    """Draw landmarks as dots, and the lines between them where all 68 are shown.

    Args:
        draw: Of the picture.
        points: ``[L, >=2]`` in its pixels, the centre of the first being (0, 0).
        shown: Bool ``[L]``; a point that is not finite is left out too.
        colour: RGB.
        width: Of the lines, pixels.
    """
    shown = shown & points[:, :2].isfinite().all(dim=1)
    at = [(float(x), float(y)) for x, y in points[:, :2]]
    if len(at) == 68 and bool(shown.all()):
        for curve in CURVES_68:
            draw.line([at[i] for i in curve], fill=colour, width=width)
        for loop in LOOPS_68:
            draw.line([at[i] for i in (*loop, loop[0])], fill=colour, width=width)
    radius = 1.5 * width
    for (x, y), show in zip(at, shown.tolist()):
        if show:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def colours(values: Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1] to RGB from dark blue over green to dark red ``[..., 3]``."""
    at = values.clamp(0, 1).numpy() * (len(STOPS) - 1)
    low = np.minimum(at.astype(int), len(STOPS) - 2)
    part = (at - low)[..., None]
    mixed: NDArray[np.float64] = 255 * (STOPS[low] * (1 - part) + STOPS[low + 1] * part)
    drawn: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return drawn


def caption_text(text: str, most: int) -> str:
    """Text that any font can draw: strangers name their files with characters that none has."""
    return text.encode("ascii", "replace").decode("ascii")[:most]
