from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_faces.__main__ import main as command
from lightning_faces.commands.parse_only import ParseOnly
from lightning_faces.evaluation.scores import logged_names
from lightning_faces.files.history import read_values
from lightning_faces.sweep.definition import command_line
from lightning_faces.sweep.results import parallel_coordinates
from tests.wandb_server import StandIn

ROOT = Path(__file__).resolve().parent.parent
FAKE = str(ROOT / "tests" / "fake_trial.py")
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
needs_engine = pytest.mark.skipif(
    # The folder of sweep files is found under this name too, as a namespace without a file.
    getattr(importlib.util.find_spec("sweeps"), "origin", None) is None,
    reason="the extra `sweep` is not installed",
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("lightning_faces.sweep.run.POLL_SECONDS", 0.02)


def main(args: list[str]) -> None:
    command(["sweep", *args])


def write(path: str = "s.yaml", **changes: Any) -> str:
    config = {
        "method": "grid",
        "metric": {"name": "val/nme", "goal": "minimize"},
        "command": ["${interpreter}", FAKE, "${args}"],
        "parameters": {"model.x": {"values": [0.1, 0.3, 0.9]}},
        **changes,
    }
    Path(path).write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def results(folder: str = "runs/sweep-s") -> list[dict[str, str]]:
    with Path(folder, "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def every_value(parameter: dict[str, Any]) -> list[Any]:
    if "values" in parameter:
        return list(parameter["values"])
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_key_and_value_of_the_sweeps_fits_the_command_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(path.read_text())
    values = {key: every_value(parameter) for key, parameter in config["parameters"].items()}
    for number in range(max(map(len, values.values()))):
        chosen = {key: options[number % len(options)] for key, options in values.items()}
        words = command_line(config, chosen)
        assert words[1:4] == ["-m", "lightning_faces", "fit"]
        cli = ParseOnly(words[3:])
        resolved = cli.options.as_dict()
        for key, value in chosen.items():
            found: Any = resolved
            for part in key.split("."):
                found = found[part]
            assert (list(found) if isinstance(found, tuple) else found) == value, key
    # What the sweep and its early termination look at is logged by validation, and steers the checkpoints too.
    logged = {"val/loss", *(f"val/{name}" for name in logged_names("val"))}
    assert config["metric"]["name"] in logged


def test_command_line_fills_in_the_macros() -> None:
    parameters = {"lr": 0.1, "flag": True, "none": None, "list": [1.0, 2.0], "name": "a b", "nested": {"k": 1}}
    words = command_line(
        {"program": "p.py", "command": ["${env}", "${interpreter}", "${program}", "${args}"]}, parameters
    )
    assert words[:3] == ["/usr/bin/env", sys.executable, "p.py"]
    assert words[3:] == [
        "--lr=0.1",
        "--flag=true",
        "--none=null",
        "--list=[1.0, 2.0]",
        "--name=a b",
        '--nested={"k": 1}',
    ]
    assert command_line({"command": ["lightning-faces", "${args_no_hyphens}"]}, {"a": 1})[1:] == [
        "-m", "lightning_faces", "a=1",
    ]  # fmt: skip


def test_values_are_read_from_a_history_with_gaps(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,val/nme,train/loss\n0,,1\n1,0.5,\n2,,1\n3,0.25,\n")
    assert read_values(tmp_path / "m.csv", "val/nme") == [0.5, 0.25]
    assert read_values(tmp_path / "absent.csv", "val/nme") == []


def test_parallel_coordinates_put_values_where_they_belong() -> None:
    rows = [{"lr": 0.001, "k": "a", "m": 1.0}, {"lr": 0.01, "k": "b", "m": 3.0}, {"lr": 0.1, "k": "a", "m": 2.0}]
    picture = parallel_coordinates(rows, ["lr", "k", "m"], "minimize")
    assert picture.size == (180 + 340, 410)
    # lr spans two decades, so 0.01 is half-way; the worst row is the palest, at the top of the last axis.
    assert picture.getpixel((90, 50 + 160)) == (205, 210, 225)
    assert picture.getpixel((90 + 340, 50)) == (205, 210, 225)
    assert picture.getpixel((90, 50 + 320)) == (30, 110, 180)


def test_without_the_engine_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sweeps", ModuleType("sweeps"))
    with pytest.raises(SystemExit) as error:
        main([write()])
    assert error.value.code == 2
    assert "The sweep engine is not installed: pip install 'lightning-faces[sweep]'." in capsys.readouterr().err


@needs_engine
def test_a_grid_runs_to_its_end_and_is_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    main([write(), "--parallel", "2"])
    rows = results()
    assert [row["model.x"] for row in rows] == ["0.3", "0.1", "0.9"]
    assert [float(row["val/nme"]) for row in rows] == pytest.approx([1 / 3, 0.04 + 1 / 3, 0.36 + 1 / 3])
    assert {row["state"] for row in rows} == {"finished"}
    folder = Path("runs/sweep-s")
    assert FAKE in (folder / "trial-0001.log").read_text()
    with Image.open(folder / "parallel.png") as picture:
        assert picture.size[1] == 410
    assert "trial-0002 finished" in capsys.readouterr().out


@needs_engine
def test_failed_trials_are_marked_and_bayes_improves() -> None:
    parameters = {
        "model.x": {"distribution": "uniform", "min": 0.0, "max": 1.0},
        "model.kind": {"values": ["fine", "fine", "fine", "broken"]},
    }
    main([write(method="bayes", parameters=parameters), "--count", "10", "--parallel", "2"])
    rows = results()
    assert len(rows) == 10
    for row in rows:
        assert row["state"] == ("failed" if row["model.kind"] == "broken" else "finished")
        assert bool(row["val/nme"]) == (row["state"] == "finished")
    assert float(rows[0]["val/nme"]) < 1 / 3 + 0.05


@needs_engine
def test_hyperband_stops_the_bad_ones() -> None:
    parameters = {"model.x": {"values": [0.3, 0.31, 5.0, 6.0]}, "epochs": {"value": 40}, "seconds": {"value": 0.1}}
    early = {"type": "hyperband", "min_iter": 3, "eta": 2}
    main([write(parameters=parameters, early_terminate=early), "--parallel", "4"])
    states = {row["model.x"]: row["state"] for row in results()}
    assert states["0.3"] == "finished"
    assert states["6.0"] == "stopped"
    assert float({row["model.x"]: row["seconds"] for row in results()}["6.0"]) < 3.5


@needs_engine
def test_gpus_are_handed_out_one_group_per_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    drawn = {"model.x": {"distribution": "uniform", "min": 0.0, "max": 1.0}, "seconds": {"value": 0.1}}
    path = write(method="random", parameters=drawn)
    main([path, "--count", "4", "--parallel", "2", "--devices-per-trial", "2"])
    assert len({row["model.x"] for row in results()}) == 4
    used = [path.read_text() for path in sorted(Path("runs/sweep-s").glob("trial-*/environment.txt"))]
    assert sorted(set(used)) == ["4,5", "6,7"]
    assert "--trainer.devices=2 --trainer.strategy=ddp" in Path("runs/sweep-s/trial-0001.log").read_text()


@needs_engine
def test_a_killed_sweep_goes_on_where_it_was() -> None:
    grid = {"model.x": {"values": [0.1, 0.2, 0.3, 0.4]}, "epochs": {"value": 3}, "seconds": {"value": 0.3}}
    path = write(parameters=grid)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    sweep = subprocess.Popen(
        [sys.executable, "-m", "lightning_faces", "sweep", path, "--parallel", "1"], env=environment
    )
    state = Path("runs/sweep-s/sweep.json")

    def trials() -> list[dict[str, Any]]:
        return list(json.loads(state.read_text())["trials"]) if state.exists() else []

    deadline = time.monotonic() + 300
    while len(trials()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    assert [trial["state"] for trial in trials()] == ["finished", "running"]
    finished = Path("runs/sweep-s/trial-0001/metrics.csv").stat().st_mtime_ns
    main([path])
    rows = {row["trial"]: row for row in results()}
    assert [rows[f"trial-000{n}"]["state"] for n in range(1, 6)] == ["finished", "killed", *["finished"] * 3]
    # The dead trial's place is taken: every combination was tried once to its end.
    done = sorted(row["model.x"] for row in rows.values() if row["state"] == "finished")
    assert done == ["0.1", "0.2", "0.3", "0.4"]
    assert Path("runs/sweep-s/trial-0001/metrics.csv").stat().st_mtime_ns == finished


@needs_engine
@pytest.mark.parametrize(
    ("changes", "args", "said"),
    [
        ({"method": "guess"}, [], "is no sweep of W&B's schema"),
        ({"command": None}, [], "has no command"),
        ({"method": "random"}, [], "A random sweep has no end: add --count."),
        ({}, ["--parallel", "0"], "--parallel is 0; it must be at least 1."),
        ({"command": ["${args_json_file}"]}, [], "only ${env}, ${interpreter}"),
    ],
)
def test_bad_input_gets_one_sentence(
    changes: dict[str, Any], args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main([write(**changes), *args])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@needs_engine
def test_another_sweep_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    main([write()])
    with pytest.raises(SystemExit):
        main([write(parameters={"model.x": {"values": [0.5]}})])
    assert "holds another sweep: choose another --name" in capsys.readouterr().err


FIT = ["lightning-faces", "fit", "--model=Zhao2016", "--model.image_size=32", "--data=SyntheticFaces", "${args}"]
HIDDEN = {"model.init_args.hidden": {"values": [8, 16]}}


@needs_engine
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"metric": {"name": "val/nmee"}, "parameters": HIDDEN},
            "the metric 'val/nmee', which its trials do not log: did you mean val/nme?",
        ),
        (
            {"parameters": {"model.init_args.hiden": {"value": 8}}},
            "'hiden' is not an option here: did you mean hidden?",
        ),
        ({"parameters": {"model.init_args.hidden": {"values": [8, "x"]}}}, "hidden"),
        ({"parameters": {"model.optimizer": {"value": "os.system"}}}, "os.system is no Optimizer"),
        ({"metric": {"goal": "minimize"}}, "s.yaml is no sweep"),
        ({"command": "fit"}, "s.yaml is no sweep"),
        ({"parameters": {"x": {"distribution": "log_uniform_values", "min": -1, "max": 1}}}, "s.yaml"),
        ({"parameters": {"x": {"values": []}}}, "s.yaml"),
    ],
)
def test_what_every_trial_would_fail_at_is_refused_before_the_first(
    changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main([write(**{"command": FIT, **changes}), "--count", "2"])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


@needs_engine
def test_a_damaged_state_is_named_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    main([write()])
    state = Path("runs/sweep-s/sweep.json")
    whole = state.read_bytes()
    capsys.readouterr()
    other = whole.replace(b'"finished"', b'"done"'), whole.replace(b"trial-0", b"../0")
    for content in (whole[:50], b"", b"\xff\xfe", b"[]", *other):
        state.write_bytes(content)
        with pytest.raises(SystemExit) as error:
            main(["s.yaml"])
        assert error.value.code == 2
        assert "sweep.json is damaged" in capsys.readouterr().err
        assert state.read_bytes() == content


@needs_engine
def test_a_sweep_has_one_owner(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/sweep-s")
    folder.mkdir(parents=True)
    code = (
        "import sys, time, pathlib; from lightning_faces.files.owner import Owner; "
        "owner = Owner(pathlib.Path(sys.argv[1]), 'sweep'); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(SystemExit):
        main([write()])
    assert f"runs/sweep-s is in use by process {holder.pid} on" in capsys.readouterr().err
    # A dead holder, which had no time to clean up, does not block.
    holder.kill()
    holder.wait()
    assert (folder / ".owner").exists()
    main(["s.yaml"])
    assert not (folder / ".owner").exists()
    assert len(results()) == 3


@needs_engine
def test_output_to_a_file_has_one_table_and_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {"model.x": {"value": 0.1}, "model.kind": {"value": "broken"}, "note": {"value": "[/red]\x1b[31m"}}
    with pytest.raises(SystemExit) as error:
        main([write(parameters=parameters)])
    assert error.value.code == 1
    shown = capsys.readouterr().out
    assert shown.count("sweep-s: grid over 3 parameters") == 1
    assert "\x1b" not in shown
    assert "Results: runs/sweep-s/results.csv\n" in shown


RATE = "model.init_args.optimizer.init_args.lr"
TRIAL = [
    "-m", "tests.ddp_main", "fit", "--model=Zhao2016", "--model.image_size=32", "--model.hidden=8",
    "--model.channels=[2,2,2,2]", "--data=NoiseFaces", "--data.train_size=40", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.callbacks+=GracefulStop",
    "--trainer.callbacks.every_n_steps=1",
]  # fmt: skip


@pytest.mark.slow
@needs_engine
def test_trials_of_two_processes_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parameters = {RATE: {"values": [0.001, 0.002]}, "trainer.max_epochs": {"value": 2}}
    main([write(command=["${interpreter}", *TRIAL, "${args}"], parameters=parameters), "--devices-per-trial", "2"])
    assert {(row["state"], row[RATE]) for row in results()} == {("finished", "0.001"), ("finished", "0.002")}
    for row in results():
        folder = Path("runs/sweep-s") / row["trial"]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == float(row[RATE])
        assert (int(config["trainer"]["devices"]), config["trainer"]["strategy"]) == (2, "ddp")
        # Two epochs of 5 steps of 4 faces on each of two processes, which report once.
        assert json.loads((folder / "training.json").read_text())["samples_seen"] == 2 * 5 * 4 * 2
        assert len(read_values(folder / "metrics.csv", "val/nme")) == 2
        assert float(row["val/nme"]) == min(read_values(folder / "metrics.csv", "val/nme"))


@pytest.mark.slow
def test_the_official_agent_runs_and_stops_trials_of_two_processes(tmp_path: Path) -> None:
    """``wandb sweep`` and ``wandb agent``, on a stand-in of the server; each trial trains by DDP."""
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    path = write(command=["${interpreter}", *TRIAL, *devices, "${args}"], program="lightning-faces")
    trials = [{RATE: 0.001, "trainer.max_epochs": 2}, {RATE: 0.002, "trainer.max_epochs": 2000}]

    def stop(history: list[dict[str, Any]]) -> bool:
        return sum("val/nme" in row for row in history) >= 3

    with StandIn(trials, stop) as server:
        environment = {
            **os.environ, **server.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        wandb = [sys.executable, "-m", "wandb"]
        made = subprocess.run([*wandb, "sweep", "--project=p", path], env=environment, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert yaml.safe_load(server.sweep_config)["metric"]["name"] == "val/nme"
        agent = subprocess.run(
            [*wandb, "agent", "tester/p/the-sweep"], env=environment, capture_output=True, text=True, timeout=560
        )
    assert agent.returncode == 0, agent.stderr
    first, second = server.runs["run0"], server.runs["run1"]
    assert set(server.runs) == {"run0", "run1"}
    for run, trial in ((first, trials[0]), (second, trials[1])):
        # The arguments reached the processes of the trial, and rank 0 alone reported.
        assert run.config["config"]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == trial[RATE]
        epochs = [row["epoch"] for row in run.history if "val/nme" in row]
        assert epochs == sorted(set(epochs))
        assert run.exit_code == 0
    assert len([row for row in first.history if "val/nme" in row]) == 2
    assert not first.stop_sent
    assert second.stop_sent
    assert 3 <= len([row for row in second.history if "val/nme" in row]) < 2000
    folder = Path("runs/zhao2016")
    assert (folder / "run0" / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "run1" / "checkpoints" / "last.ckpt").is_file()
