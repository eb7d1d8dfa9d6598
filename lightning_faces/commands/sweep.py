"""``lightning-faces sweep``: run a W&B sweep file on this machine, without an account.

The file is the one that ``wandb sweep`` takes, and W&B's own engine (the package ``sweeps``) suggests the trials. Each
trial is a process with a log and a run folder of its own. To try a sweep first, make it small: --count 2, and in the
file's command --trainer.max_epochs=1 --trainer.limit_train_batches=10 --trainer.limit_val_batches=2.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lightning_faces.errors import ConfigurationError
from lightning_faces.sweep import Sweep, command_line, read_sweep

FREE = ("train/", "speed/", "norm/", "memory/", "lr")
"""Beginnings of metrics that a training logs beside those of its validations."""
MOST_CHECKS = 12


def values_of(parameter: dict[str, Any]) -> list[Any]:
    """Values that stand for all that a parameter may have; none for one that is nested."""
    if "values" in parameter:
        return list(parameter["values"])
    return [parameter[key] for key in ("value", "min", "max") if key in parameter]


def check_trials(config: dict[str, Any], path: Path) -> None:
    """See that the trials of a sweep would start and log its metric, where they are this program's own trainings.

    Args:
        config: The sweep.
        path: Its file, for messages.

    Raises:
        ConfigurationError: If a key, a value or the metric is wrong.
    """
    options = {key: values_of(parameter) for key, parameter in config["parameters"].items()}
    options = {key: values for key, values in options.items() if values}
    for number in range(min(MOST_CHECKS, max(map(len, options.values()), default=1))):
        chosen = {key: values[number % len(values)] for key, values in options.items()}
        words = command_line(config, chosen)
        if words[1:4] != ["-m", "lightning_faces", "fit"]:
            return
        # Importing what trains takes seconds, which a sweep that is wrong in itself does not cost.
        from lightning_faces.commands.configurations import check_arguments
        from lightning_faces.commands.parse_only import logged_by

        try:
            check_arguments(words[4:])
            logged = logged_by([*words[3:], "--name=check"])
        except ConfigurationError as error:
            raise ConfigurationError(f"A trial of {path} with {chosen} would fail: {error}") from error
        metric = config["metric"]["name"]
        if metric not in logged and not metric.startswith(FREE):
            near = difflib.get_close_matches(metric, logged, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"{path} has the metric {metric!r}, which its trials do not log: {hint}"
                f"They log {', '.join(sorted(logged))}."
            )


def main(arguments: Sequence[str]) -> int | None:
    """Run ``lightning-faces sweep``.

    Args:
        arguments: What follows ``sweep`` on the command line.

    Returns:
        1 if no trial finished, 130 if the sweep was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-faces sweep",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a W&B sweep file, e.g. sweeps/zhao2016.yaml")
    parser.add_argument("--count", type=int, help="trials in total, those of an interrupted start included")
    parser.add_argument("--parallel", type=int, default=1, help="trials at a time (default: 1)")
    parser.add_argument("--devices-per-trial", type=int, default=1, help="devices of a trial (default: 1)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--name", help="folder of the sweep in it (default: sweep-<name of the file>)")
    options = parser.parse_args(arguments)
    for name in ("count", "parallel", "devices_per_trial"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    console = Console()
    config = read_sweep(options.file)
    folder = options.runs_dir / (options.name or f"sweep-{options.file.stem}")
    sweep = Sweep(config, folder, options.count, options.parallel, options.devices_per_trial)
    check_trials(config, options.file)
    written = sweep.run(console)
    if not console.is_terminal:
        console.print(sweep.table())
    console.print(Text(f"Results: {', '.join(map(str, written))}"), soft_wrap=True)
    if sweep.interrupted:
        return 130
    return None if any(trial.state in ("finished", "stopped") for trial in sweep.trials) else 1
