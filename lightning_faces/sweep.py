"""``lightning-faces sweep``: run a W&B sweep file on this machine, without an account.

The file is the one that ``wandb sweep`` takes, and W&B's own engine (the package ``sweeps``) suggests the trials. Each
trial is a process with a log and a run folder of its own.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lightning_faces.errors import ConfigurationError, LightningFacesError
from lightning_faces.files import write_atomic

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""Time that a trial has to save and end, once asked to."""
PR_SET_PDEATHSIG = 1
NO_ENGINE = "The sweep engine is not installed"
INSTALL_ENGINE = "pip install 'lightning-faces[sweep]'"


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
        ConfigurationError: If it is absent, no YAML, or does not follow W&B's schema.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"Cannot read the sweep file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} is no sweep: it must be a mapping with method, metric and parameters.")
    violations = engine().schema_violations_from_proposed_config(config)
    if violations:
        raise ConfigurationError(f"{path} is no sweep of W&B's schema: {'; '.join(violations)}.")
    for key in ("metric", "command"):
        if key not in config:
            raise ConfigurationError(f"{path} has no {key}: a sweep on this machine needs one.")
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


def read_values(path: Path, metric: str) -> list[float]:
    """The values of a metric in a ``metrics.csv``, oldest first."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    if not (query := shutil.which("nvidia-smi")):
        return []
    shown = subprocess.run([query, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return shown.stdout.split() if shown.returncode == 0 else []


def _end_with_parent() -> None:
    # Linux: the trial gets SIGTERM, and saves, when the sweep dies without saying so.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Sweep:
    """A sweep in a folder, which holds ``sweep.json``, ``trial-NNNN.log`` and a run folder per trial.

    Args:
        config: The sweep.
        folder: Where; what an interrupted sweep left there is continued.
        count: Trials in total, those of earlier starts included; None runs a grid to its end.
        parallel: Trials at a time.
        devices_per_trial: Devices of each trial; more than one trains by DDP.

    Raises:
        ConfigurationError: If the folder holds another sweep, or the devices do not suffice.
    """

    def __init__(
        self, config: dict[str, Any], folder: Path, count: int | None, parallel: int, devices_per_trial: int
    ) -> None:
        self.config, self.folder, self.count, self.parallel = config, folder, count, parallel
        self.devices_per_trial = devices_per_trial
        self.engine = engine()
        self.metric, self.goal = config["metric"]["name"], config["metric"].get("goal", "minimize")
        if count is None and config["method"] != "grid":
            raise ConfigurationError(f"A {config['method']} sweep has no end: add --count.")
        gpus = visible_gpus()
        if gpus and parallel * devices_per_trial > len(gpus):
            raise ConfigurationError(
                f"{parallel} trials of {devices_per_trial} devices need {parallel * devices_per_trial} GPUs, but "
                f"{len(gpus)} are visible: lower --parallel or --devices-per-trial."
            )
        groups = [gpus[i * devices_per_trial : (i + 1) * devices_per_trial] for i in range(parallel)]
        self.free: list[list[str]] = groups
        self.processes: dict[str, tuple[subprocess.Popen[bytes], list[str], float]] = {}
        self.interrupted = False
        self.trials = self._earlier_trials()

    def _earlier_trials(self) -> list[Trial]:
        path = self.folder / "sweep.json"
        if not path.exists():
            return []
        saved = json.loads(path.read_text())
        if saved["config"] != json.loads(json.dumps(self.config)):
            raise ConfigurationError(f"{self.folder} holds another sweep: choose another --name.")
        trials = [Trial(**trial) for trial in saved["trials"]]
        for trial in trials:
            if trial.state == "running":
                # The sweep was killed, and its trials with it.
                trial.state = "killed"
        return trials

    def save(self) -> None:
        """Write ``sweep.json``."""
        content = {"config": self.config, "trials": [asdict(trial) for trial in self.trials]}
        write_atomic(self.folder / "sweep.json", json.dumps(content, indent=1).encode())

    @property
    def counted(self) -> list[Trial]:
        """The trials that need not be repeated."""
        return [trial for trial in self.trials if trial.state != "killed"]

    def engine_runs(self) -> list[Any]:
        """The trials as the engine knows them."""
        runs = []
        for trial in self.counted:
            best = trial.best(self.goal)
            runs.append(
                self.engine.SweepRun(
                    name=trial.name,
                    state={"stopped": "finished"}.get(trial.state, trial.state),
                    config=trial.config,
                    summary_metrics={} if best is None else {self.metric: best},
                    history=[{self.metric: value} for value in trial.values],
                    stopped=trial.state == "stopped",
                )
            )
        return runs

    def start_trial(self) -> bool:
        """Start the next trial; False if there is none."""
        suggestion = self.engine.next_run(self.config, self.engine_runs())
        if suggestion is None:
            return False
        config = {key: {**entry, "value": plain(entry["value"])} for key, entry in suggestion.config.items()}
        trial = Trial(f"trial-{len(self.trials) + 1:04d}", config)
        devices = self.free.pop(0)
        words = command_line(self.config, trial.parameters)
        words += [f"--runs_dir={self.folder.parent}", f"--experiment={self.folder.name}", f"--name={trial.name}"]
        if self.devices_per_trial > 1:
            words += [f"--trainer.devices={self.devices_per_trial}", "--trainer.strategy=ddp"]
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.parallel)), **os.environ}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        with (self.folder / f"{trial.name}.log").open("wb") as log:
            log.write(f"{' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.trials.append(trial)
        self.processes[trial.name] = (process, devices, time.monotonic())
        self.save()
        return True

    def poll(self) -> None:
        """Look after the running trials."""
        for trial in self.trials:
            if trial.name not in self.processes:
                continue
            process, devices, began = self.processes[trial.name]
            trial.exit_code = process.poll()
            trial.seconds = time.monotonic() - began
            trial.values = read_values(self.folder / trial.name / "metrics.csv", self.metric)
            if trial.exit_code is None:
                continue
            if trial.state == "running":
                killed = self.interrupted and trial.exit_code != 0
                no_value = trial.exit_code == 0 and trial.best(self.goal) is None
                trial.state = "killed" if killed else "failed" if trial.exit_code or no_value else "finished"
            del self.processes[trial.name]
            self.free.append(devices)
            self.save()
        if "early_terminate" in self.config and self.processes:
            for run in self.engine.stop_runs(self.config, self.engine_runs()):
                (trial,) = (trial for trial in self.trials if trial.name == run.name)
                if trial.state == "running":
                    trial.state = "stopped"
                    self.processes[trial.name][0].terminate()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Ask all trials to save and end, and start no more."""
        self.interrupted = True
        for process, _, _ in self.processes.values():
            process.terminate()

    def run(self, console: Console) -> None:
        """Run to the end, or until SIGINT or SIGTERM."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        deadline = math.inf
        shown: dict[str, str] = {}
        try:
            with Live(self.table(), console=console, refresh_per_second=1, auto_refresh=console.is_terminal) as live:
                exhausted = False
                while True:
                    self.poll()
                    wanted = math.inf if self.count is None else self.count
                    while not (self.interrupted or exhausted) and self.free and len(self.counted) < wanted:
                        exhausted = not self.start_trial()
                    live.update(self.table())
                    if not console.is_terminal:
                        for trial in self.trials:
                            if (
                                shown.get(trial.name, trial.state if trial.name not in self.processes else "")
                                != trial.state
                            ):
                                console.print(f"{trial.name} {trial.state}", highlight=False)
                            shown[trial.name] = trial.state
                    if not self.processes:
                        break
                    if self.interrupted:
                        deadline = min(deadline, time.monotonic() + STOP_SECONDS)
                        if time.monotonic() > deadline:
                            for process, _, _ in self.processes.values():
                                os.killpg(process.pid, signal.SIGKILL)
                    time.sleep(POLL_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.save()
        self.write_results()

    def ranked(self) -> list[Trial]:
        """All trials, the best first and those without a value last."""
        sign = -1 if self.goal == "maximize" else 1

        def key(trial: Trial) -> tuple[bool, float]:
            best = trial.best(self.goal)
            return best is None, 0.0 if best is None else sign * best

        return sorted(self.trials, key=key)

    def table(self) -> Table:
        """The trials, for people."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))
        table = Table(title=f"{self.folder.name}: {self.config['method']} over {len(names)} parameters")
        for heading in ("trial", "state", "time", self.metric, *(name.rsplit(".", 1)[-1] for name in names)):
            table.add_column(heading)
        for trial in self.ranked():
            best = trial.best(self.goal)
            values = [_short(trial.parameters.get(name)) for name in names]
            minutes = f"{int(trial.seconds) // 60}:{int(trial.seconds) % 60:02d}"
            table.add_row(trial.name, trial.state, minutes, "" if best is None else f"{best:.4g}", *values)
        return table

    def write_results(self) -> None:
        """Write ``results.csv`` and ``parallel.png``."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["trial", "state", "seconds", self.metric, *names])
        for trial in self.ranked():
            best = trial.best(self.goal)
            values = [argument(trial.parameters[name]) if name in trial.parameters else "" for name in names]
            writer.writerow([trial.name, trial.state, f"{trial.seconds:.1f}", "" if best is None else best, *values])
        write_atomic(self.folder / "results.csv", buffer.getvalue().encode())
        scored = [trial for trial in self.ranked() if trial.best(self.goal) is not None]
        if scored:
            rows = [{**trial.parameters, self.metric: trial.best(self.goal)} for trial in scored]
            picture = io.BytesIO()
            parallel_coordinates(rows, [*names, self.metric], self.goal).save(picture, "PNG")
            write_atomic(self.folder / "parallel.png", picture.getvalue())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _positions(values: list[Any]) -> tuple[list[float], str, str]:
    """Heights in [0, 1] on an axis and the labels of its two ends; logarithmic where values span 20 times or more."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        scale = math.log if low > 0 and high / low >= 20 else float
        span = scale(high) - scale(low)
        heights = [(scale(v) - scale(low)) / span if span else 0.5 for v in numbers]
        return heights, _short(float(low)), _short(float(high))
    kinds = sorted({argument(v) for v in values})
    heights = [kinds.index(argument(v)) / max(1, len(kinds) - 1) if len(kinds) > 1 else 0.5 for v in values]
    return heights, kinds[0], kinds[-1]


def parallel_coordinates(rows: Sequence[dict[str, Any]], axes: Sequence[str], goal: str) -> Image.Image:
    """Draw each row as a line over one axis per parameter, the better the brighter.

    Args:
        rows: Parameter to value, the metric included.
        axes: Names of the axes, the metric last.
        goal: "minimize" or "maximize".

    Returns:
        An RGB image.
    """
    step, top, height, left = 170, 50, 320, 90
    image = Image.new("RGB", (2 * left + step * (len(axes) - 1), top + height + 40), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    heights: dict[str, list[float]] = {}
    for number, axis in enumerate(axes):
        heights[axis], low, high = _positions([row.get(axis, "") for row in rows])
        x = left + step * number
        draw.line((x, top, x, top + height), fill=(120, 120, 120))
        draw.text((x, top - 34), axis.rsplit(".", 1)[-1][:26], fill=(0, 0, 0), anchor="ma")
        draw.text((x, top - 16), high[:26], fill=(90, 90, 90), anchor="ma")
        draw.text((x, top + height + 6), low[:26], fill=(90, 90, 90), anchor="ma")
    quality = [1 - h if goal == "minimize" else h for h in heights[axes[-1]]]
    for row in sorted(range(len(rows)), key=lambda i: quality[i]):
        good = quality[row]
        colour = (int(205 - 175 * good), int(210 - 100 * good), int(225 - 45 * good))
        points = [(left + step * n, top + height * (1 - heights[axis][row])) for n, axis in enumerate(axes)]
        draw.line(points, fill=colour, width=1 + round(2 * good))
    return image


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-faces sweep``.

    Args:
        args: The command line without ``sweep``; None reads ``sys.argv``.

    Raises:
        SystemExit: With 2 for bad input, 1 if no trial finished, 130 if the sweep was interrupted.
    """
    parser = argparse.ArgumentParser(prog="lightning-faces sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="a W&B sweep file, e.g. sweeps/zhao2016.yaml")
    parser.add_argument("--count", type=int, help="trials in total, those of an interrupted start included")
    parser.add_argument("--parallel", type=int, default=1, help="trials at a time (default: 1)")
    parser.add_argument("--devices-per-trial", type=int, default=1, help="devices of a trial (default: 1)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--name", help="folder of the sweep in it (default: sweep-<name of the file>)")
    options = parser.parse_args(args)
    console = Console()
    try:
        for name in ("count", "parallel", "devices_per_trial"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        config = read_sweep(options.file)
        folder = options.runs_dir / (options.name or f"sweep-{options.file.stem}")
        sweep = Sweep(config, folder, options.count, options.parallel, options.devices_per_trial)
        sweep.run(console)
    except LightningFacesError as error:
        print(f"lightning-faces: {error}", file=sys.stderr)
        sys.exit(2)
    if not console.is_terminal:
        console.print(sweep.table())
    console.print(f"Results: {folder / 'results.csv'}, {folder / 'parallel.png'}", highlight=False, soft_wrap=True)
    if sweep.interrupted:
        sys.exit(130)
    if not any(trial.state in ("finished", "stopped") for trial in sweep.trials):
        sys.exit(1)


if __name__ == "__main__":
    main()
