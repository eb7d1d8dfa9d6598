"""The trials of a sweep, and the file that remembers them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_faces.errors import ConfigurationError, DataError

STATES = ("running", "finished", "stopped", "failed", "killed")
LARGEST = 2**28
"""Bytes of a state file; a trial has a few hundred."""


@dataclass
class Trial:
    """One training of a sweep.

    Attributes:
        name: Name of its run folder.
        config: The engine's suggestion: key to ``{"value": ...}``.
        state: "running", "finished", "stopped" (early, by hyperband), "failed" (it ended with an error) or "killed"
            (the sweep was interrupted; its place is given to another trial).
        seconds: How long it has run.
        exit_code: Of its process.
        values: The metric after each validation.
    """

    name: str
    config: dict[str, Any]
    state: str = "running"
    seconds: float = 0.0
    exit_code: int | None = None
    values: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameter to value."""
        return {key: entry["value"] for key, entry in self.config.items()}

    def best(self, goal: str) -> float | None:
        """The best value so far."""
        finite = [value for value in self.values if math.isfinite(value)]
        return (max if goal == "maximize" else min)(finite, default=None)


def read_state(path: Path, config: dict[str, Any]) -> list[Trial]:
    """The trials of an earlier start of a sweep.

    Args:
        path: ``sweep.json``; it need not exist.
        config: The sweep that goes on.

    Raises:
        ConfigurationError: If it is of another sweep.
        DataError: If it is damaged.
    """
    if not path.exists():
        return []
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is no state of a sweep: it has more than 256 MiB.")
    try:
        saved = json.loads(path.read_bytes().decode())
        trials = [_trial(item) for item in saved["trials"]]
        same = saved["config"] == json.loads(json.dumps(config))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}): move it away to start the sweep anew.") from error
    if not same:
        raise ConfigurationError(f"{path.parent} holds another sweep: choose another --name.")
    for trial in trials:
        if trial.state == "running":
            # The sweep was killed, and its trials with it.
            trial.state = "killed"
    return trials


def _trial(saved: dict[str, Any]) -> Trial:
    trial = Trial(**saved)
    if (
        not isinstance(trial.name, str)
        or not trial.name.replace("-", "").isalnum()
        or trial.state not in STATES
        or not isinstance(trial.seconds, (int, float))
        or not all(isinstance(value, (int, float)) for value in trial.values)
        or not all(isinstance(entry, dict) and "value" in entry for entry in trial.config.values())
    ):
        raise ValueError(trial.name)
    return trial
