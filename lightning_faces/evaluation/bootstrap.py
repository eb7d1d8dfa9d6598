"""Bootstrap of means over samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELLS_AT_ONCE = 4_000_000


def bootstrap_means(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None = None, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of resampled samples, the same draw for all columns; see :func:`interval`.

    Args:
        values: ``[N, C]``, one column per metric; NaN where a sample has no value.
        groups: Int64 ``[N]``: samples with the same number >= 0 (photographs of one subject) are drawn together, since
            they are not independent; a negative number is a group of its own.
        resamples: Number R of draws.
        seed: Seed of the draws, so that the same values give the same interval.

    Returns:
        ``[R, C]``; NaN where a draw holds no value of a column.
    """
    count = len(values)
    groups = np.full(count, -1) if groups is None else groups
    unit = np.unique(np.where(groups < 0, -1 - np.arange(count), groups), return_inverse=True)[1].reshape(-1)
    units = int(unit.max()) + 1
    # Sums per unit, so that a draw of units is one matrix product.
    present = ~np.isnan(values)
    sums, sizes = np.zeros((units, values.shape[1])), np.zeros((units, values.shape[1]))
    np.add.at(sums, unit, np.where(present, values, 0.0))
    np.add.at(sizes, unit, present)
    rng = np.random.default_rng(seed)
    draws = []
    step = max(1, _CELLS_AT_ONCE // units)
    for start in range(0, resamples, step):
        times = rng.multinomial(units, np.full(units, 1 / units), size=min(step, resamples - start)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            draws.append((times @ sums) / (times @ sizes))
    return np.concatenate(draws)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of draws ``[R]``; draws without a value (NaN) are ignored."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)
