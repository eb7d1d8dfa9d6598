"""Checks of numbers that a user gives."""

from __future__ import annotations

import math

from lightning_faces.errors import ConfigurationError


def check_number(option: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a number out of its range, and one that is not finite.

    Args:
        option: What the number is, as the sentence names it.
        value: The number.
        least: The smallest that will do.
        most: The largest.

    Raises:
        ConfigurationError: If it will not do.

    Example:
        >>> check_number("data option num_workers", -1, 0)
        Traceback (most recent call last):
        lightning_faces.errors.ConfigurationError: data option num_workers is -1; it must be at least 0.
    """
    if not (math.isfinite(value) and least <= value <= most):
        bounds = f"at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ConfigurationError(f"{option} is {value}; it must be {bounds}.")


def check_range(option: str, value: tuple[float, float], least: float, most: float = math.inf) -> None:
    """Refuse a range (least, most) that is out of its own range, or the wrong way round.

    Raises:
        ConfigurationError: If it will not do.
    """
    if len(value) != 2 or not (all(map(math.isfinite, value)) and least <= value[0] <= value[1] <= most):
        bounds = f"at least {least:g}" if math.isinf(most) else f"within {least:g} and {most:g}"
        raise ConfigurationError(f"{option} is {value}; give (least, most), {bounds}.")
