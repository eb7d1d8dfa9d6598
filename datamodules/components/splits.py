"""Splits and subsets as papers define them, as seeded draws where the lists are not published."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError


def draw_by_yaw(yaw: NDArray[np.float64], counts: tuple[tuple[float, float, int], ...], seed: int) -> NDArray[np.int64]:
    """Indices of a random subset with given numbers of samples in ranges of the absolute yaw, in order.

    BP4D-S is tested on 100 images of 0-10 degrees, 500 of 10-20 and 500 of 20-30 (Zhao 2016, section 6.1).

    Args:
        yaw: Degrees ``[N]``.
        counts: For each range, its lower end (exclusive except for 0), upper end, and number of samples.
        seed: Seed of the draw.

    Raises:
        DataError: If a range has fewer.
    """
    magnitude = np.abs(yaw)
    rng = np.random.default_rng(seed)
    chosen = []
    for low, high, count in counts:
        members = np.nonzero(((magnitude > low) | (low == 0)) & (magnitude <= high))[0]
        if len(members) < count:
            raise DataError(f"There are {len(members)} samples with a yaw of {low:g} to {high:g} degrees, not {count}.")
        chosen.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def check_fraction(owner: str, fraction: float) -> float:
    """A data module's option ``val_fraction``, after a check of its range.

    Raises:
        ConfigurationError: If it is not a share from 0 to below 1.
    """
    if not 0 <= fraction < 1:
        raise ConfigurationError(f"{owner} option val_fraction is {fraction}; it must be from 0 to below 1.")
    return fraction


def hold_out(groups: list[str], fraction: float) -> NDArray[np.bool_]:
    """Which samples are held out for validation: those of a fixed share of groups, by a hash of the group's name.

    A group (one photograph with its rotated copies, one subject) is never split, and a sample's side does not depend on
    which others are there.

    Args:
        groups: Group of each sample.
        fraction: Share of the groups, 0 to 1.
    """

    def place(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    return np.array([place(name) < fraction for name in groups], dtype=bool)
