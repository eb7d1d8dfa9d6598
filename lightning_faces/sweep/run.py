"""Run a sweep on this machine: each trial is a process with a log and a run folder of its own."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_faces.errors import ConfigurationError
from lightning_faces.files import write_atomic
from lightning_faces.files.history import read_values
from lightning_faces.files.owner import Owner
from lightning_faces.sweep.definition import command_line, engine, plain
from lightning_faces.sweep.results import table, write_results
from lightning_faces.sweep.trials import Trial, read_state

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""Time that a trial has to save and end, once asked to."""
PR_SET_PDEATHSIG = 1


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
        self.trials = read_state(folder / "sweep.json", config)

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

    def run(self, console: Console) -> list[Path]:
        """Run to the end, or until SIGINT or SIGTERM.

        Args:
            console: Where the table of the trials is shown, or, where that is no terminal, a line for each change.

        Returns:
            The files with the results.

        Raises:
            ConfigurationError: If another process runs the same sweep.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = Owner(self.folder, "sweep")
        # Another process may have gone on with it since.
        self.trials = read_state(self.folder / "sweep.json", self.config)
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            live = Live(self.table(), console=console, refresh_per_second=1) if console.is_terminal else nullcontext()
            with live as shown:
                self._loop(console, shown)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.save()
            owner.release()
        return write_results(self.folder, self.trials, self.metric, self.goal)

    def _loop(self, console: Console, live: Live | None) -> None:
        states: dict[str, str] = {trial.name: trial.state for trial in self.trials}
        exhausted, deadline = False, math.inf
        while True:
            self.poll()
            wanted = math.inf if self.count is None else self.count
            while not (self.interrupted or exhausted) and self.free and len(self.counted) < wanted:
                exhausted = not self.start_trial()
            if live is not None:
                live.update(self.table())
            else:
                for trial in self.trials:
                    if states.get(trial.name) != trial.state:
                        states[trial.name] = trial.state
                        console.print(Text(f"{trial.name} {trial.state}"))
            if not self.processes:
                return
            if self.interrupted:
                deadline = min(deadline, time.monotonic() + STOP_SECONDS)
                if time.monotonic() > deadline:
                    for process, _, _ in self.processes.values():
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def table(self) -> Table:
        """The trials, for people."""
        return table(f"{self.folder.name}: {self.config['method']}", self.trials, self.metric, self.goal)
