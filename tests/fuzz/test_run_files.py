"""Damaged and hostile files of runs: each is read, or named in one sentence; nothing hangs, grows or ends the process.

Run as a program with a folder, a first and a last seed, it tries the inputs of these seeds and prints what went wrong.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from callbacks import MetricsCSV
from lightning_faces.commands.checks import differences
from lightning_faces.commands.configurations import check_arguments
from lightning_faces.commands.parse_only import logged_by
from lightning_faces.commands.run_folder import RunFolder
from lightning_faces.errors import LightningFacesError
from lightning_faces.files.history import read_values
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.sweep.definition import read_sweep
from lightning_faces.sweep.trials import read_state
from tests.callbacks.training import data, method, trainer
from tests.fuzz.test_records import flipped, with_other_values

INPUTS = 5000
PARTS = 2
SLOWEST, MOST_MEMORY = 5.0, 10**9
SWEEP = {
    "method": "bayes",
    "metric": {"name": "val/nme", "goal": "minimize"},
    "command": ["lightning-faces", "fit", "--config", "x.yaml", "${args}"],
    "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 3},
    "parameters": {
        "model.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "model.kind": {"values": ["a", "b"]},
        "model.size": {"distribution": "q_uniform", "min": 8, "max": 64, "q": 8},
        "nested": {"parameters": {"x": {"value": 1}}},
    },
}
STATE = {
    "config": SWEEP,
    "trials": [
        {
            "name": f"trial-000{n}", "config": {"model.lr": {"value": 0.01}}, "state": "finished", "seconds": 1.5,
            "exit_code": 0, "values": [0.5, 0.25],
        }
        for n in range(1, 5)
    ],
}  # fmt: skip
CONFIG = {
    "seed_everything": 1,
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "callbacks": [{"class_path": "LearningRateMonitor"}]},
    "model": {
        "class_path": "Zhao2016",
        "init_args": {
            "image_size": 32,
            "hidden": 8,
            "channels": [2, 2, 2, 2],
            "stage": "joint",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    },
    "data": {"class_path": "NoiseFaces", "init_args": {"image_size": 32, "batch_size": 4}},
    "experiment": "e",
}
HISTORY = "step,epoch,train/loss,val/nme\n" + "".join(
    f"{n},{n // 4},{1 / (n + 1):.6g},\n{n},0,,0.5\n" for n in range(20)
)


class Files:
    """Good files to start from, and how each kind is damaged and read.

    Args:
        folder: An empty folder, which becomes the current one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        fit = trainer(folder / "run", [], max_epochs=1)
        fit.fit(method(), data())
        fit.save_checkpoint("good.ckpt")
        self.checkpoint = Path("good.ckpt").read_bytes()
        self.content = torch.load("good.ckpt", weights_only=True)
        self.kinds: list[tuple[int, Callable[[random.Random], None]]] = [
            (30, self.damaged_checkpoint), (20, self.other_checkpoint), (6, self.configuration), (14, self.sweep),
            (10, self.state), (12, self.history), (8, self.environment),
        ]  # fmt: skip

    def damaged_checkpoint(self, rng: random.Random) -> None:
        """Bytes of the file, or of one part of it in an archive that is whole."""
        content = flipped(self.checkpoint, rng) if rng.random() < 0.3 else repacked(self.checkpoint, rng)
        Path("x.ckpt").write_bytes(content)
        load_method("x.ckpt")

    def other_checkpoint(self, rng: random.Random) -> None:
        """Other values in a whole file."""
        content = dict(self.content)
        key = rng.choice(
            ["hyper_parameters", "hyper_parameters", "hyper_parameters", "state_dict", "training", "loops"]
        )
        content[key] = with_other_values(content[key], rng) if key != "state_dict" else other_weights(content[key], rng)
        torch.save(content, "x.ckpt")
        load_method("x.ckpt")

    def configuration(self, rng: random.Random) -> None:
        """A configuration that is parsed with its classes."""
        Path("x.yaml").write_bytes(damaged_yaml(CONFIG, rng))
        arguments = ["--config", "x.yaml"]
        check_arguments(arguments)
        logged_by(["fit", *arguments, "--name=n"])

    def sweep(self, rng: random.Random) -> None:
        """A sweep file."""
        Path("s.yaml").write_bytes(damaged_yaml(SWEEP, rng))
        read_sweep(Path("s.yaml"))

    def state(self, rng: random.Random) -> None:
        """The state of an interrupted sweep."""
        text = json.dumps(STATE if rng.random() < 0.5 else with_other_values(STATE, rng)).encode("utf-8", "replace")
        Path("sweep.json").write_bytes(flipped(text, rng) if rng.random() < 0.7 else text)
        for trial in read_state(Path("sweep.json"), SWEEP):
            trial.best("minimize")

    def history(self, rng: random.Random) -> None:
        """The history that a training goes on with."""
        Path("metrics.csv").write_bytes(flipped(HISTORY.encode(), rng))
        read_values(Path("metrics.csv"), "val/nme")
        MetricsCSV(".").log_metrics({"val/nme": 0.25, "epoch": 6}, step=10)
        assert read_values(Path("metrics.csv"), "val/nme")[-1] == 0.25

    def environment(self, rng: random.Random) -> None:
        """What a continued run reads of the one before."""
        Path("r").mkdir(exist_ok=True)
        Path("r/environment.yaml").write_bytes(damaged_yaml({"torch": "2.11", "wandb_id": "n-1234"}, rng))
        Path("r/config.yaml").write_bytes(damaged_yaml(CONFIG, rng))
        assert RunFolder(Path("r")).wandb_id()
        differences(Path("r"), CONFIG)


def repacked(whole: bytes, rng: random.Random) -> bytes:
    """A whole archive of which one part was damaged before it was packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(buffer, "w") as made:
        names = archive.namelist()
        chosen = "archive/data.pkl" if rng.random() < 0.8 else rng.choice(names)
        for name in names:
            part = archive.read(name)
            made.writestr(name, flipped(part, rng) if name == chosen else part)
    return buffer.getvalue()


def other_weights(weights: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A state_dict in which one tensor is another or is not there."""
    name = rng.choice(sorted(weights))
    other = rng.choice(
        [None, 3, torch.zeros(1).expand(10**9), torch.zeros(0), torch.tensor(True), weights[name].half(), [1.0], "x"]
    )
    return {key: value for key, value in weights.items() if key != name} | ({} if other is None else {name: other})


def damaged_yaml(content: Any, rng: random.Random) -> bytes:
    """YAML with other values, other bytes, or both."""
    value = with_other_values(content, rng) if rng.random() < 0.6 else content
    text = yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")
    return flipped(text, rng) if rng.random() < 0.6 else text


def run(folder: Path, first: int, last: int) -> dict[str, Any]:
    """Try the inputs of some seeds; gives how many there were of each kind and what went wrong."""
    warnings.simplefilter("ignore")
    files = Files(folder)
    found: dict[str, Any] = {"inputs": 0, "named": 0, "unnamed": [], "slow": [], "memory": 0}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, last):
        rng = random.Random(seed)
        weights, kinds = zip(*files.kinds)
        (kind,) = rng.choices(kinds, weights)
        began = time.process_time()
        try:
            kind(rng)
        except LightningFacesError as error:
            found["named"] += 1
            if "\n" in str(error) or not str(error).strip():
                found["unnamed"].append(f"{seed} {kind.__name__}: several lines")
        except (Exception, SystemExit) as error:
            found["unnamed"].append(f"{seed} {kind.__name__}: {type(error).__name__}: {error}"[:300])
        if time.process_time() - began > SLOWEST:
            found["slow"].append(f"{seed} {kind.__name__}")
        found["inputs"] += 1
    found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_file_of_a_run_goes_unnamed(part: int, tmp_path: Path) -> None:
    step = INPUTS // PARTS
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.test_run_files",
        str(tmp_path / "x"),
        str(part * step),
        str((part + 1) * step),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["inputs"] == step
    assert found["unnamed"] == []
    assert found["slow"] == []
    assert found["memory"] < MOST_MEMORY
    assert found["named"] > step // 4


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
