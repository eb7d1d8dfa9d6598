"""The file of a sweep: W&B's schema, its engine, and the command line of a trial."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_faces.errors import ConfigurationError
from lightning_faces.files.yaml_files import read_yaml

NO_ENGINE = "The sweep engine is not installed"
INSTALL_ENGINE = "pip install 'lightning-faces[sweep]'"
ENGINE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
"""What W&B's engine raises for a sweep that it does not understand."""


def engine() -> ModuleType:
    """W&B's sweep engine.

    Raises:
        ConfigurationError: If the extra ``sweep`` is not installed.
    """
    try:
        with warnings.catch_warnings():
            # A key of pydantic 1 in the engine's own models, without consequences.
            warnings.filterwarnings("ignore", message="Valid config keys have changed in V2")
            import sweeps
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{NO_ENGINE} ({error.name} is missing): {INSTALL_ENGINE}.") from error
    # Without the package, the folder of sweep files is imported where a command runs beside it.
    if not hasattr(sweeps, "next_run"):
        raise ConfigurationError(f"{NO_ENGINE}: {INSTALL_ENGINE}.")
    return sweeps  # type: ignore[no-any-return]


def read_sweep(path: Path) -> dict[str, Any]:
    """Read a sweep file.

    Raises:
        ConfigurationError: If it is absent, no YAML, or no sweep that W&B's engine takes.
    """
    config = read_yaml(path, "sweep")
    try:
        violations = engine().schema_violations_from_proposed_config(config)
    except ENGINE_ERRORS as error:
        violations = [str(error)]
    if violations:
        reason = " ".join("; ".join(map(str, violations)).split())[:500]
        raise ConfigurationError(f"{path} is no sweep of W&B's schema: {reason}.")
    for key in ("metric", "command"):
        if key not in config:
            raise ConfigurationError(f"{path} has no {key}: a sweep on this machine needs one.")
    metric, command = config["metric"], config["command"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise ConfigurationError(f"{path} has a metric without a name: write metric: {{name: val/nme}}.")
    if not isinstance(command, list) or not command or not all(isinstance(part, (str, int, float)) for part in command):
        raise ConfigurationError(f"{path} has a command that is no list of words: write one word a line.")
    command_line(config, {})
    try:
        first = engine().next_run(config, [])
        if first is None:
            raise ConfigurationError(f"{path} has nothing to try: its parameters have no values.")
    except ENGINE_ERRORS as error:
        if isinstance(error, ConfigurationError):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigurationError(f"{path} has parameters that W&B's engine does not take: {reason}.") from error
    return config


def plain(value: Any) -> Any:
    """A suggested value as JSON has it; the engine suggests NumPy scalars."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") else value


def argument(value: Any) -> str:
    """A value as the command line takes it; a nested parameter is a mapping, as W&B's agent passes it."""
    return value if isinstance(value, str) else json.dumps(value)


def command_line(config: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The command of a trial.

    Args:
        config: The sweep; its ``command`` may hold ``${env}``, ``${interpreter}``, ``${program}``, ``${args}`` and
            ``${args_no_hyphens}``.
        parameters: Parameter to value.

    Raises:
        ConfigurationError: For another macro.
    """
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [str(config.get("program", ""))],
        "${args}": [f"--{key}={argument(value)}" for key, value in parameters.items()],
        "${args_no_hyphens}": [f"{key}={argument(value)}" for key, value in parameters.items()],
    }
    words: list[str] = []
    for part in map(str, config["command"]):
        if part.startswith("${") and part not in macros:
            raise ConfigurationError(f"The command of the sweep holds {part}: only {', '.join(macros)} are known here.")
        words += macros.get(part, [part])
    if words[0] == "lightning-faces":
        # The environment need not be activated.
        words[:1] = [sys.executable, "-m", "lightning_faces"]
    return words
