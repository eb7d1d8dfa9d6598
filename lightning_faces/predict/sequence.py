"""What a video adds to single images: frames without a face, and jitter (Pix2face 2017, section 4.1; Casiez 2012)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError


def interpolate_misses(values: Tensor, found: Tensor) -> Tensor:
    """Fill frames in which no face was found, linearly between the frames before and after.

    Args:
        values: ``[T, ...]``, such as boxes ``[T, 4]``.
        found: Bool ``[T]``.

    Returns:
        ``[T, ...]``; before the first and after the last found frame, the values of that frame.

    Raises:
        ConfigurationError: If no frame has a face.

    Example:
        >>> boxes = torch.tensor([[0.0], [9.9], [9.9], [3.0]])
        >>> interpolate_misses(boxes, torch.tensor([True, False, False, True]))[:, 0].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    known = found.nonzero()[:, 0]
    if len(known) == 0:
        raise ConfigurationError(f"A face was found in none of the {len(found)} frames: give boxes.")
    frame = torch.arange(len(values), device=values.device)
    after = torch.searchsorted(known, frame).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, frame, right=True) - 1).clamp(min=0)
    first, last = known[before], known[after]
    share = (frame - first).to(values.dtype) / (last - first).clamp(min=1)
    share = share.reshape(-1, *[1] * (values.ndim - 1)).clamp(0, 1)
    filled: Tensor = values[first] + share * (values[last] - values[first])
    return filled


def moving_average(values: Tensor, window: int = 3) -> Tensor:
    """Mean over a window of frames around each; at the ends, over those that there are.

    Args:
        values: ``[T, ...]``, such as landmarks ``[T, 68, 3]``.
        window: Odd number of frames, 3 in the paper.

    Returns:
        ``[T, ...]``.

    Raises:
        ConfigurationError: If the window is not odd.

    Example:
        >>> moving_average(torch.tensor([0.0, 3.0, 0.0, 3.0])).tolist()
        [1.5, 1.0, 2.0, 1.5]
    """
    if window < 1 or window % 2 == 0:
        raise ConfigurationError(f"A moving average over {window} frames has no middle: give an odd number.")
    flat = values.reshape(len(values), -1).T[:, None]
    smooth = nn.functional.avg_pool1d(flat, window, stride=1, padding=window // 2, count_include_pad=False)
    return smooth[:, 0].T.reshape(values.shape)


def one_euro(
    values: Tensor, rate: float, min_cutoff: float = 1.0, beta: float = 5.0, derivative_cutoff: float = 1.0
) -> Tensor:
    """The One-Euro filter: smooth where values rest, without lag where they move (Casiez, Roussel and Vogel 2012).

    A low-pass filter of first order, for each number alone, whose cutoff is ``min_cutoff + beta |speed|``; the speed is
    low-pass filtered itself. It looks at the past alone, so it is the same for a video and for a camera.

    Args:
        values: ``[T, ...]``, in units in which the speed is meant, such as landmarks over the face's size.
        rate: Frames per second.
        min_cutoff: Hertz, at rest: lower is smoother.
        beta: Hertz per unit and second: higher lags less.
        derivative_cutoff: Hertz.

    Returns:
        ``[T, ...]``.

    Raises:
        ConfigurationError: If the rate is not positive.

    Example:
        >>> still = torch.tensor([0.0, 0.01, -0.01, 0.01, -0.01])
        >>> bool(one_euro(still, 30.0).abs().max() < 0.003)
        True
    """
    if not 0 < rate < math.inf:
        raise ConfigurationError(f"A video of {rate} frames per second can't be smoothed: give a positive rate.")
    smooth, speed = values.clone(), torch.zeros_like(values[:1])
    of_speed = _smoothing(torch.tensor(derivative_cutoff), rate)
    for t in range(1, len(values)):
        # As the paper's algorithm 1 has it: against the last filtered value.
        speed = speed + of_speed * ((values[t] - smooth[t - 1]) * rate - speed)
        smooth[t] = smooth[t - 1] + _smoothing(min_cutoff + beta * speed[0].abs(), rate) * (values[t] - smooth[t - 1])
    return smooth


def _smoothing(cutoff: Tensor, rate: float) -> Tensor:
    """Share of the new value in a low-pass filter of that cutoff frequency."""
    return 1 / (1 + rate / (2 * math.pi * cutoff))
