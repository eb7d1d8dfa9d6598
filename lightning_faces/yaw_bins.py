"""The three bins of yaw that AFLW2000-3D is reported in, for arrays and tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "NDArray[np.float64]", "Tensor")

YAW_BINS: tuple[tuple[str, float, float], ...] = (
    ("0_30", -1.0, 30.0),
    ("30_60", 30.0, 60.0),
    ("60_90", 60.0, float("inf")),
)
"""Name and (lower, upper] of \\|yaw\\| in degrees. The last bin has no end: a few AFLW2000-3D faces look beyond 90."""

BALANCED = 232
"""Samples of each bin in the balanced subset of AFLW2000-3D (FAN, PRNet): those beyond 60 degrees by AFLW's own yaw."""


def yaw_bin_mask(yaw: Values, name: str) -> Values:
    """Which samples fall into a bin of ``|yaw|``: 0_30 is ``<= 30``, 30_60 is ``(30, 60]``, 60_90 is ``> 60``.

    Args:
        yaw: Degrees, an array or a tensor; NaN is in no bin.
        name: Name of the bin.

    Returns:
        Booleans of the same shape.

    Raises:
        ConfigurationError: If there is no such bin.

    Example:
        >>> yaw_bin_mask(np.array([-30.0, 31.0, 95.0]), "30_60").tolist()
        [False, True, False]
    """
    for label, low, high in YAW_BINS:
        if label == name:
            size = abs(yaw)
            return (size > low) & (size <= high)  # type: ignore[return-value]  # booleans of the same container
    raise ConfigurationError(f"Unknown yaw bin {name!r}: choose one of {', '.join(label for label, _, _ in YAW_BINS)}.")


def yaw_bin(yaw: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the bin of each yaw in degrees: 0 for up to 30, 1 for up to 60, 2 beyond.

    Example:
        >>> yaw_bin(np.array([-30.0, 31.0, 95.0])).tolist()
        [0, 1, 2]
    """
    return np.digitize(np.abs(yaw), [high for _, _, high in YAW_BINS[:-1]], right=True).astype(np.int64)


def balanced_draw(yaw: NDArray[np.float64], seed: int, per_bin: int = BALANCED) -> NDArray[np.int64]:
    """Indices of a random subset with as many samples of each yaw bin, in order.

    AFLW2000-3D is reported on 3 x 232 = 696 photographs whose list is not published (FAN, PRNet).

    Args:
        yaw: Degrees ``[N]``.
        seed: Number of the draw.
        per_bin: Samples of each bin.

    Raises:
        DataError: If a bin has fewer.

    Example:
        >>> balanced_draw(np.array([0.0, 5.0, 40.0, 50.0, 70.0]), seed=0, per_bin=1).tolist()
        [0, 2, 4]
    """
    bins = yaw_bin(yaw)
    rng = np.random.default_rng(seed)
    chosen = []
    for number, name in enumerate(("0-30", "30-60", "over 60")):
        members = np.nonzero(bins == number)[0]
        if len(members) < per_bin:
            raise DataError(
                f"A balanced draw takes {per_bin} samples of each yaw bin, and there are {len(members)} with a yaw of "
                f"{name} degrees: use the whole data set."
            )
        chosen.append(rng.permutation(members)[:per_bin])
    return np.sort(np.concatenate(chosen)).astype(np.int64)
